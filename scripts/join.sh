# shellcheck shell=bash
# kubeadm join on a worker. Needs node.sh before it.
# Value: CONFIG (kubeadm's JoinConfiguration, with the token of this join).

create() {
  if ! begin_node; then
    say "joined already"
    return
  fi
  # The token is in this file for as long as kubeadm runs, however that ends.
  trap 'rm -f "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"' EXIT
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
  run_kubeadm 5 join
  mark node.done
  say "joined"
}
