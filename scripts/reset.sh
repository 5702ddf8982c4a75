# shellcheck shell=bash
# Taking a node apart, and every leftover that `kubeadm reset` leaves: functions used by the
# steps that made the node (init, join) and by the one that gives the host back (claim).
# Needs firewalld.sh before it. Each looks first and acts on what is there, so it can be cut off and run again.

readonly HASHSIZE=/sys/module/nf_conntrack/parameters/hashsize

# Nothing here may hang on a cluster that is gone, nor fail on what is gone already.
reset_node() {
  if [[ ! -e $HOME_DIR/node.started ]]; then
    say "no node of ours is here"
    return
  fi
  if [[ -e /etc/kubernetes/kubelet.conf || -e /etc/kubernetes/manifests || -e /var/lib/kubelet/config.yaml ]]; then
    reset_kubeadm
  fi
  systemctl stop kubelet 2>/dev/null || :
  remove_pods
  remove_mounts /var/lib/kubelet
  systemctl stop kubepods.slice 2>/dev/null || :
  clear_ipvs
  clear_iptables
  clear_ipsets
  clear_links
  clear_folders
  rm -f "$HOME_DIR/node.started" "$HOME_DIR/node.done" "$HOME_DIR/kubeadm.yaml"
  say "the node is taken apart"
}

reset_kubeadm() {
  have kubeadm || return 0
  unit_active containerd || systemctl start containerd || :
  say "kubeadm reset"
  # The etcd member is removed with the folder: on the only control plane there is nobody to
  # tell, and asking a dead API server would take minutes.
  timeout 300 kubeadm reset --force --cleanup-tmp-dir --skip-phases=remove-etcd-member \
    >"$HOME_DIR/reset.log" 2>&1 9>&- || say "kubeadm reset ended early (its log: $HOME_DIR/reset.log); going on by hand"
}

