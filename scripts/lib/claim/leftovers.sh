# shellcheck shell=bash
# Leftovers of a previous cluster: what `kubeadm reset` leaves in the kernel and in the pod network's folders, where the
# new node would trip over it. Data, certificates and containers are never leftovers; other checks refuse those
# (docs/decisions/0030-leftovers-of-a-previous-cluster.md).
# Values: REMOVE_LEFTOVERS (true or empty), POD_NETWORK, NETWORKS.

source lib/step.sh
source lib/ipvs.sh
source lib/pod_network.sh
source lib/reset/files.sh
source lib/reset/netfilter.sh

# Adds each leftover to `problems`, or to `leftovers` if it may be removed. Adds to `advice` how to allow that.
check_leftovers() {
  [[ ! -d $RECORD ]] || return 0
  local found line
  found=$(find_leftovers)
  while IFS= read -r line; do
    if [[ -z $line ]]; then
      continue
    elif [[ $REMOVE_LEFTOVERS == true ]]; then
      leftovers+=("$line")
    else
      problems+=("leftover of a previous cluster: $line")
      # shellcheck disable=SC2034 # claim.sh prints it
      advice=", or have the previous cluster's leftovers removed with preflight.removeLeftovers: true"
    fi
  done <<<"$found"
  # This program doesn't know how to remove those.
  while IFS= read -r line; do
    problems+=("leftover of another pod network: $line (reboot the host)")
  done < <(find_other_networks)
  ((${#leftovers[@]} == 0)) || check_bridges
}

# Removes what check_leftovers found. After an interruption, the next run finds the rest.
remove_leftovers() {
  ((${#leftovers[@]})) || return 0
  local leftover path left
  for leftover in "${leftovers[@]}"; do say "removing a leftover of a previous cluster: ${leftover% (*}"; done
  remove_ipvs_services
  remove_iptables_rules
  remove_ipsets
  remove_links
  remove_network_files
  while IFS= read -r path; do rm -rf "$ROOT$path"; done < <(pod_network folder)
  left=$(find_leftovers)
  [[ -z $left ]] || fail "a leftover of a previous cluster can't be removed: $(head -n 1 <<<"$left")" \
    "stop the program that restores it, or reboot $HOST; then run the same command again"
}

# Prints a line `LEFTOVER (COMMAND)` for each. Loads no kernel modules: a kernel without them has no such leftovers.
find_leftovers() {
  local link address command names path prefixes
  for link in $(cluster_links); do
    [[ -e $ROOT/sys/class/net/$link ]] || continue
    address=$(ip -4 -o address show dev "$link" | awk 'NR == 1 {print " with " $4}')
    echo "network interface $link$address (ip link delete $link)"
  done
  names=$(virtual_servers cluster | awk '{print $2 "/" tolower($1)}' | few)
  [[ -z $names ]] || echo "IPVS virtual servers $names (ipvsadm --delete-service)"
  prefixes="KUBE|$(pod_network chain | paste -sd '|')"
  for command in $(iptables_variants); do
    names=$(iptables_chains "$command" "$prefixes" | few)
    [[ -z $names ]] || echo "chains $names in $command ($command-save | grep -vE '($prefixes)-' | $command-restore)"
  done
  if have nft && module_loaded nf_tables; then
    while read -r names; do
      echo "nftables $names (nft delete $names)"
    done < <(nft list tables | grep -xE "table ip6? ($(cluster_tables | paste -sd '|'))" || :)
  fi
  if have ipset && module_loaded ip_set; then
    names=$(cluster_sets | few)
    [[ -z $names ]] || echo "IP sets $names (ipset destroy NAME)"
  fi
  while IFS= read -r path; do
    if compgen -G "$ROOT$path" >/dev/null; then echo "$path (rm -r $path)"; fi
  done < <(network_files; pod_network folder)
}

# iptables_chains COMMAND PREFIXES: the chains with one of the prefixes, which are separated by `|`.
iptables_chains() { "$1-save" 2>/dev/null | sed -nE "s/^:(($2)-[^ ]*) .*/\1/p"; }

# few: joins lines, the first three of them.
few() {
  awk 'NR <= 3 {text = text (NR > 1 ? ", " : "") $0}
    END {if (NR) print text (NR > 3 ? " and " NR - 3 " more" : "")}'
}

# Interfaces and chains of pod networks that other installers use.
find_other_networks() {
  local link command names
  for link in "$ROOT"/sys/class/net/*; do
    link=${link##*/}
    case $link in
      cali[0-9a-f]* | vxlan.calico | cilium_* | weave | kube-bridge | antrea-gw0) echo "network interface $link" ;;
    esac
  done
  for command in $(iptables_variants); do
    names=$(iptables_chains "$command" 'cali|CILIUM|OLD_CILIUM|WEAVE' | few)
    [[ -z $names ]] || echo "chains $names in $command"
  done
}

# Removing a bridge would cut off the containers that still use it. Those of dead pods have no process left.
check_bridges() {
  local link interfaces unused
  unused=$(unused_namespaces | wc -l)
  for link in $(cluster_links); do
    interfaces=("$ROOT/sys/class/net/$link/brif"/*)
    if [[ -e ${interfaces[0]} ]] && ((${#interfaces[@]} > unused)); then
      problems+=("leftover of a previous cluster: $link connects $((${#interfaces[@]} - unused)) container(s) that may \
be running; stop them")
    fi
  done
}
