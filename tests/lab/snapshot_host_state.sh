#!/usr/bin/env bash
# Prints a host's state as sorted lines `SECTION|ITEM`, for comparison before and after. Leaves out logs, caches, /run,
# temporary files, and anything that changes on an idle host.
set -euo pipefail
# Emulated hosts can be too busy to answer within systemd's default of 25 s.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_BUS_TIMEOUT=300s

section() { sed "s/^/$1|/"; }

# The lab's rpm hosts are built on Debian packages.
packages() {
  if command -v rpm >/dev/null; then rpm -qa --qf '%{NAME} %{EVR}\n' | section rpm; fi
  dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' | section package
  apt-mark showhold | section hold
  apt-mark showmanual | section manual
}

readonly CONFIGURED=(/etc /opt /srv /root /home /usr/local /var/lib)
readonly VOLATILE=(-path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/lib/dnf
  -o -path '/var/lib/containerd/*' -o -path /var/lib/systemd -o -path /var/lib/private -o -path /root/.cache
  -o -name '*.pyc' -o -path /etc/ld.so.cache)
readonly UNCOMPARED=(-path /usr/local -o -name '*.pyc' -o -name __pycache__ -o -path /usr/share/mime)

# Compares configuration and state by hash, and installed programs by size.
files() {
  # The logs themselves change.
  { ls -d /var/log/pods /var/log/containers 2>/dev/null || :; } | section folder
  find "${CONFIGURED[@]}" -xdev \( "${VOLATILE[@]}" \) -prune -o -printf '%p %y %m %u:%g %l\n' | section file
  find "${CONFIGURED[@]}" -xdev \( "${VOLATILE[@]}" \) -prune -o -type f -print0 |
    xargs -0 -r sha256sum | section hash
  find /usr /boot -xdev \( "${UNCOMPARED[@]}" \) -prune \
    -o -type f -printf '%p %y %m %u:%g %s\n' -o -printf '%p %y %m %u:%g %l\n' | section program
}

# Without logind, which D-Bus starts on demand.
services() {
  systemctl list-unit-files --no-legend --plain | awk '{print $1, $2}' | section unit-file
  systemctl list-units --all --no-legend --plain --type=service,swap,mount,socket,timer |
    awk '$3 == "active" && $4 != "exited" {print $1, $4}' |
    grep -v '^systemd-logind\|^run-\|^user@\|^session-\|^systemd-tmpfiles\|^var-lib-containerd-tmp' |
    section active || :
}

readonly CHANGING_SYSCTLS='random/|ns_last_pid|_count$|netdev_rss_key|tcp_fastopen_key|stat_refresh|drop_caches|'\
'compact_memory|entropy|pty/nr|cad_pid|flush$|perf_event_max_sample|sched_|nf_log|pid_max|hung_task_detect|'\
'user_reserve_kbytes'

kernel() {
  cut -d' ' -f1 /proc/modules | section module
  # Without values that the kernel itself changes. user_reserve_kbytes depends on the memory that is free at boot
  # (1/32), so it differs after a reboot.
  find /proc/sys/net /proc/sys/vm /proc/sys/kernel -type f -perm -u+r 2>/dev/null |
    grep -vE "$CHANGING_SYSCTLS" |
    { xargs grep -sH '' || :; } | section sysctl
  awk 'NR > 1 {print $1, $2, $3, $5}' /proc/swaps | section swap
  if [[ -r /sys/fs/selinux/enforce ]]; then section selinux </sys/fs/selinux/enforce; fi
  # Files whose label differs from the policy.
  if command -v restorecon >/dev/null; then restorecon -nvR /etc /opt /root /srv 2>&1 | section label; fi
}

network() {
  ip -o link show | awk -F'[ :@]+' '{print $2}' | section link
  ip -o address show | sed -E 's/^[0-9]+: //; s/ +/ /g; s/ valid_lft.*//; s/\\//' | section address
  ip route show table all | sed -E 's/ expires [0-9]+sec//; s/ pref medium//' | section route
  # With firewalld's library: the nft command is missing before and after.
  python3 -c 'import nftables as n; t = n.Nftables(); t.set_stateless_output(True); print(t.cmd("list ruleset")[1])' |
    sed 's/^[[:space:]]*//; /^$/d' | section nft
  # Without connection counts.
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
