# shellcheck shell=bash
# A worker as the cluster sees it; runs on the control plane. `create` waits until the node is
# Ready and sets its labels; `delete` (only when the cluster stays) drains and removes it.
# Values: NODE, LABELS (lines key=value), READY_SECONDS, DRAIN_SECONDS.

locking() { false; }
export KUBECONFIG=/etc/kubernetes/admin.conf

create() {
  wait_for "$READY_SECONDS" "the node $NODE to be Ready" node_ready ||
    fail "the node $NODE isn't Ready after $READY_SECONDS s: $(kubectl get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}' 2>&1)" \
      "look at journalctl -u kubelet on $NODE"
  # Labels of ours that are no longer wanted are remembered in an annotation.
  local before label wanted=() gone=()
  before=$(kubectl get node "$NODE" -o jsonpath='{.metadata.annotations.kubeadm-ipvs/labels}')
  while read -r label; do [[ -z $label ]] || wanted+=("$label"); done <<<"$LABELS"
  for label in $before; do
    [[ " ${wanted[*]} " == *" $label="* ]] || gone+=("$label-")
  done
  if ((${#wanted[@]} + ${#gone[@]})); then
    kubectl label --overwrite node "$NODE" "${wanted[@]}" "${gone[@]}" >/dev/null
    kubectl annotate --overwrite node "$NODE" "kubeadm-ipvs/labels=${wanted[*]%%=*}" >/dev/null
  fi
  say "$NODE is Ready"
}

# One long look, that ends early only where the API server does.
node_ready() { kubectl wait --for=condition=Ready --timeout="${READY_SECONDS}s" "node/$NODE"; }

delete() {
  if [[ ! -e $KUBECONFIG ]] || ! kubectl --request-timeout=30s get node "$NODE" -o name >/dev/null; then
    say "$NODE is no node of the cluster any more"
    return
  fi
  say "draining $NODE (at most $DRAIN_SECONDS s)"
  kubectl drain "$NODE" --ignore-daemonsets --delete-emptydir-data --timeout="${DRAIN_SECONDS}s" >&2 || {
    kubectl uncordon "$NODE" >&2
    fail "$NODE can't be drained within $DRAIN_SECONDS s" "a disruption budget may forbid it: the lines above name the pods; the node is back in service"
  }
  kubectl delete node "$NODE" >&2
}
