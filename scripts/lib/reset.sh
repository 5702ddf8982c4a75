# shellcheck shell=bash
# Taking a node apart, and every leftover that `kubeadm reset` leaves: functions used by the
# steps that made the node (init, join) and by the one that gives the host back (claim).
# Each looks first and acts on what is there, so it can be cut off and run again.

source lib/step.sh
source lib/firewalld.sh

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
  # Of pods that containerd couldn't stop in time for kubeadm: these don't go with their processes.
  remove_mounts /run/containerd/io.containerd.grpc.v1.cri/sandboxes
  remove_mounts /run/containerd/io.containerd.runtime.v2.task/k8s.io
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
  # In the step's own process group: it ends with a step that is stopped, and isn't at work beside the next.
  # Where another runtime is too, it asks for one of them by name.
  timeout --foreground 300 kubeadm reset --force --cri-socket "$CONTAINERD" --cleanup-tmp-dir --skip-phases=remove-etcd-member \
    >"$HOME_DIR/reset.log" 2>&1 || say "kubeadm reset ended early (its log: $HOME_DIR/reset.log); going on by hand"
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

# Virtual servers that were there before us stay, and those that kube-proxy makes none of: by firewall mark, by IPv6.
clear_ipvs() {
  [[ -r /proc/net/ip_vs ]] && have ipvsadm || return 0
  local lines line kind
  mapfile -t lines < <(awk '/^(TCP|UDP|SCTP) +[0-9A-F]+:/' /proc/net/ip_vs)
  for line in "${lines[@]}"; do
    read -r kind line _ <<<"$line"
    grep -qE "^$kind +$line " "$RECORD/ipvs" || ipvsadm --delete-service "--${kind,,}-service" "$(address_of "$line")"
  done
}

# address_of C0A8A665:7562: the kernel's form of 192.168.166.101:30050.
address_of() {
  local ip=$((16#${1%:*}))
  echo "$((ip >> 24)).$((ip >> 16 & 255)).$((ip >> 8 & 255)).$((ip & 255)):$((16#${1#*:}))"
}

# Rewrites each table without Kubernetes' chains and the rules that lead to them, in one step
# per table; the user's own rules and counters are put back as they were.
clear_iptables() {
  local command suffix family table rules others
  for command in iptables ip6tables; do
    family=ip
    [[ $command == iptables ]] || family=ip6
    for suffix in -nft -legacy; do
      have "$command$suffix-save" || continue
      # Asking legacy iptables would load its modules.
      [[ $suffix == -nft || -s /proc/net/${command/tables/_tables}_names ]] || continue
      rules=$("$command$suffix-save" -c 2>/dev/null) || continue
      others=$(without_kubernetes <<<"$rules")
      if [[ $others != "$rules" ]]; then
        "$command$suffix-restore" -c <<<"$others" ||
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

# Of iptables-save's lines those that are neither in a chain of Kubernetes' or flannel's nor lead to one. CNI's
# chains for ports that pods publish are there for whoever uses CNI on this host (nerdctl, podman): of them only what
# has our network's name goes, and what nothing leads to any more.
without_kubernetes() {
  awk '
    { lines[NR] = $0 }
    / name: \\"cbr0\\"/ && target($0) ~ /^CNI-/ && target($0) !~ /^CNI-HOSTPORT-/ { pods[target($0)] }
    END {
      for (i = 1; i <= NR; i++) if (target(lines[i]) ~ /^CNI-DN-/ && !(target(lines[i]) in pods)) others = 1
      for (i = 1; i <= NR; i++) if (!ours(chain_of(lines[i])) && !ours(target(lines[i]))) print lines[i]
    }
    function ours(chain) {
      if (chain in pods) return 1
      return chain ~ /^(KUBE|FLANNEL)-/ || (!others && chain ~ /^CNI-HOSTPORT-/)
    }
    # `:CHAIN …`, and with its counters before it `-A CHAIN …`.
    function chain_of(line) {
      if (line ~ /^:/) return substr(line, 2, index(line, " ") - 2)
      return sub(/^(\[[0-9:]*\] )?-A /, "", line) ? substr(line, 1, index(line " ", " ") - 1) : "-"
    }
    function target(line) { return match(line, / -[jg] [^ ]+/) ? substr(line, RSTART + 4, RLENGTH - 4) : "-" }
  '
}

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
    # Ours has nobody in it any more; podman names its own likewise.
    if [[ ! -e $link ]] || grep -qxF "net:[$(stat -c %i "$link")]" < <(readlink /proc/[0-9]*/ns/net || :); then continue; fi
    umount "$link" 2>/dev/null || :
    rm -f "$link"
  done
}

# Only folders that weren't there before the claim, and of those that others use only what flannel's network has there.
clear_folders() {
  local path
  # /etc/cni/net.d stays as long as containerd does, which watches this one: in another of the same name it never
  # sees the network of the node that is made next.
  rm -f /etc/cni/net.d/10-flannel.conflist
  rm -rf /var/lib/cni/flannel /var/lib/cni/networks/cbr0 /var/lib/cni/results/{cbr0,cni-loopback}-*
  remove_empty /var/lib/cni
  # What kubeadm's reset takes away, for one that has ended early: the claim has seen that none of it was here.
  rm -rf /etc/kubernetes/{manifests,pki}/* /var/lib/kubelet/pki /var/lib/kubelet/{{config,instance-config}.yaml,kubeadm-flags.env} \
    /etc/kubernetes/{admin,super-admin,bootstrap-kubelet,kubelet,controller-manager,scheduler}.conf
  for path in /run/flannel /var/lib/kubelet /var/lib/etcd /etc/kubernetes; do
    if grep -qx "$path" "$RECORD/absent"; then
      rm -rf --one-file-system "$path"
    else
      say "$path was here before, and stays"
      # Its reset leaves the only member's data; the claim has seen that there were none.
      [[ $path != */etcd ]] || rm -rf "$path/member"
    fi
  done
  rm -rf /opt/cni/bin/flannel /var/log/pods/kube-* /var/log/containers/kube-*
}

