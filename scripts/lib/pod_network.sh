# shellcheck shell=bash
# The pod network's parts on a host.
# Value: POD_NETWORK (lines `kind value`; model/pod_network.py describes the kinds).

source lib/step.sh

# pod_network KIND: the values of a kind, one per line.
pod_network() { sed -n "s/^$1 //p" <<<"$POD_NETWORK"; }
