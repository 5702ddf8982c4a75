# shellcheck shell=bash
# A worker's Node object, removed from the control plane once the worker's host is restored. node.sh has removed it
# before, but a worker that was dead then, or lost power in between, registers again when it boots, and a node can't
# delete its own object. `create` does nothing: kubelet registers the node when it joins.
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
