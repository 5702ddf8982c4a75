# shellcheck shell=bash
# The first step on a host and the last one. `create` checks that the host can be a node and records its original
# state before anything is changed; `delete` restores that state.
#
# Both are one step because the provider forgets a step that failed. Whichever later step fails, this one is in the
# state, so `destroy` always finds the host.
#
# Values: OWNER, ROLE, ADDRESS, NODE_PORT, MODE, SCHEDULER, VERSION, MANAGE (see packages.sh), IGNORED_CHECKS (kubeadm's
# preflight checks that this host may fail, one per line), POD_NETWORK.

source lib/step.sh
source lib/record.sh
source lib/claim/preflight.sh
source lib/claim/record_state.sh
source lib/reset/kubeadm.sh
source lib/reset/firewall.sh
source lib/reset/services.sh
source lib/reset/packages.sh
source lib/reset/kernel.sh
source lib/reset/files.sh

create() {
  local problems=() problem
  refuse_existing_node
  check_system
  check_packages
  check_containers
  # If the host is a node of ours already, the node itself uses the ports.
  if [[ ! -e $HOME_DIR/node.started ]]; then check_ports; fi
  if ((${#problems[@]})); then
    for problem in "${problems[@]}"; do say "- $problem"; done
    fail "this host can't be a node of the cluster: ${#problems[@]} problem(s), listed above" \
      "fix them, or remove $HOST from the configuration; nothing was changed"
  fi
  rm -rf "$REMOVED_HOME"
  record_state
  # Even if the record exists: the run that created it may have been interrupted before this point.
  printf '%s\n' "$HOST" | put_file "$HOME_DIR/name" 0600 || :
  printf '%s\n' "$ROLE" | put_file "$HOME_DIR/role" 0600 || :
  printf '%s\n' "$OWNER" | put_file "$HOME_DIR/owner" 0600 || :
  say "claimed"
}

# A containerd that this program installed is removed together with everything that it runs.
refuse_foreign_containers() {
  grep -qxE 'containerd(\.io)?' < <(noted packages-added) && unit_active containerd && have ctr || return 0
  local namespace found=()
  while read -r namespace; do
    if [[ $namespace != k8s.io && -n $(timeout 60 ctr -n "$namespace" containers ls -q) ]]; then
      found+=("$namespace")
    fi
  done < <(timeout 60 ctr namespaces ls -q)
  ((${#found[@]} == 0)) ||
    fail "the containerd that this program installed runs containers that aren't the cluster's, in the namespaces \
${found[*]}" "move or remove them (ctr -n ${found[0]} containers ls), then run again; nothing was changed"
}

# HOME_DIR gets this name before it is deleted, so an interrupted run never leaves half a record.
readonly REMOVED_HOME=$HOME_DIR.removed

delete() {
  rm -rf "$REMOVED_HOME"
  if [[ ! -e $HOME_DIR ]]; then
    say "the host is already restored"
    # It may be somebody else's by now; ownership can't be determined.
    [[ ! -e $ROOT/etc/kubernetes/kubelet.conf ]] ||
      say "there is a node on this host, and it stays. If it is this cluster's, somebody has deleted $HOME_DIR: reset \
the node by hand, or reinstall the host"
    return
  fi
  need_record
  refuse_foreign_containers
  choose_packages
  reset_node
  restore_firewall
  restore_runtime
  remove_packages
  restore_kernel
  restore_files
  # Last, because a run after an interruption needs it.
  mv "$HOME_DIR" "$REMOVED_HOME"
  rm -rf "$REMOVED_HOME"
  say "the host is restored to its original state"
}
