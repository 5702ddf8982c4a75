# shellcheck shell=bash
# kubeadm join on a worker.
# Values: CONFIG (kubeadm's JoinConfiguration, with the token of this join), KUBELET and PROXY (see kubeadm.sh).

source lib/kubeadm.sh

readonly NODE_CREDENTIALS=/etc/kubernetes/kubelet.conf

create() {
  # Only a worker's: what a control plane has lost with it, a new init doesn't bring back.
  if [[ -e $HOME_DIR/node.done && ! -e $NODE_CREDENTIALS ]]; then
    say "the node was taken apart by somebody else: it joins again"
    rm -f "$HOME_DIR/node.done"
  fi
  if ! begin_node; then
    converge_kubelet
    register_again
    say "joined already"
    return
  fi
  # The token is in this file for as long as kubeadm runs, however that ends.
  trap 'rm -f "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"' EXIT
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
  run_kubeadm 5 join
  remember_settings
  mark node.done
  say "joined"
}

# The node was deleted while nobody could reach this host, which never came to its reset: kubelet makes its
# node only when it starts. What else keeps the API server from answering, the node's own step (member) tells.
register_again() {
  local said
  said=$(kubectl --kubeconfig "$NODE_CREDENTIALS" --request-timeout=60s get node "$HOST" -o name 2>&1) && return
  [[ $said == *"(NotFound)"* ]] || return 0
  say "the cluster has no node $HOST any more: kubelet makes it again"
  systemctl restart kubelet
}
