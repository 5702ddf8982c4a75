#!/usr/bin/env bash
# A host's whole state as lines `section|thing`, sorted, for comparing before and after. Left
# out: logs, caches, /run, temporary files, and what changes by itself on an idle host.
set -euo pipefail
# Emulated hosts can be too busy to answer within systemd's usual 25 s.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_BUS_TIMEOUT=300s

section() { sed "s/^/$1|/"; }

# The lab's hosts of the rpm family have Debian's packages beneath.
packages() {
  if command -v rpm >/dev/null; then rpm -qa --qf '%{NAME} %{EVR}\n' | section rpm; fi
  dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' | section package
  apt-mark showhold | section hold
  apt-mark showmanual | section manual
}

# Content by its hash where configuration and state live, by size where packages put programs.
files() {
  find /etc /opt /srv /root /home /usr/local /var/lib -xdev \
    \( -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/lib/dnf -o -path '/var/lib/containerd/*' -o -path /var/lib/systemd \
    -o -path /var/lib/private -o -path /root/.cache -o -name '*.pyc' -o -path /etc/ld.so.cache \) -prune \
    -o -printf '%p %y %m %u:%g %l\n' | section file
  find /etc /opt /srv /root /home /usr/local /var/lib -xdev \
    \( -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/lib/dnf -o -path '/var/lib/containerd/*' -o -path /var/lib/systemd \
    -o -path /var/lib/private -o -path /root/.cache -o -name '*.pyc' -o -path /etc/ld.so.cache \) -prune \
    -o -type f -print0 | xargs -0 -r sha256sum | section hash
  find /usr /boot -xdev \( -path /usr/local -o -name '*.pyc' -o -name __pycache__ -o -path /usr/share/mime \) -prune \
    -o -type f -printf '%p %y %m %u:%g %s\n' -o -printf '%p %y %m %u:%g %l\n' | section program
}

# logind is started by the bus whenever anybody asks it something.
services() {
  systemctl list-unit-files --no-legend --plain | awk '{print $1, $2}' | section unit-file
  systemctl list-units --all --no-legend --plain --type=service,swap,mount,socket,timer | awk '$3 == "active" && $4 != "exited" {print $1, $4}' |
    grep -v '^systemd-logind\|^run-\|^user@\|^session-\|^systemd-tmpfiles\|^var-lib-containerd-tmp' | section active || :
}

kernel() {
  cut -d' ' -f1 /proc/modules | section module
  # Numbers that the kernel itself keeps moving are no settings. user_reserve_kbytes is one 32nd of what
  # was free at boot: another figure after a reboot.
  find /proc/sys/net /proc/sys/vm /proc/sys/kernel -type f -perm -u+r 2>/dev/null |
    grep -vE 'random/|ns_last_pid|_count$|netdev_rss_key|tcp_fastopen_key|stat_refresh|drop_caches|compact_memory|entropy|pty/nr|cad_pid|flush$|perf_event_max_sample|sched_|nf_log|pid_max|hung_task_detect|user_reserve_kbytes' |
    { xargs grep -sH '' || :; } | section sysctl
  awk 'NR > 1 {print $1, $2, $3, $5}' /proc/swaps | section swap
  if [[ -r /sys/fs/selinux/enforce ]]; then section selinux </sys/fs/selinux/enforce; fi
  # Files whose label is not the policy's.
  if command -v restorecon >/dev/null; then restorecon -nvR /etc /opt /root /srv 2>&1 | section label; fi
}

network() {
  ip -o link show | awk -F'[ :@]+' '{print $2}' | section link
  ip -o address show | sed -E 's/^[0-9]+: //; s/ +/ /g; s/ valid_lft.*//; s/\\//' | section address
  ip route show table all | sed -E 's/ expires [0-9]+sec//; s/ pref medium//' | section route
  # By firewalld's own library: the program nft isn't there before and after.
  python3 -c 'import nftables as n; t = n.Nftables(); t.set_stateless_output(True); print(t.cmd("list ruleset")[1])' |
    sed 's/^[[:space:]]*//; /^$/d' | section nft
  # Without the connections of the moment.
  if [[ -r /proc/net/ip_vs ]]; then sed -E '1,3d; s/( +[0-9]+){2} *$//' /proc/net/ip_vs | section ipvs; fi
  if command -v firewall-cmd >/dev/null && systemctl is-active --quiet firewalld; then
    firewall-cmd --list-all-zones | sed 's/^ *//' | section firewalld
    firewall-cmd --permanent --list-all-zones | sed 's/^ *//' | section firewalld-permanent
  fi
  findmnt -rn -o TARGET,FSTYPE | grep -v '^/run/user\|^/run/credentials' | section mount
}

images() {
  if systemctl is-active --quiet containerd; then ctr -n k8s.io images ls -q | section image; fi
  ctr namespaces ls -q 2>/dev/null | section containerd-namespace || :
}

{
  packages
  files
  services
  kernel
  network
  images
} | sort -u
