# shellcheck shell=bash
# The cluster's networks, and which addresses they contain.
# Value: NETWORKS (lines `kind network`; the kinds are `pod`, `service`, and `exclude` for proxy.excludeCidrs). Steps
# without it read the file that the claim writes.

source lib/step.sh

readonly NETWORKS_FILE=$HOME_DIR/networks

# cluster_networks KIND...: the networks of these kinds, one per line.
cluster_networks() {
  local lines=${NETWORKS:-} kind
  if [[ -z $lines && -f $NETWORKS_FILE ]]; then lines=$(<"$NETWORKS_FILE"); fi
  for kind; do sed -n "s/^$kind //p" <<<"$lines"; done
}

# in_network ADDRESS NETWORK...: whether one of the networks contains the IPv4 address.
in_network() {
  local -a inner outer
  local network
  IFS=. read -ra inner <<<"$1"
  shift
  for network; do
    IFS=./ read -ra outer <<<"$network"
    if (((((inner[0] ^ outer[0]) << 24 | (inner[1] ^ outer[1]) << 16 | (inner[2] ^ outer[2]) << 8 |
      (inner[3] ^ outer[3])) >> (32 - outer[4])) == 0)); then
      return 0
    fi
  done
  return 1
}
