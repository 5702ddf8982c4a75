# shellcheck shell=bash
# Removes what Kubernetes, kube-proxy, the pod network and CNI add to the kernel's network: virtual servers, rules,
# sets, links.

source lib/step.sh
source lib/ipvs.sh
source lib/pod_network.sh

remove_ipvs_services() {
  have ipvsadm || return 0
  local servers protocol server
  servers=$(virtual_servers cluster)
  while read -r protocol server; do
    [[ -z $server ]] || ipvsadm --delete-service "--${protocol,,}-service" "$server"
  done <<<"$servers"
}

# usable MODULE: whether tools that load the module may run. The claim removes leftovers before it has recorded which
# modules are loaded.
usable() { [[ -d $RECORD ]] || module_loaded "$1"; }

# The variants of iptables that may have rules. Running the legacy one would load its modules.
iptables_variants() {
  local command suffix
  for command in iptables ip6tables; do
    for suffix in -nft -legacy; do
      have "$command$suffix-save" || continue
      if [[ $suffix == -nft ]]; then
        usable nf_tables || continue
      elif [[ ! -s $ROOT/proc/net/${command/tables/_tables}_names ]]; then
        continue
      fi
      echo "$command$suffix"
    done
  done
}

# Rewrites each table without Kubernetes' rules, in one transaction per table. The user's rules keep their counters.
remove_iptables_rules() {
  local command family table rules others
  for command in $(iptables_variants); do
    rules=$("$command-save" -c 2>/dev/null) || continue
    others=$(without_kubernetes <<<"$rules")
    if [[ $others != "$rules" ]]; then
      "$command-restore" -c <<<"$others" ||
        fail "can't remove Kubernetes' rules from $command" "check $command-save on $HOST"
    fi
  done
  have nft && usable nf_tables || return 0
  for family in ip ip6; do
    for table in filter nat mangle raw; do
      # Without a record, an empty table may be the host's own.
      if [[ ! -d $RECORD ]] || grep -qx "table $family $table" < <(noted nft-tables); then continue; fi
      # iptables created the table for Kubernetes' rules. Delete it if no rule is left.
      if rules=$(nft -a list table "$family" "$table" 2>/dev/null) &&
        ! grep -qv '{ # handle' < <(grep '# handle' <<<"$rules"); then
        nft delete table "$family" "$table"
      fi
    done
    for table in $(cluster_tables); do
      if nft list table "$family" "$table" >/dev/null 2>&1; then nft delete table "$family" "$table"; fi
    done
  done
}

# Names of nftables' tables, interfaces and sets that only Kubernetes and the pod network create.
cluster_tables() { echo kube-proxy; pod_network table; }
cluster_links() { printf '%s\n' kube-ipvs0 nodelocaldns; pod_network link; }
cluster_sets() { ipset list -n | grep '^KUBE-' || :; }

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
  have ipset && usable ip_set || return 0
  local name
  # Twice: a set that is a member of another one can only be destroyed after it.
  for _ in 1 2; do
    while read -r name; do
      ipset destroy "$name" 2>/dev/null || :
    done < <(cluster_sets)
  done
}

remove_links() {
  local link namespace
  for link in $(cluster_links); do remove_link "$link"; done
  while read -r namespace; do
    umount "$namespace" 2>/dev/null || :
    rm -f "$namespace"
  done < <(unused_namespaces)
}

# The pods' network namespaces. Ours have no processes left. podman's have the same kind of name, but contain processes.
unused_namespaces() {
  local namespace
  for namespace in "$ROOT"/run/netns/cni-*; do
    if [[ -e $namespace ]] &&
      ! grep -qxF "net:[$(stat -c %i "$namespace")]" < <(readlink /proc/[0-9]*/ns/net || :); then
      echo "$namespace"
    fi
  done
}

# kube-ipvs0 is always kube-proxy's, even if an earlier version of this program recorded a previous cluster's.
remove_link() {
  [[ -e $ROOT/sys/class/net/$1 ]] || return 0
  if [[ $1 == kube-ipvs0 ]] || ! grep -qx "$1" < <(noted links); then ip link delete "$1"; fi
}
