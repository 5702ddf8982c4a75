# shellcheck shell=bash
# The cluster's administrator on the control plane: functions used by the steps that deal with a node as the
# cluster sees it (member, registration).
# Values: NODE.

source lib/step.sh

export KUBECONFIG=/etc/kubernetes/admin.conf

# kube ARGUMENT...: kubectl, asked again for up to two minutes while there is no connection. A busy API
# server takes longer than the ten seconds that a TLS handshake gets, and that fails no step by itself.
kube() {
  local deadline=$((SECONDS + ${NO_CONNECTION_SECONDS:-120})) status said
  while :; do
    status=0
    { said=$(kubectl "$@" 2>&1 >&7 7>&-) || status=$?; } 7>&1
    [[ -z $said ]] || printf '%s\n' "$said" >&2
    ((status)) || return 0
    if ((SECONDS >= deadline)) || [[ ! $said =~ $NO_CONNECTION ]]; then return "$status"; fi
    pause 2
  done
}
readonly NO_CONNECTION='TLS handshake timeout|was refused|connection refused|i/o timeout|unexpected EOF|Client\.Timeout'

# Whether the cluster lists the node. Where no cluster is any more it doesn't; an API server that says nothing
# is a failure, since the node might be there.
listed() {
  local there
  [[ -e $KUBECONFIG ]] || return 1
  there=$(kube --request-timeout=30s get node "$NODE" --ignore-not-found -o name) ||
    fail "the API server doesn't say whether $NODE is a node" "look at journalctl -u kubelet on $HOST, then run again"
  [[ -n $there ]]
}
