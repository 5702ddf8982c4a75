# shellcheck shell=bash
# The first script on a host and the last one. `create` checks that the host can be a node and records its original
# state before anything is changed; `delete` restores that state.
#
# They belong to different steps, because the provider forgets a step that failed: `create` is the first part of
# `preparation`, and `delete` belongs to `claim`, which is in the state before. So `destroy` always finds the host, and
# also hosts that `create` has refused.
#
# Values: OWNER, ROLE, ADDRESS, NODE_PORT, MODE, SCHEDULER, VERSION, MANAGE (see packages.sh), IGNORED_CHECKS (kubeadm's
# preflight checks that this host may fail, one per line), POD_NETWORK, NETWORKS (see lib/networks.sh), RESOLV_CONF
# (kubelet's, or empty), REMOVE_LEFTOVERS (true or empty), FIRST_BOOT_SECONDS.

source lib/step.sh
source lib/record.sh
source lib/claim/preflight.sh
source lib/claim/kubelet.sh
source lib/claim/network.sh
source lib/claim/leftovers.sh
source lib/claim/record_state.sh
source lib/reset/kubeadm.sh
source lib/reset/firewall.sh
source lib/reset/services.sh
source lib/reset/packages.sh
source lib/reset/kernel.sh
source lib/reset/files.sh

create() {
  local problems=() problem leftovers=() advice=''
  refuse_existing_node
  await_first_boot
  check_system
  check_cgroups
  check_modules
  check_packages
  check_kubelet_files
  check_etcd_folder
  check_containers
  check_leftovers
  check_virtual_servers
  check_routes
  check_dns
  check_cloud_setup
  check_ports
  if ((${#problems[@]})); then
    for problem in "${problems[@]}"; do say "- $problem"; done
    fail "this host can't be a node of the cluster: ${#problems[@]} problem(s), listed above" \
      "fix them$advice, or remove $HOST from the configuration; nothing was changed"
  fi
  claim_host
  say "claimed"
}

claim_host() {
  local leftover
  rm -rf "$REMOVED_HOME"
  remove_leftovers
  keep_scripts
  record_state
  # Even if the record exists: the run that created it may have been interrupted before this point.
  put_file "$HOME_DIR/name" 0600 <<<"$HOST"
  put_file "$HOME_DIR/role" 0600 <<<"$ROLE"
  put_file "$HOME_DIR/owner" 0600 <<<"$OWNER"
  put_file "$HOME_DIR/node-port" 0600 <<<"$NODE_PORT"
  put_file "$NETWORKS_FILE" 0600 <<<"$NETWORKS"
  for leftover in "${leftovers[@]}"; do note leftovers "$leftover"; done
}

# deliver.sh puts the scripts into /run while this folder doesn't exist or is another stack's. A delete needs them,
# perhaps after a reboot.
keep_scripts() {
  local new=$HOME_DIR.new error
  [[ -e $DELIVERED ]] || return 0
  error=$({
    if [[ -e $HOME_DIR ]]; then
      cp -a "$DELIVERED/." "$HOME_DIR" && sync -f "$HOME_DIR"
    else
      rm -rf "$new" && mkdir -m 0700 "$new" && cp -a "$DELIVERED/." "$new" && sync -f "$new" && mv -T "$new" "$HOME_DIR"
    fi
  } 2>&1) || {
    rm -rf "$new" || :
    write_failed "$HOME_DIR" "$error"
  }
  rm -rf "$DELIVERED"
}
readonly DELIVERED=$ROOT/run/kubeadm-ipvs

# A containerd that this program installed is removed together with everything that it runs.
refuse_foreign_containers() {
  grep -qxE 'containerd(\.io)?' < <(noted packages-added) && unit_active containerd && have ctr || return 0
  local namespaces namespace containers found=()
  namespaces=$(timeout 60 ctr namespaces ls -q)
  while read -r namespace; do
    [[ -n $namespace && $namespace != k8s.io ]] || continue
    containers=$(timeout 60 ctr -n "$namespace" containers ls -q)
    [[ -z $containers ]] || found+=("$namespace")
  done <<<"$namespaces"
  ((${#found[@]} == 0)) ||
    fail "the containerd that this program installed runs containers that aren't the cluster's, in the namespaces \
${found[*]}" "move or remove them (ctr -n ${found[0]} containers ls), then run again; nothing was changed"
}

# HOME_DIR gets this name before it is deleted, so an interrupted run never leaves half a record.
readonly REMOVED_HOME=$HOME_DIR.removed

delete() {
  local without='' name
  rm -rf "$REMOVED_HOME" "$HOME_DIR.new" "$DELIVERED"
  if [[ ! -e $HOME_DIR ]]; then
    say "the host is already restored; a node that is still on it stays"
    return
  fi
  name=$(cat "$HOME_DIR/name" 2>/dev/null || echo "$HOST")
  if [[ $name != "$HOST" ]]; then
    say "the host is in this stack as $name, and $HOST was refused: nothing was changed"
    return
  fi
  # `create` writes the owner after the record, and changes nothing before it.
  if [[ ! -e $RECORD && ! -e $HOME_DIR/owner ]]; then
    rm -rf "$HOME_DIR"
    say "the host was never changed"
    return
  fi
  need_record
  copied_files >/dev/null ||
    fail "the record of this host's original state ($RECORD) is damaged: tar can't read files.tar" \
      "restore that file from a backup, or reinstall the host; nothing was changed"
  refuse_foreign_containers
  choose_packages
  reset_node
  restore_firewall
  restore_runtime
  remove_packages
  restore_kernel
  restore_files
  [[ -z $(noted leftovers) ]] || without=", without the previous cluster's leftovers that the claim removed"
  # Last, because a run after an interruption needs it.
  mv "$HOME_DIR" "$REMOVED_HOME"
  rm -rf "$REMOVED_HOME"
  say "the host is restored to its original state$without"
}
