# shellcheck shell=bash
# A node as the cluster sees it. Runs on the control plane. `create` waits until the node is Ready and sets its labels
# and taints; `delete` drains and removes a worker that leaves the cluster.
# Values: NODE, LABELS (lines key=value), TAINTS (lines key=value:Effect), READY_SECONDS, DRAIN_SECONDS.

source lib/kubectl.sh

readonly READY_CONDITION='.status.conditions[?(@.type=="Ready")]'

locking() { false; }

create() {
  wait_for "$READY_SECONDS" "the node $NODE to be Ready" node_ready || {
    local message
    message=$(kubectl get node "$NODE" -o jsonpath="{$READY_CONDITION.message}" 2>&1) || :
    fail "the node $NODE isn't Ready after $READY_SECONDS s: $message" "check journalctl -u kubelet on $NODE"
  }
  # One request for everything, because each takes seconds on a slow control plane.
  local found previous_labels previous_taints present
  found=$(kube get node "$NODE" -o jsonpath='{.metadata.annotations.kubeadm-ipvs/labels}|'\
'{.metadata.annotations.kubeadm-ipvs/taints}|{range .spec.taints[*]}{.key}:{.effect} {end}{"\n"}')
  IFS='|' read -r previous_labels previous_taints present <<<"$found"
  set_own label "$LABELS" "$previous_labels" "$present"
  set_own taint "$TAINTS" "$previous_taints" "$present"
  say "$NODE is Ready"
}

# set_own VERB LINES PREVIOUS PRESENT: sets the labels or taints in LINES and removes the other ones in PREVIOUS, the
# content of an annotation. Labels and taints that somebody else has set are left alone. PRESENT lists the node's
# current taints.
set_own() {
  local verb=$1 previous=$3 present=$4 annotation=kubeadm-ipvs/${1}s line name names=() arguments=()
  while read -r line; do
    [[ -n $line ]] || continue
    arguments+=("$line")
    # A label is removed by its key, a taint by its key and effect.
    name=${line%%=*}
    [[ $verb == label ]] || name=${name%%:*}:${line##*:}
    names+=("$name")
  done <<<"$2"
  for name in $previous; do
    # kubectl refuses to remove a taint that isn't there.
    if [[ " ${names[*]} " != *" $name "* && ($verb == label || " $present" == *" $name "*) ]]; then
      arguments+=("$name-")
    fi
  done
  [[ -n $previous || ${#names[@]} -gt 0 ]] || return 0
  # New names are stored before they are set, so that after an interruption they are still known as ours.
  kube annotate --overwrite node "$NODE" "$annotation=$previous ${names[*]}" >/dev/null
  ((${#arguments[@]} == 0)) || kube "$verb" --overwrite node "$NODE" "${arguments[@]}" >/dev/null
  kube annotate --overwrite node "$NODE" "$annotation=${names[*]}" >/dev/null
}

# Waits for the whole time in one call; wait_for repeats it if the API server ends the watch early.
node_ready() { kubectl wait --for=condition=Ready --timeout="${READY_SECONDS}s" "node/$NODE"; }

delete() {
  if ! node_exists; then
    say "the cluster has no node $NODE"
    return
  fi
  # Pods on a node that doesn't respond never terminate, so a drain would only time out.
  if [[ $(kube get node "$NODE" -o jsonpath="{$READY_CONDITION.status}") != True ]]; then
    say "$NODE doesn't respond: removing it without draining; its pods start on the other nodes"
    kube delete node "$NODE" --ignore-not-found >&2
    return
  fi
  say "draining $NODE (at most $DRAIN_SECONDS s)"
  local options=(--ignore-daemonsets --delete-emptydir-data --timeout="${DRAIN_SECONDS}s")
  # init.sh writes this marker file. This script is from the worker's last update, and the setting may have changed
  # since.
  [[ ! -e $HOME_DIR/override-budgets ]] || options+=(--disable-eviction)
  kubectl drain "$NODE" "${options[@]}" >&2 || {
    kubectl uncordon "$NODE" >&2
    fail "$NODE can't be drained within $DRAIN_SECONDS s; it is back in service" \
      "see the pods named above. If a disruption budget blocks one, relax the budget or set drain.disableEviction; \
delete pods without a controller yourself. Then run the same command again"
  }
  kube delete node "$NODE" --ignore-not-found >&2
}