# remove_empty FOLDER: where it wasn't there before. What holds something that is none of ours stays.
remove_empty() {
  if [[ -d $1 ]] && grep -qx "$1" "$RECORD/absent"; then find "$1" -depth -type d -empty -delete; fi
}

give_back_firewall() {
  # First: only one that runs forgets its rules in force.
  start_stopped_firewalls
  firewalld_take_back
  firewalld_forget_zones
  give_back_ufw
}

# ufw's own words: `delete` comes after `route`. A rule that is gone already is a warning, not an error.
give_back_ufw() {
  local rule
  have ufw || return 0
  while read -r rule; do
    # shellcheck disable=SC2086 # the rule's words
    case $rule in
      'route '*) ufw --force route delete ${rule#route } >/dev/null ;;
      *) ufw --force delete $rule >/dev/null ;;
    esac
  done < <(noted ufw)
}

give_back_runtime() {
  recorded_unit containerd || return 0
  if unit_active containerd && have ctr; then give_back_images; fi
  # Restoring puts files back, and takes none away.
  remove_mirrors /etc/containerd/certs.d ""
  restore_file /etc/containerd/config.toml
  restore_file /etc/containerd/certs.d
  restore_file /etc/crictl.yaml
  if [[ $(recorded_active containerd) == active ]]; then systemctl restart containerd; else systemctl stop containerd; fi
  if [[ $(recorded_enabled containerd) == disabled ]]; then systemctl disable --quiet containerd; fi
}