remove_pods() {
  unit_active containerd && have ctr || return 0
  local tasks containers task
  # Only Kubernetes' own namespace: other containers on the host are none of ours. All by one program,
  # which takes seconds to start on an emulated host; what it couldn't end is ended one by one.
  mapfile -t tasks < <(ctr -n k8s.io tasks ls -q)
  if ((${#tasks[@]})); then
    timeout 120 ctr -n k8s.io tasks delete --force "${tasks[@]}" >/dev/null 2>&1 || :
    while read -r task; do
      [[ -n $task ]] || continue
      timeout 60 ctr -n k8s.io tasks kill --signal SIGKILL --all "$task" >/dev/null 2>&1 || :
      timeout 60 ctr -n k8s.io tasks delete --force "$task" >/dev/null 2>&1 || :
    done < <(ctr -n k8s.io tasks ls -q)
  fi
  mapfile -t containers < <(ctr -n k8s.io containers ls -q)
  if ((${#containers[@]})); then
    timeout 120 ctr -n k8s.io containers delete "${containers[@]}" >/dev/null 2>&1 || :
  fi
}

remove_mounts() {
  local mount
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" || :
  done < <(awk -v root="$1/" 'index($2, root) == 1 {print $2}' /proc/mounts | sort -r)
}

# Virtual servers that were there before us stay.
clear_ipvs() {
  [[ -r /proc/net/ip_vs ]] && have ipvsadm || return 0
  if [[ ! -s $RECORD/ipvs ]]; then
    ipvsadm --clear
    return
  fi
  local kind address
  while read -r _ kind address _; do
    if ! ipvs_recorded "$kind" "$address"; then ipvsadm --delete-service "$kind" "$address"; fi
  done < <(ipvsadm -Sn | grep '^-A')
}

# The record holds the kernel's own form: TCP C0A8A665:7562.
ipvs_recorded() {
  local protocol=TCP ip port a b c d
  [[ $1 != -u ]] || protocol=UDP
  ip=${2%:*} port=${2##*:}
  IFS=. read -r a b c d <<<"$ip"
  grep -qiF "$(printf '%s  %02X%02X%02X%02X:%04X ' "$protocol" "$a" "$b" "$c" "$d" "$port")" "$RECORD/ipvs"
}

# Rewrites each table without Kubernetes' chains and the rules that lead to them, in one step
# per table; the user's own rules and counters are put back as they were.
clear_iptables() {
  local command suffix family table rules
  for command in iptables ip6tables; do
    family=ip
    [[ $command == iptables ]] || family=ip6
    for suffix in -nft -legacy; do
      have "$command$suffix-save" || continue
      # Asking legacy iptables would load its modules.
      [[ $suffix == -nft || -s /proc/net/${command/tables/_tables}_names ]] || continue
      rules=$("$command$suffix-save" -c 2>/dev/null) || continue
      if grep -qE "$KUBE_RULES" <<<"$rules"; then
        grep -vE "$KUBE_RULES" <<<"$rules" | "$command$suffix-restore" -c ||
          fail "the rules of $command$suffix can't be written back without Kubernetes' own" "look at $command$suffix-save on $HOST"
      fi
    done
    have nft || continue
    for table in filter nat mangle raw; do
      grep -qx "table $family $table" "$RECORD/nft-tables" && continue
      # iptables made the table for Kubernetes' rules; with no rule left it goes.
      if rules=$(nft -a list table "$family" "$table" 2>/dev/null) && ! grep -qv '{ # handle' < <(grep '# handle' <<<"$rules"); then
        nft delete table "$family" "$table"
      fi
    done
    for table in kube-proxy flannel-ipv4 flannel-ipv6; do
      if nft list table "$family" "$table" >/dev/null 2>&1; then nft delete table "$family" "$table"; fi
    done
  done
}
readonly KUBE_RULES='KUBE-|FLANNEL-|CNI-'

clear_ipsets() {
  have ipset || return 0
  local name
  # Sets of sets first refuse, so twice.
  for _ in 1 2; do
    while read -r name; do
      ipset destroy "$name" 2>/dev/null || :
    done < <(ipset list -n | grep '^KUBE-' || :)
  done
}

clear_links() {
  local link
  for link in kube-ipvs0 flannel.1 flannel-v6.1 cni0 nodelocaldns; do
    if [[ -e /sys/class/net/$link ]] && ! grep -qx "$link" "$RECORD/links"; then ip link delete "$link"; fi
  done
  for link in /run/netns/cni-*; do
    [[ -e $link ]] || continue
    umount "$link" 2>/dev/null || :
    rm -f "$link"
  done
}

# Only folders that weren't there before the claim.
clear_folders() {
  local path
  # The folder stays as long as containerd does, which watches this one: in another of the same name it never
  # sees the network of the node that is made next.
  if grep -qx /etc/cni "$RECORD/absent"; then
    [[ ! -d /etc/cni/net.d ]] || find /etc/cni/net.d -mindepth 1 -delete
  else
    say "/etc/cni was here before: only our file in it is removed"
    rm -f /etc/cni/net.d/10-flannel.conflist
  fi
  for path in /var/lib/cni /run/flannel /var/lib/kubelet /var/lib/etcd /etc/kubernetes; do
    if grep -qx "$path" "$RECORD/absent"; then
      rm -rf --one-file-system "$path"
    else
      say "$path was here before: what kubeadm has left in it stays"
    fi
  done
  rm -rf /opt/cni/bin/flannel /var/log/pods/kube-* /var/log/containers/kube-*
}

give_back_firewall() {
  local unit enabled active rule
  if unit_active firewalld; then
    firewalld_take_back
    firewalld_forget_zones
  fi
  while read -r rule; do
    # shellcheck disable=SC2086 # the rule's words
    ufw --force delete $rule >/dev/null
  done < <(noted ufw)
  while read -r unit enabled active; do
    case $unit in firewalld | ufw) ;; *) continue ;; esac
    if [[ $enabled == enabled ]] && ! systemctl is-enabled --quiet "$unit"; then systemctl enable --quiet "$unit"; fi
    if [[ $active == active ]] && ! unit_active "$unit"; then systemctl start "$unit"; fi
  done <"$RECORD/units"
}

give_back_runtime() {
  grep -q '^containerd|' "$RECORD/packages" || [[ $(recorded_active containerd) == active ]] || return 0
  if unit_active containerd && have ctr; then
    local image
    while read -r image; do
      grep -qxF "$image" "$RECORD/image-list" || ctr -n k8s.io images rm "$image" >/dev/null
    done < <(ctr -n k8s.io images ls -q)
  fi
  restore_file /etc/containerd/config.toml
  restore_file /etc/containerd/certs.d
  restore_file /etc/crictl.yaml
  if [[ $(recorded_active containerd) == active ]]; then systemctl restart containerd; else systemctl stop containerd; fi
  if [[ $(recorded_enabled containerd) == disabled ]]; then systemctl disable --quiet containerd; fi
}

recorded_enabled() { awk -v unit="$1" '$1 == unit {print $2}' "$RECORD/units"; }
recorded_active() { awk -v unit="$1" '$1 == unit {print $NF}' "$RECORD/units"; }

# restore_file PATH: as the record has it, or gone where there was none.
restore_file() {
  if grep -qx "$1" "$RECORD/absent"; then
    rm -rf "$1"
  else
    tar --numeric-owner -xpf "$RECORD/files.tar" -C / "${1#/}"
  fi
}

give_back_packages() {
  if [[ $(family) == deb ]]; then
    give_back_debs
  else
    give_back_rpms
  fi
}

give_back_debs() {
  local package plan remove=()
  if [[ $(recorded_enabled kubelet) != enabled ]]; then systemctl disable --quiet kubelet 2>/dev/null || :; fi
  for package in kubelet kubeadm kubectl; do
    grep -qx "$package" "$RECORD/holds" || apt-mark unhold "$package" >/dev/null 2>&1 || :
  done
  while read -r package; do
    if [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ??* ]]; then remove+=("$package"); fi
  done < <(noted packages-added)
  if ((${#remove[@]})); then
    if [[ -n $(ls -A /var/lib/dpkg/updates) ]] || [[ -n $(dpkg --audit) ]]; then dpkg --configure -a; fi
    plan=$(apt-get purge -s -y "${remove[@]}" | awk '/^(Remv|Purg) / {print $2}')
    while read -r package; do
      [[ -n $package ]] || continue
      if ! grep -qx "$package" < <(noted packages-added); then
        fail "$package, which is not ours, needs a package that we installed" "remove $package on $HOST, or mark what it needs: apt-mark manual; then run again"
      fi
    done <<<"$plan"
    say "removing ${#remove[@]} packages that were not here before"
    apt-get purge -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${remove[@]}" >"$HOME_DIR/packages.log" 2>&1 || {
      tail -n 15 "$HOME_DIR/packages.log" >&2
      fail "apt couldn't remove the packages" "the lines above say why"
    }
  fi
  rm -f /etc/apt/sources.list.d/kubeadm-ipvs.sources /etc/apt/keyrings/kubeadm-ipvs.asc
  find /var/lib/apt/lists -name '*kubernetes*' -newer "$RECORD/packages" -delete
}

give_back_rpms() {
  local package unit key needed remove=()
  while read -r package; do
    if rpm -q --quiet "$package"; then remove+=("$package"); fi
  done < <(noted packages-added)
  if ((${#remove[@]})); then
    # dnf would take along whatever needs them.
    needed=$(rpm --erase --test "${remove[@]}" 2>&1) || {
      grep 'is needed by' <<<"$needed" >&2 || :
      fail "a package that is not ours needs one that we installed" "remove it on $HOST, then run again"
    }
    # A package's own script may do it, or not.
    for unit in kubelet containerd; do
      [[ $(recorded_enabled "$unit") == enabled ]] || systemctl disable --quiet --now "$unit" 2>/dev/null || :
    done
    say "removing ${#remove[@]} packages that were not here before"
    dnf remove -y --setopt=clean_requirements_on_remove=False "${remove[@]}" >"$HOME_DIR/packages.log" 2>&1 || {
      tail -n 15 "$HOME_DIR/packages.log" >&2
      fail "dnf couldn't remove the packages" "the lines above say why"
    }
  fi
  while read -r key; do
    if rpm -q --quiet "$key"; then rpm --erase "$key"; fi
  done < <(noted keys-added)
  rm -f /etc/yum.repos.d/kubeadm-ipvs.repo /etc/pki/rpm-gpg/kubeadm-ipvs.asc
  rm -rf /var/cache/dnf/kubeadm-ipvs{-*,.solv,-filenames.solvx} /var/cache/libdnf5/kubeadm-ipvs-*
}

give_back_kernel() {
  local name value swap priority units
  rm -f /etc/modules-load.d/kubeadm-ipvs.conf /etc/sysctl.d/99-kubeadm-ipvs.conf /etc/tmpfiles.d/kubeadm-ipvs.conf
  while read -r name value; do
    [[ ! -e /proc/sys/$(tr . / <<<"$name") ]] || echo "$value" >"/proc/sys/$(tr . / <<<"$name")"
  done < <(noted sysctls)
  if [[ -s $RECORD/hashsize && -w $HASHSIZE ]]; then cat "$RECORD/hashsize" >"$HASHSIZE"; fi
  mapfile -t units < <(noted masked)
  ((${#units[@]} == 0)) || systemctl unmask --quiet "${units[@]}"
  while read -r swap _ priority; do
    if ! grep -qx "$swap" < <(awk 'NR > 1 {print $1}' /proc/swaps); then
      # A negative priority is the kernel's own choice and can't be asked for.
      if ((priority < 0)); then swapon "$swap"; else swapon --priority "$priority" "$swap"; fi
    fi
  done <"$RECORD/swaps"
  unload_modules
  if [[ -s $RECORD/selinux ]]; then
    [[ $(cat /sys/fs/selinux/enforce) == "$(cat "$RECORD/selinux")" ]] || setenforce "$(cat "$RECORD/selinux")"
    restore_file /etc/selinux/config
  fi
}

# Modules that came since, of the kinds that containers and Kubernetes load; several rounds,
# since some hold others. One in use stays: the kernel refuses.
unload_modules() {
  local kinds='^(ip_vs.*|ip_set.*|ipset|xt_.*|ipt_.*|ip6t_.*|nf_.*|nft_.*|nfnetlink.*|ip_tables|ip6_tables|iptable_.*|ip6table_.*|x_tables|br_netfilter|bridge|stp|llc|veth|vxlan|ip6_udp_tunnel|udp_tunnel|dummy|overlay)$'
  local before=-1 module
  while [[ $(wc -l </proc/modules) != "$before" ]]; do
    before=$(wc -l </proc/modules)
    while read -r module; do
      modprobe -r "$module" 2>/dev/null || :
    done < <(comm -13 "$RECORD/modules" <(cut -d' ' -f1 /proc/modules | sort) | grep -E "$kinds" || :)
  done
}

# remove_unfinished_files FOLDER: what runs that were killed in the middle of put_file have left.
remove_unfinished_files() { find "$1" -xdev -type f -name '.kubeadm-ipvs.*' -delete; }

give_back_files() {
  local path
  remove_unfinished_files /etc
  restore_file_if_recorded /etc/default/kubelet
  restore_file_if_recorded /etc/sysconfig/kubelet
  for path in /etc/containerd /etc/crictl.yaml /opt/cni /etc/cni /var/lib/kubelet /var/lib/etcd /var/lib/cni \
    /etc/kubernetes /var/lib/containerd /opt/containerd /usr/libexec/kubernetes; do
    if [[ -e $path ]] && grep -qx "$path" "$RECORD/absent"; then rm -rf --one-file-system "$path"; fi
  done
  # The API server's pod makes these where they are missing; one that holds something is in use.
  for path in /etc/ssl/certs /etc/ssl /etc/pki /etc/ca-certificates /usr/share/ca-certificates /usr/local/share/ca-certificates; do
    if grep -qx "$path" "$RECORD/absent"; then rmdir "$path" 2>/dev/null || :; fi
  done
  # Folders that a package took along with its files.
  tar --numeric-owner --skip-old-files -xpf "$RECORD/files.tar" -C / -T "$RECORD/copied"
  systemctl daemon-reload
  systemctl reset-failed kubelet 2>/dev/null || :
}

# Whether the record's copies hold a file.
recorded_file() { grep -qx "${1#/}" < <(tar -tf "$RECORD/files.tar"); }

restore_file_if_recorded() {
  if grep -qx "$1" "$RECORD/present"; then restore_file "$1"; fi
}
