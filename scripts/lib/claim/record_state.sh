# shellcheck shell=bash
# Records the host's original state, before the first change. lib/record.sh reads the record.

source lib/step.sh
source lib/packages.sh
source lib/pod_network.sh
source lib/reset/files.sh
source lib/reset/kernel.sh

# Files that later steps may write, remove or hide.
readonly RECORDED_FILES=(
  /etc/containerd /etc/containerd/config.toml /etc/containerd/certs.d /etc/crictl.yaml /etc/selinux/config
  /etc/default/kubelet /etc/sysconfig/kubelet /etc/cni /opt/cni /etc/kubernetes
  /var/lib/kubelet /var/lib/etcd /var/lib/cni /var/lib/containerd
  /opt/containerd /usr/libexec/kubernetes /etc/firewalld
  "${LOG_FOLDERS[@]}" "${LOGIND_FILE%/*}" "$LOGIND_FILE"
  /etc/ssl /etc/ssl/certs /etc/pki /etc/ca-certificates /usr/share/ca-certificates /usr/local/share/ca-certificates
)

# Set by kubelet and kube-proxy, or by the kernel itself when forwarding is turned on or off (net/ipv4/devinet.c,
# inet_forward_change). The step `kernel` records those that it sets.
readonly RECORDED_SYSCTLS=(
  kernel.panic kernel.panic_on_oops vm.overcommit_memory net.netfilter.nf_conntrack_max
  net.netfilter.nf_conntrack_tcp_timeout_established net.netfilter.nf_conntrack_tcp_timeout_close_wait
  net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.conf.all.route_localnet
  net.ipv4.vs.conntrack net.ipv4.vs.conn_reuse_mode net.ipv4.vs.expire_nodest_conn net.ipv4.vs.expire_quiescent_template
  net.ipv4.conf.all.accept_redirects
)

record_state() {
  if [[ -d $RECORD ]]; then
    say "the host's original state is already recorded"
    return
  fi
  local doing="recording the host's original state in $RECORD"
  mkdir -p "$HOME_DIR"
  chmod 0700 "$HOME_DIR"
  # Renamed when it is complete, so there is never half a record.
  rm -rf "$HOME_DIR/record.new"
  mkdir -m 0700 "$HOME_DIR/record.new"
  cd "$HOME_DIR/record.new"
  record_packages
  record_files
  # Before record_network, where nft may load modules.
  record_kernel
  record_services
  record_network
  sync -f .
  cd /
  mv "$HOME_DIR/record.new" "$RECORD"
}

# The record_* functions write files into the current folder.
record_packages() {
  if [[ $(package_family) == deb ]]; then
    dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\n' | sed -n 's/^[ih]i *|//p' | sort >packages
    apt-mark showhold | sort >holds
  else
    rpm -qa --qf '%{NAME}|%{VERSION}-%{RELEASE}\n' | sort >packages
    : >holds
  fi
  : >packages-added
}

# Small files are copied. For folders with data, only their existence is recorded.
record_files() {
  local path
  : >present
  : >absent
  for path in "${RECORDED_FILES[@]}" $(pod_network folder); do
    if [[ -e $ROOT$path ]]; then echo "$path" >>present; else echo "$path" >>absent; fi
  done
  local small='containerd/.*|crictl\.yaml|systemd/.*\.conf|(selinux|default|sysconfig|cni|firewalld)(/.*)?'
  sed -nE "s#^/(etc/($small))\$#\1#p" present >copied
  for path in "${LOG_FOLDERS[@]}"; do
    if [[ -d $ROOT$path ]]; then find "$ROOT$path" -mindepth 1 -maxdepth 1 -printf "$path/%f\n"; fi
  done >pod-logs
  tar --numeric-owner --hard-dereference -cpf files.tar -C "$ROOT/" -T "$PWD/copied"
}

record_services() {
  local unit
  for unit in containerd kubelet firewalld ufw; do
    printf '%s %s %s\n' "$unit" "$(systemctl is-enabled "$unit" 2>/dev/null || :)" \
      "$(systemctl is-active "$unit" 2>/dev/null || :)"
  done >units
  : >image-list
  if have ctr && unit_active containerd; then
    ctr namespaces ls -q | sort >containerd-namespaces
    ctr -n k8s.io images ls -q | sort >image-list
  fi
}

record_network() {
  ls /sys/class/net >links
  if [[ -r /proc/net/ip_vs ]]; then sed -n 's/^\(TCP\|UDP\|SCTP\|FWM\) /&/p' /proc/net/ip_vs; fi >ipvs
  : >nft-tables
  if have nft; then nft list tables | sort >nft-tables; fi
}

record_kernel() {
  local path
  awk 'NR > 1 {print $1, $2, $5}' /proc/swaps >swaps
  cut -d' ' -f1 /proc/modules | sort >modules
  if [[ -r /sys/fs/selinux/enforce ]]; then cat /sys/fs/selinux/enforce; fi >selinux
  {
    for path in "${RECORDED_SYSCTLS[@]}"; do
      if [[ -r /proc/sys/${path//.//} ]]; then echo "$path $(cat "/proc/sys/${path//.//}")"; fi
    done
    # With slashes, because an interface's name may contain a dot.
    for path in /proc/sys/net/ipv4/conf/*/forwarding; do echo "${path#/proc/sys/} $(cat "$path")"; done
  } >sysctls
  if [[ -r $HASHSIZE ]]; then cat "$HASHSIZE"; fi >hashsize
}
