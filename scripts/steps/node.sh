# shellcheck shell=bash
# Drains and removes a worker's node when the worker leaves the cluster. Runs on the control plane. `create` never runs.
# Values: NODE, DRAIN_SECONDS.

source lib/kubectl.sh

readonly READY_CONDITION='.status.conditions[?(@.type=="Ready")]'

locking() { false; }

create() { :; }

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
  # init.sh writes this marker file. The values are from the worker's last update, and the setting may have changed
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
