# shellcheck shell=bash
# Checks whether a host can be a node of the cluster. The check_* functions add to the array `problems`, so that all
# problems are reported at once. They change nothing and load no kernel modules.
# Values: ROLE, ADDRESS, NODE_PORT, MODE, SCHEDULER, VERSION, MANAGE, IGNORED_CHECKS, POD_NETWORK, FIRST_BOOT_SECONDS
# (see claim.sh).

source lib/step.sh
source lib/packages.sh
source lib/pod_network.sh

# Refuses a node of another cluster, and a node of this stack with another name or role: its old claim would be deleted
# after this one is created, which restores the host and undoes all later steps.
refuse_existing_node() {
  if [[ ! -d $RECORD ]]; then
    refuse_foreign_node
    return
  fi
  local other_name other_role next_move
  next_move="if this host is $HOST, a $ROLE of this stack, run \`cd $HOME_DIR && echo $HOST >name && echo $ROLE >role\` \
on it, then the same command again"
  need_content "$HOME_DIR/name" "$next_move"
  need_content "$HOME_DIR/role" "$next_move"
  other_name=$(cat "$HOME_DIR/name" 2>/dev/null || echo "$HOST")
  other_role=$(cat "$HOME_DIR/role" 2>/dev/null || echo "$ROLE")
  if [[ $other_name != "$HOST" ]]; then
    next_move="remove $other_name from the configuration in one change, and add $HOST in the next"
    # A configuration without a control plane isn't valid.
    [[ $other_role != control-plane ]] || next_move="change the name back to $other_name, or run \`pulumi destroy\` \
first: under another name it is a new cluster"
    fail "the host is already in this stack as $other_name" "$next_move; nothing was changed"
  fi
  [[ $other_role == "$ROLE" || ! -e $HOME_DIR/node.started ]] ||
    fail "the host is already a $other_role of the cluster and can't become a $ROLE" \
      "remove $HOST from the configuration in one change, and add it in the next; nothing was changed"
}

# kubeadm would reuse another cluster's CA and data, and `kubeadm reset` would delete them.
refuse_foreign_node() {
  local found etc=$ROOT/etc/kubernetes kubelet=$ROOT/var/lib/kubelet
  found=$(compgen -G "$etc/*.conf" || compgen -G "$etc/manifests/*" || compgen -G "$etc/pki/*" ||
    compgen -G "$ROOT/var/lib/etcd/member" || compgen -G "$kubelet/config.yaml" || compgen -G "$kubelet/pki/*" ||
    other_distribution) || return 0
  fail "the host is a node of another cluster, or prepared for one ($(head -n 1 <<<"$found") exists)" \
    "remove it from that cluster (kubeadm reset, or its distribution's uninstaller) and save what you still need, or \
remove $HOST from the configuration; nothing was changed"
}

# Nodes of other distributions use the same ports, interfaces and chains, but have none of kubeadm's files.
other_distribution() {
  local unit file
  for unit in k3s k3s-agent rke2-server rke2-agent k0scontroller k0sworker snap.microk8s.daemon-kubelite; do
    for file in "$ROOT"/{etc,usr/local/lib}/systemd/system/"$unit.service"; do
      if [[ -e $file ]]; then
        echo "$file"
        return
      fi
    done
  done
  return 1
}

# Waits for cloud-init and for the updates of a first boot. They install packages, so the record would be wrong, and may
# reboot the host.
await_first_boot() {
  [[ ! -d $RECORD ]] || return 0
  local detail='' # what is still running
  wait_for "$((FIRST_BOOT_SECONDS - SECONDS))" "the host's first boot to finish" first_boot_finished ||
    fail "$detail is still at work after $FIRST_BOOT_SECONDS s" \
      "wait until it ends, or raise stepTimeouts.inspect, then run the same command again; nothing was changed"
}

first_boot_finished() {
  detail=
  if have cloud-init && [[ $(timeout 60 cloud-init status 2>/dev/null || :) == 'status: running'* ]]; then
    detail=cloud-init
  else
    detail=$(systemctl list-units --plain --no-legend --state=activating "${UPDATES[@]}" | awk 'NR == 1 {print $1}')
  fi
  [[ -z $detail ]]
}
readonly UPDATES=(
  apt-daily-upgrade.service dnf-automatic.service dnf-automatic-install.service dnf5-automatic.service
)

