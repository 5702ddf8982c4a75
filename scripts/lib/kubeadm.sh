# shellcheck shell=bash
# Runs kubeadm, for init and join. Two marker files distinguish finished nodes from unfinished ones:
#
# node.started: exists from before kubeadm's first change until the node is removed.
# node.done: kubeadm succeeded. A node that is started but not done is removed and created again.
#
# Values: KUBELET and PROXY, the cluster's configuration of kubelet and kube-proxy. The node's current configuration is
# stored in kubelet.yaml and proxy.yaml, so that a later run detects a change.

source lib/step.sh
source lib/reset/kubeadm.sh
source lib/http.sh

node_finished() {
  need_record
  [[ -e $HOME_DIR/node.done ]]
}

# Removes an unfinished node first. Not to be called in a condition, where bash ignores `set -e`.
begin_node() {
  if [[ -e $HOME_DIR/node.started ]]; then
    say "removing the unfinished node of an interrupted run"
    reset_node
    # After a `kubeadm reset` by hand, the folder that containerd watches for the node's network may be gone.
    systemctl restart containerd
    node_removed=true
  fi
  mark node.started
}
node_removed=

# run_kubeadm ATTEMPTS ARGUMENT...: prints kubeadm's phases as they run and, on failure, the end of its log.
#
# In two cases the unfinished node is removed and kubeadm runs again: the API server was too slow (kubeadm gives some
# requests 10 s and doesn't retry them), or the cluster still lists the node as Ready because this step has only just
# stopped its kubelet. The cluster notices that after at most 50 s; these runs don't count as attempts.
run_kubeadm() {
  local attempts=$1 attempt status still_ready_until=$((SECONDS + 180)) reason
  shift
  for ((attempt = 1; ; attempt++)); do
    status=0
    say "kubeadm $1"
    mark kubeadm.log
    kubeadm "$@" --config "$HOME_DIR/kubeadm.yaml" 2>&1 | redact | tee "$HOME_DIR/kubeadm.log" |
      sed -unE "s/^\[([a-z0-9-]+)\] (.*)/$HOST: $STEP: [\1] \2/p" >&2 || status=$?
    ((status)) || return 0
    if [[ -n $node_removed ]] && ((SECONDS < still_ready_until)) &&
      grep -qF "$STILL_READY" "$HOME_DIR/kubeadm.log"; then
      reason="the cluster hasn't noticed yet that this node's previous kubelet was stopped"
      attempt=0
      pause 10
    elif ((attempt < attempts)) && grep -qE "$TRANSIENT" < <(tail -n 5 "$HOME_DIR/kubeadm.log"); then
      reason="the API server was too slow: $(grep -m1 '^error' "$HOME_DIR/kubeadm.log")"
    else
      break
    fi
    say "$reason; retrying"
    cp -p "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"
    reset_node
    mark node.started
    mv -f "$HOME_DIR/kubeadm.again.yaml" "$HOME_DIR/kubeadm.yaml"
  done
  grep -v '^\[' "$HOME_DIR/kubeadm.log" | tail -n 25 >&2 || :
  fail "kubeadm $1 exited with status $status" \
    "fix the cause above (full log: $HOME_DIR/kubeadm.log on $HOST) and run the same command again"
}
# kubeadm's error in cmd/phases/join/kubelet.go
readonly STILL_READY='and status "Ready" already exists in the cluster'
readonly TRANSIENT='Client.Timeout exceeded|context deadline exceeded|i/o timeout|TLS handshake timeout|'\
'connection refused|unexpected EOF|etcdserver: request timed out'

# kubeadm_phase ARGUMENT...: runs a phase of kubeadm on an existing node; on failure prints the end of its log.
kubeadm_phase() {
  kubeadm "$@" >"$HOME_DIR/phase.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    return 1
  }
}

delete() {
  if [[ ! -d $RECORD ]]; then
    say "the host is already restored"
    return
  fi
  reset_node
}

readonly KUBELET_FILES=("$ROOT/var/lib/kubelet/config.yaml" "$ROOT/var/lib/kubelet/kubeadm-flags.env")

# A new node starts with the cluster's current configuration, which init has already updated.
store_settings() {
  local file
  for file in "${KUBELET_FILES[@]}"; do [[ ! -f $file ]] || store_checksum "$file"; done
  put_file "$HOME_DIR/kubelet.yaml" 0600 <<<"$KUBELET"
  put_file "$HOME_DIR/proxy.yaml" 0600 <<<"$PROXY"
}

# Restarts kubelet with the cluster's configuration if that, or kubelet's own file, has changed. Pods keep running.
converge_kubelet() {
  if cmp -s <(printf '%s\n' "$KUBELET") "$HOME_DIR/kubelet.yaml" && checksum_matches "${KUBELET_FILES[0]}" &&
    kubelet_healthy; then
    return 0
  fi
  say "updating kubelet's configuration"
  kubeadm_phase upgrade node phase kubelet-config ||
    fail "can't get kubelet's configuration from the cluster" "fix the cause above and run the same command again"
  systemctl restart kubelet
  wait_for 180 "kubelet" kubelet_healthy ||
    fail "kubelet doesn't start with its new configuration: $(journalctl -u kubelet -n 1 -o cat --no-pager)" \
      "correct cluster.kubelet and run again; details: journalctl -u kubelet on $HOST"
  store_checksum "${KUBELET_FILES[0]}"
  put_file "$HOME_DIR/kubelet.yaml" 0600 <<<"$KUBELET"
}

kubelet_healthy() { request 127.0.0.1:10248 /healthz; }
