# shellcheck shell=bash
# kubectl with the administrator's credentials, on the control plane.
# Values: NODE.

source lib/step.sh

export KUBECONFIG=$ROOT/etc/kubernetes/admin.conf

# kube ARGUMENT...: kubectl, retried for up to two minutes while there is no connection. A busy API server may need
# longer than kubectl's 10 s for a TLS handshake.
kube() {
  local deadline=$((SECONDS + ${NO_CONNECTION_SECONDS:-120})) status output
  while :; do
    status=0
    { output=$(kubectl "$@" 2>&1 >&7 7>&-) || status=$?; } 7>&1
    [[ -z $output ]] || printf '%s\n' "$output" >&2
    ((status)) || return 0
    if ((SECONDS >= deadline)) || [[ ! $output =~ $NO_CONNECTION ]]; then return "$status"; fi
    pause 2
  done
}
readonly NO_CONNECTION='TLS handshake timeout|was refused|connection refused|i/o timeout|unexpected EOF|Client\.Timeout'

# Whether the cluster has the node; false without a cluster. Fails if the API server doesn't respond, because the node
# may exist.
node_exists() {
  local found
  [[ -e $KUBECONFIG ]] || return 1
  found=$(kube --request-timeout=30s get node "$NODE" --ignore-not-found -o name) ||
    fail "can't ask the API server whether the node $NODE exists" \
      "check journalctl -u kubelet on $HOST, then run the same command again"
  [[ -n $found ]]
}