# What pods have left in a containerd that stays.
give_back_images() {
  local images
  mapfile -t images < <(ctr -n k8s.io images ls -q | grep -vxFf "$RECORD/image-list" || :)
  # `--sync` waits until the layers have gone as well: only an empty namespace can be removed.
  ((${#images[@]} == 0)) || ctr -n k8s.io images rm --sync "${images[@]}" >/dev/null
  # A record of an earlier program doesn't tell.
  if [[ -e $RECORD/containerd-namespaces ]] && ! grep -qx k8s.io "$RECORD/containerd-namespaces" &&
    grep -qx k8s.io < <(ctr namespaces ls -q); then
    ctr namespaces rm k8s.io >/dev/null || say "containerd's namespace k8s.io stays: ctr says above what it holds"
  fi
}

# recorded_unit UNIT: it was there, by whichever package or none, running or not.
recorded_unit() { awk -v unit="$1" '$1 == unit && NF == 3 && $2 != "not-found" {found = 1} END {exit !found}' "$RECORD/units"; }
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

# choose_packages: into `remove` those of the packages that came with us that go. Fails where somebody else's needs
# one, so before anything is taken apart.
choose_packages() {
  if [[ $(family) == deb ]]; then choose_debs; else choose_rpms; fi
}

choose_debs() {
  local package edited foreign=()
  remove=()
  while read -r package; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ??* ]] || continue
    edited=$(edited_conffiles "$package" | xargs)
    if [[ -n $edited ]]; then
      say "$package stays: somebody has edited its $edited since"
      foreign+=("$package")
    else
      remove+=("$package")
    fi
  done < <(noted packages-added)
  ((${#remove[@]} == 0)) || finish_dpkg
  spare_what_is_needed
}

give_back_packages() {
  if [[ $(family) == deb ]]; then give_back_debs; else give_back_rpms; fi
}

give_back_debs() {
  local package
  if [[ $(recorded_enabled kubelet) != enabled ]]; then systemctl disable --quiet kubelet 2>/dev/null || :; fi
  for package in kubelet kubeadm kubectl; do
    grep -qx "$package" "$RECORD/holds" || apt-mark unhold "$package" >/dev/null 2>&1 || :
  done
  if ((${#remove[@]})); then
    say "removing ${#remove[@]} packages that were not here before"
    apt-get purge -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${remove[@]}" >"$HOME_DIR/packages.log" 2>&1 || {
      tail -n 15 "$HOME_DIR/packages.log" >&2
      fail "apt couldn't remove the packages" "the lines above say why"
    }
  fi
  rm -f /etc/apt/sources.list.d/kubeadm-ipvs.sources /etc/apt/keyrings/kubeadm-ipvs.asc
  find /var/lib/apt/lists -name '*kubernetes*' -newer "$RECORD/packages" -delete
}

# Of `remove` what packages need that stay: those in `foreign`, and those that apt would take along since somebody has
# installed them later. What makes a host a node isn't left for them.
spare_what_is_needed() {
  local package needed taken before
  while ((${#remove[@]})); do
    before=${#remove[@]} taken=()
    while read -r package; do
      [[ -z $package || " ${remove[*]} " == *" $package "* ]] || taken+=("$package")
    done < <(apt-get purge -s -y --allow-change-held-packages "${remove[@]}" | awk '/^(Remv|Purg) / {print $2}')
    foreign+=("${taken[@]}")
    ((${#foreign[@]})) || return 0
    needed=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks \
      --no-replaces --no-enhances "${foreign[@]}" | sed -nE 's/^([a-z0-9][^ :]*)(:.*)?$/\1/p')
    for package in "${!remove[@]}"; do
      grep -qxF "${remove[package]}" <<<"$needed" || continue
      case ${remove[package]} in containerd* | runc | kube*)
        fail "${foreign[*]}: not ours, and in need of ${remove[package]}, which we installed" "remove it on $HOST, then run again; nothing was changed here" ;;
      esac
      say "${remove[package]} stays: ${foreign[*]} needs it"
      unset "remove[package]"
    done
    ((${#taken[@]} == 0 || ${#remove[@]} < before)) ||
      fail "apt would take along ${taken[*]}, which is not only ours" "remove it on $HOST, then run again; nothing was changed here"
    foreign=()
  done
}

# edited_conffiles PACKAGE: of a package that others use too; purging it would take along what somebody wrote there,
# a firewall in /etc/nftables.conf say. What is Kubernetes' own is ours. (RPM keeps such files by itself.)
edited_conffiles() {
  case $1 in containerd* | runc | kube* | cri-tools) return ;; esac
  local path sum
  while read -r path sum _; do
    if [[ -f $path && $sum != newconffile && $(md5sum <"$path") != "$sum "* ]]; then echo "$path"; fi
  done < <(dpkg-query -W -f '${Conffiles}\n' "$1")
}

choose_rpms() {
  local package needed
  remove=()
  while read -r package; do
    if rpm -q --quiet "$package"; then remove+=("$package"); fi
  done < <(noted packages-added)
  # dnf would take along whatever needs them.
  ((${#remove[@]} == 0)) || needed=$(rpm --erase --test "${remove[@]}" 2>&1) || {
    grep 'is needed by' <<<"$needed" >&2 || :
    fail "a package that is not ours needs one that we installed" "remove it on $HOST, then run again; nothing was changed here"
  }
}

give_back_rpms() {
  local unit key
  if ((${#remove[@]})); then
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
  local path value now units forwards=
  rm -f /etc/modules-load.d/kubeadm-ipvs.conf /etc/sysctl.d/99-kubeadm-ipvs.conf /etc/tmpfiles.d/kubeadm-ipvs.conf
  while read -r path value; do
    [[ -e $path ]] || continue
    now=$(<"$path")
    if [[ $now == "$value" || ($forwards && $path == */forwarding) ]]; then
      continue
    elif somebody_sets "$path" "$now"; then
      say "$path stays $now, as a file of the host's own has it by now"
      [[ $path != */ip_forward ]] || forwards=yes
    else
      echo "$value" >"$path"
    fi
  done < <(recorded_sysctls)
  if [[ -s $RECORD/hashsize && -w $HASHSIZE ]]; then cat "$RECORD/hashsize" >"$HASHSIZE"; fi
  mapfile -t units < <(noted masked)
  ((${#units[@]} == 0)) || systemctl unmask --quiet "${units[@]}"
  give_back_swap
  unload_modules
  if [[ -s $RECORD/selinux ]]; then
    [[ $(cat /sys/fs/selinux/enforce) == "$(cat "$RECORD/selinux")" ]] || setenforce "$(cat "$RECORD/selinux")"
    restore_file /etc/selinux/config
  fi
}

# somebody_sets PATH VALUE: one of sysctl's files does: a VPN or another runtime, say, that came after us.
somebody_sets() {
  awk -F= -v key="${1#/proc/sys/}" -v value="$2" '
    {gsub("[[:space:]]", ""); sub("^-", "", $1); gsub("[.]", "/", $1)}
    $1 == key {said = $2}
    END {exit said "" != value ""}' < <(sysctl_files)
}
sysctl_files() { cat /usr/lib/sysctl.d/*.conf /run/sysctl.d/*.conf /etc/sysctl.d/*.conf /etc/sysctl.conf 2>/dev/null || :; }

# Their files and values; first whether the host forwards, since a change of that sets others of them.
recorded_sysctls() {
  noted sysctls | awk '
    $1 !~ "/" {gsub("[.]", "/", $1)}
    $1 == "net/ipv4/ip_forward" {print "/proc/sys/" $0; next}
    {rest = rest "/proc/sys/" $0 "\n"}
    END {printf "%s", rest}'
}

# A swap that has gone meanwhile, or has another name now, is told, and holds nothing else up.
give_back_swap() {
  local unit folder swap priority options
  while read -r unit; do rm -f "/etc/systemd/system/$unit.d/"{,.kubeadm-ipvs.}kubeadm-ipvs.conf; done < <(noted held-units)
  while read -r folder; do [[ ! -d $folder ]] || rmdir --ignore-fail-on-non-empty "$folder"; done < <(noted held-folders)
  if [[ -n $(noted held-units) ]]; then systemctl daemon-reload; fi
  while read -r unit; do
    # It runs since the last boot, or it doesn't: only this starts what it does.
    if [[ $unit == *.service ]] && systemctl is-enabled --quiet "$unit"; then timeout 100 systemctl restart "$unit" || :; fi
  done < <(noted held-units)
  while read -r swap _ priority; do
    if swap_is_on "$swap"; then continue; fi
    # A negative priority is the kernel's own choice and can't be asked for.
    options=()
    ((priority < 0)) || options=(--priority "$priority")
    if swapon "${options[@]}" "$swap" 2>/dev/null; then continue; fi
    # A device in memory (zram) is filled anew by what its unit needs.
    timeout 100 systemctl start "$(systemd-escape --path --suffix=swap "$swap")" 2>/dev/null || :
    swap_is_on "$swap" || say "$swap, which was swapped to before, can't be any more: left as it is"
  done <"$RECORD/swaps"
}

swap_is_on() { grep -qx "$1" < <(awk 'NR > 1 {print $1}' /proc/swaps); }

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
  for path in /etc/cni /opt/cni /var/lib/cni; do
    remove_empty "$path"
    if [[ -d $path ]] && grep -qx "$path" "$RECORD/absent"; then say "$path stays: it holds what is none of ours"; fi
  done
  for path in /etc/containerd /etc/crictl.yaml /var/lib/kubelet /var/lib/etcd \
    /etc/kubernetes /var/lib/containerd /opt/containerd /usr/libexec/kubernetes; do
    # Somebody has put another containerd in the place of ours since.
    if [[ $path == *containerd* ]] && ! recorded_unit containerd && have containerd; then
      [[ ! -e $path ]] || say "$path stays: a containerd that is none of ours is here"
      continue
    fi
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
