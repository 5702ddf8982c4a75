# shellcheck shell=bash
# kubeadm join on a worker. Needs node.sh before it.
# Values: CONFIG (kubeadm's JoinConfiguration, with the token of this join), KUBELET and PROXY (see node.sh).

create() {
  if ! begin_node; then
    converge_kubelet
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
