# shellcheck shell=bash
# kubeadm init on the first control plane. Needs node.sh before it.
# Values: CONFIG (kubeadm's documents), PATCHES (of static pods: lines `file<tab>JSON`).

readonly ADMIN=/etc/kubernetes/admin.conf

create() {
  if ! begin_node; then
    converge
    return
  fi
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
  put_patches
  run_kubeadm 1 init --skip-token-print --skip-phases=show-join-command
  wait_for 300 "the API server" api_ready || fail "the API server isn't ready after kubeadm init" "look at $HOME_DIR/kubeadm.log and crictl ps -a on $HOST"
  # Everything comes next at once: joins, whose requests kubeadm gives up after 10 s, and the
  # provider, which asks for the whole schema. That is made at the first request, for which a
  # slow host needs longer than that: asked for here, it is there when they come.
  wait_for 600 "the API server's schema" schema_made || fail "the API server doesn't hand out its schema" "look at crictl ps -a on $HOST"
  mark node.done
  say "the control plane is up"
}

put_patches() {
  local file text
  while IFS=$'\t' read -r file text; do
    [[ -z $file ]] || printf '%s\n' "$text" | put_file "$HOME_DIR/patches/$file" 0600 || :
  done <<<"$PATCHES"
}

api_ready() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s get --raw /readyz; }

schema_made() { kubectl --kubeconfig "$ADMIN" --request-timeout=300s get --raw /openapi/v2; }

# A finished control plane: what may change in place does, and only where it differs.
converge() {
  wait_for 300 "the API server" api_ready || fail "the API server doesn't answer" "look at crictl ps -a and journalctl -u kubelet on $HOST"
  if ! printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.new.yaml" 0600 || cmp -s "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml"; then
    rm -f "$HOME_DIR/kubeadm.new.yaml"
    say "the control plane is up and its settings are unchanged"
    return
  fi
  say "settings changed: uploading them and kube-proxy's"
  kubeadm init phase upload-config all --config "$HOME_DIR/kubeadm.new.yaml" >"$HOME_DIR/kubeadm.log" 2>&1 9>&- ||
    fail "the changed settings can't be uploaded" "$(tail -n 3 "$HOME_DIR/kubeadm.log")"
  kubeadm init phase addon kube-proxy --config "$HOME_DIR/kubeadm.new.yaml" >>"$HOME_DIR/kubeadm.log" 2>&1 9>&- ||
    fail "kube-proxy's settings can't be applied" "$(tail -n 3 "$HOME_DIR/kubeadm.log")"
  # kube-proxy doesn't read a changed ConfigMap: it is restarted, one node after the other.
  kubectl --kubeconfig "$ADMIN" -n kube-system rollout restart daemonset/kube-proxy >/dev/null
  kubectl --kubeconfig "$ADMIN" -n kube-system rollout status daemonset/kube-proxy --timeout=600s >&2
  mv -f "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml"
}