check_system() {
  package_family >/dev/null
  local release major minor
  release=$(uname -r)
  IFS=.- read -r major minor _ <<<"$release"
  ((major > 5 || (major == 5 && minor >= 4))) || problems+=("kernel $release is too old: 5.4 or later is needed")
  have systemctl || problems+=("systemd is missing")
  have tar || problems+=("tar is missing; it is needed to record the host's original state")
  # On older kernels kube-proxy refuses nftables (pkg/proxy/nftables, v1.37.2).
  [[ $MODE != nftables ]] || ((major > 5 || (major == 5 && minor >= 13))) ||
    problems+=("kernel $release is too old for proxy.mode nftables: 5.13 or later is needed")
  grep -qwF "$ADDRESS" < <(ip -4 -o address show) ||
    problems+=("no interface has the configured address $ADDRESS")
  local memory
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
  ((memory >= 900)) || problems+=("$memory MiB of memory: at least 1 GiB is needed")
  if [[ $ROLE != worker ]]; then
    # kubeadm checks these too (constants.go, v1.37.2), but only after half of the work is done.
    (($(nproc) >= 2)) || ignored NumCPU ||
      problems+=("one CPU: kubeadm needs two on a control plane; add NumCPU to preflight.ignore to accept one")
    ((memory < 900 || memory >= 1700)) || ignored Mem || problems+=("$memory MiB of memory: kubeadm needs 1700 on a \
control plane; add Mem to preflight.ignore to accept less")
  fi
}

# kubeadm needs these controllers (its package system-validators, v1.12.1).
check_cgroups() {
  local file=$ROOT/sys/fs/cgroup/cgroup.controllers name missing=()
  if [[ ! -f $file ]]; then
    problems+=("cgroup v1: kubelet 1.35 and later don't start; boot with systemd.unified_cgroup_hierarchy=1")
    return
  fi
  for name in cpu cpuset memory pids; do
    grep -qw "$name" "$file" || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || problems+=("cgroup controllers are off: ${missing[*]}; remove \`cgroup_disable\` from the \
kernel's command line, or on a Raspberry Pi add ${missing[*]/#/cgroup_enable=} to cmdline.txt, and reboot")
}

# Whether kube-proxy has already run in this mode.
proxy_runs() { [[ -e $HOME_DIR/node.done && $(sed -n 's/^mode: //p' "$HOME_DIR/proxy.yaml" 2>/dev/null) == "$MODE" ]]; }

