# shellcheck shell=bash
# Deletes a worker's Node object once the worker's host is restored. Runs on the control plane, because a node can't
# delete its own object. node.sh has already deleted it, but a worker that was dead at that time, or lost power in
# between, registers again when it boots. `create` never runs.
# Values: NODE.

source lib/kubectl.sh

locking() { false; }

create() { :; }

delete() {
  if ! node_exists; then
    say "the cluster has no node $NODE"
    return
  fi
  kube delete node "$NODE" --ignore-not-found >&2
  say "removed the node $NODE, which had registered again"
}
