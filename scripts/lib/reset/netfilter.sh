# shellcheck shell=bash
# Removes what Kubernetes, kube-proxy, the pod network and CNI add to the kernel's network: virtual servers, rules,
# sets, links.

source lib/step.sh
source lib/pod_network.sh

# Keeps virtual servers that the host had before, and those that kube-proxy never creates: by firewall mark or on IPv6.
remove_ipvs_services() {
  [[ -r $ROOT/proc/net/ip_vs ]] && have ipvsadm || return 0
  local lines line protocol
  mapfile -t lines < <(awk '/^(TCP|UDP|SCTP) +[0-9A-F]+:/' "$ROOT/proc/net/ip_vs")
  for line in "${lines[@]}"; do
    read -r protocol line _ <<<"$line"
    grep -qE "^$protocol +$line " "$RECORD/ipvs" ||
      ipvsadm --delete-service "--${protocol,,}-service" "$(decode_address "$line")"
  done
}

# decode_address C0A8A665:7562 prints 192.168.166.101:30050.
decode_address() {
  local ip=$((16#${1%:*}))
  echo "$((ip >> 24)).$((ip >> 16 & 255)).$((ip >> 8 & 255)).$((ip & 255)):$((16#${1#*:}))"
}

# Rewrites each table without Kubernetes' rules, in one transaction per table. The user's rules keep their counters.
remove_iptables_rules() {
  local command suffix family table rules others
  for command in iptables ip6tables; do
    family=ip
    [[ $command == iptables ]] || family=ip6
    for suffix in -nft -legacy; do
      have "$command$suffix-save" || continue
      # Running legacy iptables would load its modules.
      [[ $suffix == -nft || -s $ROOT/proc/net/${command/tables/_tables}_names ]] || continue
      rules=$("$command$suffix-save" -c 2>/dev/null) || continue
      others=$(without_kubernetes <<<"$rules")
      if [[ $others != "$rules" ]]; then
        "$command$suffix-restore" -c <<<"$others" ||
          fail "can't remove Kubernetes' rules from $command$suffix" "check $command$suffix-save on $HOST"
      fi
    done
    have nft || continue
    for table in filter nat mangle raw; do
      grep -qx "table $family $table" "$RECORD/nft-tables" && continue
      # iptables created the table for Kubernetes' rules. Delete it if no rule is left.
      if rules=$(nft -a list table "$family" "$table" 2>/dev/null) &&
        ! grep -qv '{ # handle' < <(grep '# handle' <<<"$rules"); then
        nft delete table "$family" "$table"
      fi
    done
    for table in kube-proxy $(pod_network table); do
      if nft list table "$family" "$table" >/dev/null 2>&1; then nft delete table "$family" "$table"; fi
    done
  done
}

# Filters iptables-save: drops Kubernetes' and the pod network's chains and the rules that jump to them. Other users of
# CNI (nerdctl, podman) share CNI's chains for published ports, so only our own network's are dropped, and the common
# ones only if no other network uses them.
without_kubernetes() {
  awk -v prefixes="$(pod_network chain | paste -sd '|')" -v network="$(pod_network cni-network)" '
    { lines[NR] = $0 }
    index($0, " name: \\\"" network "\\\"") && target($0) ~ /^CNI-/ && target($0) !~ /^CNI-HOSTPORT-/ {
      pods[target($0)]
    }
    END {
      for (i = 1; i <= NR; i++) if (target(lines[i]) ~ /^CNI-DN-/ && !(target(lines[i]) in pods)) others = 1
      for (i = 1; i <= NR; i++) if (!ours(chain_of(lines[i])) && !ours(target(lines[i]))) print lines[i]
    }
    function ours(chain) {
      if (chain in pods) return 1
      return chain ~ "^(KUBE|" prefixes ")-" || (!others && chain ~ /^CNI-HOSTPORT-/)
    }
    # `:CHAIN …` or `-A CHAIN …`, the latter with counters before it.
    function chain_of(line) {
      if (line ~ /^:/) return substr(line, 2, index(line, " ") - 2)
      return sub(/^(\[[0-9:]*\] )?-A /, "", line) ? substr(line, 1, index(line " ", " ") - 1) : "-"
    }
    function target(line) { return match(line, / -[jg] [^ ]+/) ? substr(line, RSTART + 4, RLENGTH - 4) : "-" }
  '
}

remove_ipsets() {
  have ipset || return 0
  local name
  # Twice: a set that is a member of another one can only be destroyed after it.
  for _ in 1 2; do
    while read -r name; do
      ipset destroy "$name" 2>/dev/null || :
    done < <(ipset list -n | grep '^KUBE-' || :)
  done
}

remove_links() {
  local link namespace
  for link in kube-ipvs0 nodelocaldns $(pod_network link); do remove_link "$link"; done
  for namespace in "$ROOT"/run/netns/cni-*; do
    # Ours have no processes left. podman's namespaces have the same kind of name, but contain processes.
    if [[ ! -e $namespace ]] ||
      grep -qxF "net:[$(stat -c %i "$namespace")]" < <(readlink /proc/[0-9]*/ns/net || :); then
      continue
    fi
    umount "$namespace" 2>/dev/null || :
    rm -f "$namespace"
  done
}

remove_link() {
  if [[ -e $ROOT/sys/class/net/$1 ]] && ! grep -qx "$1" "$RECORD/links"; then ip link delete "$1"; fi
}
