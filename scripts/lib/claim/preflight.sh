# shellcheck shell=bash
# Checks whether a host can be a node of the cluster. The check_* functions add to the array `problems`, so that all
# problems are reported at once.
# Values: ROLE, ADDRESS, NODE_PORT, MODE, SCHEDULER, VERSION, MANAGE, IGNORED_CHECKS, POD_NETWORK (see claim.sh).

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
    compgen -G "$ROOT/var/lib/etcd/member" || compgen -G "$kubelet/config.yaml" || compgen -G "$kubelet/pki/*") ||
    return 0
  fail "the host is a node of another cluster, or prepared for one ($(head -n 1 <<<"$found") exists)" \
    "remove it from that cluster (kubeadm reset) and save what you still need, or remove $HOST from the \
configuration; nothing was changed"
}

check_system() {
  package_family >/dev/null
  [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]] ||
    problems+=("cgroup v1: kubelet 1.35 and later don't start; boot with systemd.unified_cgroup_hierarchy=1")
  local release major minor
  release=$(uname -r)
  IFS=.- read -r major minor _ <<<"$release"
  ((major > 5 || (major == 5 && minor >= 4))) || problems+=("kernel $release is too old: 5.4 or later is needed")
  have systemctl || problems+=("systemd is missing")
  have tar || problems+=("tar is missing; it is needed to record the host's original state")
  # On older kernels kube-proxy refuses nftables (pkg/proxy/nftables, v1.37.2).
  [[ $MODE != nftables ]] || ((major > 5 || (major == 5 && minor >= 13))) ||
    problems+=("kernel $release is too old for proxy.mode nftables: 5.13 or later is needed")
  local modules=(nf_conntrack br_netfilter overlay) module
  mapfile -t -O "${#modules[@]}" modules < <(pod_network module)
  [[ $MODE != ipvs ]] || modules+=(ip_vs "ip_vs_$SCHEDULER")
  for module in "${modules[@]}"; do
    [[ -d /sys/module/$module ]] || modinfo "$module" >/dev/null 2>&1 ||
      problems+=("kernel $release has no module $module; install the distribution's full kernel package")
  done
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

# ignored CHECK: whether IGNORED_CHECKS has it. Case doesn't matter, as in kubeadm.
ignored() { grep -qixF -- "$1" <<<"$IGNORED_CHECKS"; }

# Packages that the host had before stay installed, so their version can't be changed.
check_packages() {
  [[ $MANAGE == true && ! -d $RECORD ]] || return 0
  local package found
  for package in kubelet kubeadm kubectl; do
    if [[ $(package_family) == deb ]]; then
      found=$(dpkg-query -W -f '${db:Status-Abbrev}|${Version}' "$package" 2>/dev/null |
        sed -n 's/^.i *|//p') || found=
    else
      found=$(rpm -q --qf '%{VERSION}' "$package" 2>/dev/null) || found=
    fi
    [[ -z $found || ${found%%-*} == "$VERSION" ]] || problems+=("$package $found is already installed; remove it, or \
change cluster.kubernetesVersion or packages.manage")
  done
}

# Finds configuration that would give pods a different network or runtime than the cluster's.
check_containers() {
  [[ ! -d $RECORD ]] || return 0
  local file line
  # containerd uses the first file in alphabetical order.
  while read -r file; do
    problems+=("$file: another pod network is configured; move the file away (kubeadm reset leaves a previous \
cluster's there)")
  done < <(find "$ROOT/etc/cni/net.d" -maxdepth 1 \
    \( -name '*.conf' -o -name '*.conflist' -o -name '*.json' \) 2>/dev/null || :)
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

# Read from /proc, because ss loads kernel modules.
check_ports() {
  local port ports=(10250 10256 "$NODE_PORT") hex program
  [[ $ROLE == worker ]] || ports+=(6443 2379 2380 10257 10259)
  for port in "${ports[@]}"; do
    hex=$(printf '%04X' "$port")
    if ! ignored "Port-$port" &&
      awk -v port=":$hex$" '$4 == "0A" && $2 ~ port {found = 1} END {exit !found}' < <(sockets); then
      program=$(ss -Hltnp "sport = :$port" | sed -n '1s/.*users:(("\([^"]*\)".*/ by \1/p')
      problems+=("port $port/tcp is in use$program")
    fi
  done
}

# tcp6 doesn't exist if IPv6 was turned off at boot.
sockets() { cat "$ROOT"/proc/net/{tcp,tcp6} 2>/dev/null || :; }
