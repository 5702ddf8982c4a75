# shellcheck shell=bash
# The first step on a host and the last: looks whether the host can be a node, records what
# was there before the first change, and on delete gives the host back as recorded.
#
# It is one step because the provider forgets a step that failed: whatever later step breaks,
# this one is in the state, so `destroy` always knows what to give back.
#
# Values: OWNER, ROLE, ADDRESS, NODE_PORT, MODE, SCHEDULER, VERSION, MANAGE (see packages.sh),
# IGNORED_CHECKS (kubeadm's preflight checks that this host may fail, one a line).

source lib/reset.sh

create() {
  local problems=()
  refuse_other_uses
  look_at_system
  look_at_packages
  look_at_containers
  # A host of ours that is already a node holds the ports itself.
  if [[ ! -e $HOME_DIR/node.started ]]; then look_at_ports; fi
  if ((${#problems[@]})); then
    local problem
    for problem in "${problems[@]}"; do say "- $problem"; done
    fail "this host can't be a node of the cluster: ${#problems[@]} finding(s) above" \
      "mend them, or take $HOST out of the configuration; nothing was changed here"
  fi
  record_state
  # After the record in any case: a run that was cut off between them has left a record without an owner.
  printf '%s\n' "$HOST" | put_file "$HOME_DIR/name" 0600 || :
  printf '%s\n' "$ROLE" | put_file "$HOME_DIR/role" 0600 || :
  printf '%s\n' "$OWNER" | put_file "$HOME_DIR/owner" 0600 || :
  say "claimed"
}

refuse_other_uses() {
  if [[ ! -d $RECORD ]]; then
    refuse_others_nodes /etc/kubernetes /var/lib/etcd /var/lib/kubelet
    return
  fi
  local name former move
  # Its own claim would be given back after this one was made, and all of this one's work with it.
  name=$(cat "$HOME_DIR/name" 2>/dev/null || echo "$HOST")
  former=$(cat "$HOME_DIR/role" 2>/dev/null || echo "$ROLE")
  if [[ $name != "$HOST" ]]; then
    move="take $name out of the configuration in one change, and add $HOST in the next"
    # A configuration without a control plane is refused.
    [[ $former != control-plane ]] || move="give $name its name back, or \`pulumi destroy\` first: with another name it is another cluster"
    fail "the host is $name of this same stack" "$move; nothing was changed here"
  fi
  [[ $former == "$ROLE" || ! -e $HOME_DIR/node.started ]] || fail "the host is a $former of the cluster that is here, and can't become its $ROLE" \
    "take $HOST out of the configuration in one change, and add it in the next; nothing was changed here"
}

# refuse_others_nodes KUBERNETES ETCD KUBELET: the folders. kubeadm would take over the authority and the data that
# lie there, and `kubeadm reset` would remove them.
refuse_others_nodes() {
  local found
  found=$(compgen -G "$1/*.conf" || compgen -G "$1/manifests/*" || compgen -G "$1/pki/*" || compgen -G "$2/member" ||
    compgen -G "$3/config.yaml" || compgen -G "$3/pki/*") || return 0
  fail "the host is a node of another cluster, or prepared for one ($(head -n 1 <<<"$found") is there)" \
    "take it out of that cluster (kubeadm reset) and move what you need of it away, or take $HOST out of the configuration; nothing was changed here"
}

look_at_system() {
  family >/dev/null
  [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]] ||
    problems+=("cgroup v1: kubelet 1.35 and later refuse it; boot with systemd.unified_cgroup_hierarchy=1")
  local release major minor
  release=$(uname -r)
  IFS=.- read -r major minor _ <<<"$release"
  ((major > 5 || (major == 5 && minor >= 4))) ||
    problems+=("kernel $release is too old: 5.4 or later is needed")
  have systemctl || problems+=("systemd is not here")
  have tar || problems+=("tar is not here, by which what was before is recorded; install it")
  # kube-proxy refuses nftables on older kernels (pkg/proxy/nftables, v1.37.2).
  [[ $MODE != nftables ]] || ((major > 5 || (major == 5 && minor >= 13))) ||
    problems+=("kernel $release is too old for proxy.mode nftables: 5.13 or later is needed")
  local modules=(nf_conntrack br_netfilter overlay vxlan) module
  [[ $MODE != ipvs ]] || modules+=(ip_vs "ip_vs_$SCHEDULER")
  for module in "${modules[@]}"; do
    [[ -d /sys/module/$module ]] || modinfo "$module" >/dev/null 2>&1 ||
      problems+=("the kernel $release has no module $module; install the distribution's full kernel package")
  done
  grep -qwF "$ADDRESS" < <(ip -4 -o address show) ||
    problems+=("no interface has the address $ADDRESS that the configuration gives this host")
  local memory
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
  ((memory >= 900)) || problems+=("$memory MiB of memory: at least 1 GiB is needed")
  if [[ $ROLE != worker ]]; then
    # kubeadm makes these checks too, but only when half of the work is done (constants.go, v1.37.2).
    (($(nproc) >= 2)) || ignored NumCPU ||
      problems+=("one CPU: kubeadm needs two on a control plane; add NumCPU to preflight.ignore to accept one")
    ((memory < 900 || memory >= 1700)) || ignored Mem ||
      problems+=("$memory MiB of memory: kubeadm needs 1700 on a control plane; add Mem to preflight.ignore to accept less")
  fi
}

# ignored CHECK: whether kubeadm is told to ignore it. kubeadm doesn't distinguish upper from lower case either.
ignored() { grep -qixF -- "$1" <<<"$IGNORED_CHECKS"; }

# What is here before stays as it is, so another version can't be made of it.
look_at_packages() {
  [[ $MANAGE == true && ! -d $RECORD ]] || return 0
  local package seen
  for package in kubelet kubeadm kubectl; do
    if [[ $(family) == deb ]]; then
      seen=$(dpkg-query -W -f '${db:Status-Abbrev}|${Version}' "$package" 2>/dev/null | sed -n 's/^.i *|//p') || seen=
    else
      seen=$(rpm -q --qf '%{VERSION}' "$package" 2>/dev/null) || seen=
    fi
    [[ -z $seen || ${seen%%-*} == "$VERSION" ]] ||
      problems+=("$package $seen is installed already; remove it, or set cluster.kubernetesVersion or packages.manage to fit")
  done
}

# What is here before and would make pods another network or another runtime than the cluster's.
look_at_containers() {
  [[ ! -d $RECORD ]] || return 0
  local file line
  # containerd takes the first in order of name.
  while read -r file; do
    problems+=("$file: another network for pods is configured; move it away (a former cluster's stays after kubeadm reset)")
  done < <(find /etc/cni/net.d -maxdepth 1 \( -name '*.conf' -o -name '*.conflist' -o -name '*.json' \) 2>/dev/null || :)
  while read -r line; do
    problems+=("containerd is configured for more than this cluster: $line; this program puts a configuration of its own in that one's place")
  done < <(own_containerd_settings /etc/containerd)
  # There a node's containers are told from others' by nothing.
  if unit_active containerd && have ctr && [[ -n $(timeout 60 ctr -n k8s.io containers ls -q) ]]; then
    problems+=("containerd has containers in Kubernetes' own namespace, which go with a node: see ctr -n k8s.io containers ls; move or remove them")
  fi
}

# own_containerd_settings FOLDER: of containerd's configuration what keeps its data elsewhere, or does more than by default.
own_containerd_settings() {
  if [[ -f $1/config.toml ]]; then
    sed -nE '
      s/^[[:space:]]+//; s/[[:space:]]+$//
      /^(root|state) *=/ {/= *["'\''](\/var\/lib|\/run)\/containerd["'\'']$/! p}
      /^imports *= *\[ *[^] ]/ {/conf\.d\/\*\.toml/! p}
      /^\[proxy_plugins\../ p
      /^\[.*\.runtimes\.[^.]*\]$/ {/\.runtimes\.["'\'']?runc["'\'']?\]$/! p}
    ' "$1/config.toml"
  fi
  find "$1/conf.d" -name '*.toml' 2>/dev/null || :
}

# Read from /proc, since asking ss loads kernel modules that weren't there.
look_at_ports() {
  local port ports=(10250 10256 "$NODE_PORT") hex
  [[ $ROLE == worker ]] || ports+=(6443 2379 2380 10257 10259)
  for port in "${ports[@]}"; do
    hex=$(printf '%04X' "$port")
    if ! ignored "Port-$port" && awk -v port=":$hex$" '$4 == "0A" && $2 ~ port {found = 1} END {exit !found}' < <(sockets); then
      problems+=("port $port/tcp is taken$(ss -Hltnp "sport = :$port" | sed -n '1s/.*users:(("\([^"]*\)".*/ by \1/p')")
    fi
  done
}

# Where IPv6 was turned off at boot, there is only the first.
sockets() { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || :; }

# The files that later steps may write, remove or hide.
readonly TOUCHED=(
  /etc/containerd /etc/containerd/config.toml /etc/containerd/certs.d /etc/crictl.yaml /etc/selinux/config
  /etc/default/kubelet /etc/sysconfig/kubelet /etc/cni /opt/cni /etc/kubernetes
  /var/lib/kubelet /var/lib/etcd /var/lib/cni /var/lib/containerd /run/flannel
  /opt/containerd /usr/libexec/kubernetes /etc/firewalld
  /etc/ssl /etc/ssl/certs /etc/pki /etc/ca-certificates /usr/share/ca-certificates /usr/local/share/ca-certificates
)

# What kubelet and kube-proxy set, besides what the step `kernel` does; and what the kernel itself sets as it begins or
# ends to forward, here and for each interface (net/ipv4/devinet.c, inet_forward_change).
readonly SYSCTLS=(
  kernel.panic kernel.panic_on_oops vm.overcommit_memory net.netfilter.nf_conntrack_max
  net.netfilter.nf_conntrack_tcp_timeout_established net.netfilter.nf_conntrack_tcp_timeout_close_wait
  net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.conf.all.route_localnet
  net.ipv4.vs.conntrack net.ipv4.vs.conn_reuse_mode net.ipv4.vs.expire_nodest_conn net.ipv4.vs.expire_quiescent_template
  net.ipv4.conf.all.accept_redirects
)

record_state() {
  if [[ -d $RECORD ]]; then
    say "the record of the host's prior state is there already"
    return
  fi
  rm -rf "$GIVEN_BACK"
  mkdir -p "$HOME_DIR"
  chmod 0700 "$HOME_DIR"
  # Built beside and renamed: a record is whole or it isn't there.
  rm -rf "$HOME_DIR/record.new"
  mkdir -m 0700 "$HOME_DIR/record.new"
  (
    cd "$HOME_DIR/record.new" || exit
    if [[ $(family) == deb ]]; then
      dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\n' | sed -n 's/^[ih]i *|//p' | sort >packages
      apt-mark showhold | sort >holds
    else
      rpm -qa --qf '%{NAME}|%{VERSION}-%{RELEASE}\n' | sort >packages
      : >holds
    fi
    local path
    : >present
    : >absent
    for path in "${TOUCHED[@]}"; do
      if [[ -e $path ]]; then echo "$path" >>present; else echo "$path" >>absent; fi
    done
    # Small files are copied; folders with data stay where they are and are only looked after.
    sed -nE 's#^/(etc/(containerd/.*|crictl\.yaml|(selinux|default|sysconfig|cni|firewalld)(/.*)?))$#\1#p' present >copied
    tar --numeric-owner -cpf files.tar -C / -T "$PWD/copied"
    awk 'NR > 1 {print $1, $2, $5}' /proc/swaps >swaps
    cut -d' ' -f1 /proc/modules | sort >modules
    local unit
    for unit in containerd kubelet firewalld ufw; do
      printf '%s %s %s\n' "$unit" "$(systemctl is-enabled "$unit" 2>/dev/null || :)" "$(systemctl is-active "$unit" 2>/dev/null || :)"
    done >units
    ls /sys/class/net >links
    if [[ -r /proc/net/ip_vs ]]; then sed -n 's/^\(TCP\|UDP\|SCTP\|FWM\) /&/p' /proc/net/ip_vs; fi >ipvs
    : >nft-tables
    if have nft; then nft list tables | sort >nft-tables; fi
    if [[ -r /sys/fs/selinux/enforce ]]; then cat /sys/fs/selinux/enforce; fi >selinux
    : >image-list
    if have ctr && unit_active containerd; then
      ctr namespaces ls -q | sort >containerd-namespaces
      ctr -n k8s.io images ls -q | sort >image-list
    fi
    : >packages-added
    {
      for path in "${SYSCTLS[@]}"; do
        if [[ -r /proc/sys/${path//.//} ]]; then echo "$path $(cat "/proc/sys/${path//.//}")"; fi
      done
      # By their paths: an interface may have a dot in its name.
      for path in /proc/sys/net/ipv4/conf/*/forwarding; do echo "${path#/proc/sys/} $(cat "$path")"; done
    } >sysctls
    if [[ -r $HASHSIZE ]]; then cat "$HASHSIZE"; fi >hashsize
    sync -f .
  )
  mv "$HOME_DIR/record.new" "$RECORD"
}

# A containerd of ours goes, and with it whatever it runs.
refuse_others_containers() {
  grep -qxE 'containerd(\.io)?' < <(noted packages-added) && unit_active containerd && have ctr || return 0
  local namespace found=()
  while read -r namespace; do
    if [[ $namespace != k8s.io && -n $(timeout 60 ctr -n "$namespace" containers ls -q) ]]; then found+=("$namespace"); fi
  done < <(timeout 60 ctr namespaces ls -q)
  ((${#found[@]} == 0)) || fail "the containerd that this program installed also has containers that are none of ours, in the namespaces ${found[*]}" \
    "move or remove them (ctr -n ${found[0]} containers ls), then run again; nothing was changed here"
}

# Out of the way in one move: a removal that is cut off leaves no half of a record.
readonly GIVEN_BACK=$HOME_DIR.given-back

delete() {
  rm -rf "$GIVEN_BACK"
  if [[ ! -e $HOME_DIR ]]; then
    say "nothing of ours is here any more"
    # Whose it is nobody can tell: a host that was given back may have become somebody else's node since.
    [[ ! -e /etc/kubernetes/kubelet.conf ]] || say "a node is here, and stays: if it is this cluster's, $HOME_DIR was deleted by hand, and the host has to be reset by hand or installed anew"
    return
  fi
  need_record
  refuse_others_containers
  choose_packages
  reset_node
  give_back_firewall
  give_back_runtime
  give_back_packages
  give_back_kernel
  give_back_files
  # Last, since a run that was cut off before needs it again.
  mv "$HOME_DIR" "$GIVEN_BACK"
  rm -rf "$GIVEN_BACK"
  say "given back as it was"
}