check_modules() {
  local modules=(nf_conntrack br_netfilter overlay) module missing=() release disabled
  local advice="install the distribution's full kernel package"
  release=$(uname -r)
  mapfile -t -O "${#modules[@]}" modules < <(pod_network module)
  [[ $MODE != ipvs ]] || modules+=(ip_vs "ip_vs_$SCHEDULER")
  # The kernel loads these by itself. Some distributions have them in a package of their own.
  if ! proxy_runs; then
    modules+=(xt_comment xt_conntrack xt_mark xt_addrtype xt_MASQUERADE)
    case $MODE in
      ipvs) modules+=(dummy xt_set ip_set ip_set_{bitmap_port,hash_ip,hash_ipport,hash_ipportip,hash_ipportnet}) ;;
      iptables) modules+=(xt_statistic) ;;
      nftables) modules+=(nf_tables nft_ct nft_masq nft_nat nft_numgen) ;;
    esac
  fi
  for module in "${modules[@]}"; do
    [[ -d $ROOT/sys/module/$module ]] || modinfo "$module" >/dev/null 2>&1 || missing+=("$module")
  done
  if [[ ! -d $ROOT/lib/modules/$release ]]; then
    advice="reboot into a kernel whose modules are installed"
  elif [[ $(package_family) == rpm ]]; then
    advice="install kernel-modules-extra-$release"
  elif grep -q '^ID=ubuntu' "$ROOT/etc/os-release"; then
    advice="install linux-modules-extra-$release"
  fi
  ((${#missing[@]} == 0)) || problems+=("kernel $release lacks the modules ${missing[*]}; $advice")
  # Hardening guides turn modules off with lines such as `install MODULE /bin/false`.
  disabled=$(modprobe --showconfig 2>/dev/null | awk -v modules=" ${modules[*]} " '
    $1 == "install" && $3 ~ /(true|false)$/ && index(modules, " " $2 " ") {print $2}' | xargs)
  [[ -z $disabled ]] || problems+=("modules that /etc/modprobe.d turns off: $disabled; remove their \`install\` lines")
}

# ignored CHECK: whether IGNORED_CHECKS has it. Case doesn't matter, as in kubeadm.
ignored() { grep -qixF -- "$1" <<<"$IGNORED_CHECKS"; }

# Packages that the host had before stay installed, so their version can't be changed.
check_packages() {
  [[ $MANAGE == true && ! -d $RECORD ]] || return 0
  local package found
  for package in kubelet kubeadm kubectl; do
    found=$(installed_version "$package")
    [[ -z $found || $found == "$VERSION" ]] || problems+=("$package $found is already installed; remove it, or \
change cluster.kubernetesVersion or packages.manage")
  done
}

# Finds configuration that would give pods a different network or runtime than the cluster's.
check_containers() {
  [[ ! -d $RECORD ]] || return 0
  local file line
  # containerd uses the first file in alphabetical order.
  while read -r file; do
    problems+=("$file: another pod network is configured; move the file away (kubeadm reset leaves a \
previous cluster's there)")
  done < <(find "$ROOT/etc/cni/net.d" -maxdepth 1 \
    \( -name '*.conf' -o -name '*.conflist' -o -name '*.json' \) ! -name "$(pod_network cni-config)" 2>/dev/null || :)
  while read -r line; do
    problems+=("containerd has settings of its own: $line; this program would replace its configuration")
  done < <(custom_containerd_settings)
  # They would be indistinguishable from the node's own containers.
  if unit_active containerd && have ctr && [[ -n $(timeout 60 ctr -n k8s.io containers ls -q) ]]; then
    problems+=("containerd has containers in Kubernetes' namespace, which would be deleted together with the node: see \
ctr -n k8s.io containers ls; move or remove them")
  fi
}

# Prints containerd's settings that move its data or go beyond the defaults.
custom_containerd_settings() {
  local folder=$ROOT/etc/containerd
  if [[ -f $folder/config.toml ]]; then
    sed -nE '
      s/^[[:space:]]+//; s/[[:space:]]+$//
      /^(root|state) *=/ {/= *["'\''](\/var\/lib|\/run)\/containerd["'\'']$/! p}
      /^imports *= *\[ *[^] ]/ {/conf\.d\/\*\.toml/! p}
      /^\[proxy_plugins\../ p
      /^\[.*\.runtimes\.[^.]*\]$/ {/\.runtimes\.["'\'']?runc["'\'']?\]$/! p}
    ' "$folder/config.toml"
  fi
  find "$folder/conf.d" -name '*.toml' 2>/dev/null || :
}

# Read from /proc, because ss loads kernel modules. On a node of ours, only a new NodePort can be somebody else's:
# kube-proxy listens on none in any mode, so a program that does would never be reached again.
check_ports() {
  local port ports=("$NODE_PORT") hex program living=''
  if [[ ! -e $HOME_DIR/node.started ]]; then
    ports+=(10250 10256)
    [[ $ROLE == worker ]] || ports+=(6443 2379 2380 10257 10259)
  elif cmp -s "$HOME_DIR/node-port" <(echo "$NODE_PORT"); then
    return 0
  else
    living=yes
  fi
  for port in "${ports[@]}"; do
    hex=$(printf '%04X' "$port")
    if ! ignored "Port-$port" &&
      awk -v port=":$hex$" '$4 == "0A" && $2 ~ port {found = 1} END {exit !found}' < <(sockets); then
      program=$(ss -Hltnp "sport = :$port" | sed -n '1s/.*users:(("\([^"]*\)".*/ by \1/p')
      problems+=("port $port/tcp is in use$program${living:+, and nginx.nodePort would take it over; choose another \
one, or stop the program}")
    fi
  done
}

# tcp6 doesn't exist if IPv6 was turned off at boot.
sockets() { cat "$ROOT"/proc/net/{tcp,tcp6} 2>/dev/null || :; }
