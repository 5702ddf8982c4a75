# shellcheck shell=bash
# kubeadm join on a worker.
# Values: CONFIG (kubeadm's JoinConfiguration, with this join's token), KUBELET and PROXY (see lib/kubeadm.sh).

source lib/kubeadm.sh

readonly NODE_CREDENTIALS=$ROOT/etc/kubernetes/kubelet.conf

create() {
  # Only workers can join again; a control plane that was reset has lost its data.
  if [[ -e $HOME_DIR/node.done && ! -e $NODE_CREDENTIALS ]]; then
    say "somebody has reset the node by hand; joining again"
    rm -f "$HOME_DIR/node.done"
  fi
  if ! begin_node; then
    converge_kubelet
    ensure_registered
    say "joined already"
    return
  fi
  # These files contain the token. They are removed when kubeadm ends, whatever the result.
  trap 'rm -f "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"' EXIT
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
  run_kubeadm 5 join
  store_settings
  mark node.done
  say "joined"
}

# If the Node object was deleted while this host was unreachable, restarts kubelet, which creates the object only when
# it starts. Other errors are left to the step `node`, which reports them.
ensure_registered() {
  local output
  output=$(kubectl --kubeconfig "$NODE_CREDENTIALS" --request-timeout=60s get node "$HOST" -o name 2>&1) && return
  [[ $output == *"(NotFound)"* ]] || return 0
  say "the cluster no longer has a node $HOST; restarting kubelet, which registers it"
  systemctl restart kubelet
}
