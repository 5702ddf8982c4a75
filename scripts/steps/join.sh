# shellcheck shell=bash
# kubeadm join on a worker.
# Values: CONFIG (kubeadm's JoinConfiguration, with this join's token), NODE_ADDRESS, KUBELET and PROXY (see
# lib/kubeadm.sh).

source lib/kubeadm.sh

readonly NODE_CREDENTIALS=$ROOT/etc/kubernetes/kubelet.conf

create() {
  # Only workers can join again; a control plane that was reset has lost its data.
  if [[ -e $HOME_DIR/node.done && ! -e $NODE_CREDENTIALS ]]; then
    say "somebody has reset the node by hand; joining again"
    rm -f "$HOME_DIR/node.done"
  fi
  if node_finished; then
    converge_kubelet
    ensure_registered
    converge_address
    say "joined already"
    return
  fi
  begin_node
  # These files contain the token. They are removed when kubeadm ends, whatever the result.
  trap 'rm -f "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"' EXIT
  put_file "$HOME_DIR/kubeadm.yaml" 0600 <<<"$CONFIG"
  run_kubeadm 5 join
  store_settings
  mark node.done
  say "joined"
}

# If the Node object was deleted while this host was unreachable, restarts kubelet, which creates the object only when
# it starts. Other errors are left to the step `node`, which reports them.
ensure_registered() {
  local output
  output=$(as_node get node "$HOST" -o name 2>&1) && return
  [[ $output == *"(NotFound)"* ]] || return 0
  say "the cluster no longer has a node $HOST; restarting kubelet, which registers it"
  systemctl restart kubelet
}

# A host that got another address keeps its node if it is removed from Pulumi's state and added again
# (docs/operating.md). kubelet has the address in a file that only kubeadm writes.
converge_address() {
  local file=${KUBELET_FILES[1]} option pods namespace name
  [[ -f $file ]] || return 0
  option="s/--node-ip=[^\" ]*/--node-ip=$NODE_ADDRESS/g"
  if [[ ! -e $HOME_DIR/address.changing ]] && cmp -s <(sed "$option" "$file") "$file"; then return 0; fi
  mark address.changing
  say "changing the node's address to $NODE_ADDRESS"
  put_file "$file" "$(stat -c %04a "$file")" < <(sed "$option" "$file")
  systemctl restart kubelet
  wait_for 180 "the cluster to know the node by the address $NODE_ADDRESS" address_known ||
    fail "the cluster still doesn't know the node by the address $NODE_ADDRESS" \
      "check journalctl -u kubelet on $HOST, then run the same command again"
  # Pods in the host's network got the old address when they started. Only a DaemonSet is sure to replace them.
  pods=$(as_node get pods -A --field-selector "spec.nodeName=$HOST" -o jsonpath="$HOST_NETWORK_PODS")
  while read -r namespace name; do
    as_node -n "$namespace" delete pod "$name" --ignore-not-found --wait=false >/dev/null
  done < <(awk '$1 == "true" && $2 == "DaemonSet" {print $3, $4}' <<<"$pods")
  rm -f "$HOME_DIR/address.changing"
}
readonly HOST_NETWORK_PODS='{range .items[*]}{.spec.hostNetwork} {.metadata.ownerReferences[0].kind} '\
'{.metadata.namespace} {.metadata.name}{"\n"}{end}'

as_node() { kubectl --kubeconfig "$NODE_CREDENTIALS" --request-timeout=60s "$@"; }

address_known() {
  local known
  known=$(as_node get node "$HOST" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}')
  [[ " $known " == *" $NODE_ADDRESS "* ]]
}
