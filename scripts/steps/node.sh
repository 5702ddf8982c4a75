# shellcheck shell=bash
# A node as the cluster sees it; runs on the control plane. `create` waits until the node is Ready
# and sets its labels and taints; `delete` (a worker's only, when the cluster stays) drains and
# removes it.
# Values: NODE, LABELS (lines key=value), TAINTS (lines key=value:Effect), READY_SECONDS, DRAIN_SECONDS.

source lib/kubectl.sh

locking() { false; }

create() {
  wait_for "$READY_SECONDS" "the node $NODE to be Ready" node_ready ||
    fail "the node $NODE isn't Ready after $READY_SECONDS s: $(kubectl get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}' 2>&1)" \
      "look at journalctl -u kubelet on $NODE"
  # All that is asked in one call: on a slow control plane each costs seconds.
  local found former_labels former_taints present
  found=$(kube get node "$NODE" \
    -o jsonpath='{.metadata.annotations.kubeadm-ipvs/labels}|{.metadata.annotations.kubeadm-ipvs/taints}|{range .spec.taints[*]}{.key}:{.effect} {end}{"\n"}')
  IFS='|' read -r former_labels former_taints present <<<"$found"
  set_ours label "$LABELS" "$former_labels" "$present"
  set_ours taint "$TAINTS" "$former_taints" "$present"
  say "$NODE is Ready"
}

# set_ours VERB LINES BEFORE PRESENT: labels or taints of ours as LINES say. Those that are no longer
# wanted are known by an annotation (BEFORE); others' are never touched.
set_ours() {
  local verb=$1 before=$3 present=$4 annotation=kubeadm-ipvs/${1}s line name names=() arguments=()
  while read -r line; do
    [[ -n $line ]] || continue
    arguments+=("$line")
    # What takes it away again: a label's key, a taint's key and effect.
    name=${line%%=*}
    [[ $verb == label ]] || name=${name%%:*}:${line##*:}
    names+=("$name")
  done <<<"$2"
  for name in $before; do
    # Taking away a taint that isn't there is an error.
    if [[ " ${names[*]} " != *" $name "* && ($verb == label || " $present" == *" $name "*) ]]; then arguments+=("$name-"); fi
  done
  [[ -n $before || ${#names[@]} -gt 0 ]] || return 0
  # What is new is remembered before it is set: cut off between the two, it is still known as ours.
  kube annotate --overwrite node "$NODE" "$annotation=$before ${names[*]}" >/dev/null
  ((${#arguments[@]} == 0)) || kube "$verb" --overwrite node "$NODE" "${arguments[@]}" >/dev/null
  kube annotate --overwrite node "$NODE" "$annotation=${names[*]}" >/dev/null
}

# One long look, that ends early only where the API server does.
node_ready() { kubectl wait --for=condition=Ready --timeout="${READY_SECONDS}s" "node/$NODE"; }

delete() {
  if ! listed; then
    say "$NODE is no node of the cluster any more"
    return
  fi
  # Pods of a node that doesn't answer never end: a drain would wait for them in vain.
  if [[ $(kube get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') != True ]]; then
    say "$NODE doesn't answer: removed without draining; its pods start on the other nodes"
    kube delete node "$NODE" --ignore-not-found >&2
    return
  fi
  say "draining $NODE (at most $DRAIN_SECONDS s)"
  local options=(--ignore-daemonsets --delete-emptydir-data --timeout="${DRAIN_SECONDS}s")
  # Written by init: this text is of the time when the worker was still wanted, and the setting may be newer.
  [[ ! -e $HOME_DIR/override-budgets ]] || options+=(--disable-eviction)
  kubectl drain "$NODE" "${options[@]}" >&2 || {
    kubectl uncordon "$NODE" >&2
    fail "$NODE can't be drained within $DRAIN_SECONDS s; it is back in service" \
      "the lines above name the pods. A disruption budget that forbids it: give it room, or set drain.disableEviction; a pod that no controller makes anew: delete it yourself; then run again"
  }
  kube delete node "$NODE" --ignore-not-found >&2
}
