# shellcheck shell=bash
# A worker's entry in the list of nodes; runs on the control plane. `create` has nothing to do: the worker's
# kubelet registers the node when it joins. `delete` comes when the worker was given back, and removes the node
# if it is there again: node.sh removes it before, but a worker that loses its power between the two, or was
# dead then, registers once more when it boots, and a node can't remove itself.
# Values: NODE.

source lib/kubectl.sh

locking() { false; }

create() { :; }

delete() {
  if ! listed; then
    say "$NODE is no node of the cluster any more"
    return
  fi
  kube delete node "$NODE" --ignore-not-found >&2
  say "$NODE had registered again after it was removed: removed once more"
}
