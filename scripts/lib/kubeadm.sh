# shellcheck shell=bash
# What init and join share: the marks that tell a half-made node of ours from a finished one,
# and running kubeadm.
#
# node.started: from before kubeadm's first change until the node is taken apart.
# node.done: kubeadm ended well. Started and not done is half a node: cleared, begun again.
#
# Values: KUBELET and PROXY, their configuration in the cluster. What the node runs with is kept in
# kubelet.yaml and proxy.yaml, so that a change is known from a repetition.

source lib/step.sh
source lib/reset.sh
source lib/http.sh

# False when the node is finished already.
begin_node() {
  need_record
  [[ ! -e $HOME_DIR/node.done ]] || return 1
  if [[ -e $HOME_DIR/node.started ]]; then
    say "a run that was cut off is cleared away"
    reset_node
    # Whoever takes a node apart by hand removes the folder that containerd watches for the node's network.
    systemctl restart containerd
    cleared=true
  fi
  mark node.started
}

mark() { : | put_file "$HOME_DIR/$1" 0600 || :; }

# run_kubeadm ATTEMPTS ARGUMENT...: phases as they pass; on failure the end of kubeadm's own log.
# Tokens are blotted out of both. kubeadm gives some requests 10 s and no second chance: where
# that was all that went wrong, the half-made node is cleared and it begins again. So it does while the cluster
# still counts a node as Ready whose kubelet was stopped here just now: it finds out after 50 s at most.
run_kubeadm() {
  local attempts=$1 attempt status former_until=$((SECONDS + 180)) reason
  shift
  for ((attempt = 1; ; attempt++)); do
    status=0
    say "kubeadm $1"
    kubeadm "$@" --config "$HOME_DIR/kubeadm.yaml" 2>&1 | redact | tee "$HOME_DIR/kubeadm.log" |
      sed -unE "s/^\[([a-z0-9-]+)\] (.*)/$HOST: $STEP: [\1] \2/p" >&2 || status=$?
    ((status)) || return 0
    if [[ -n $cleared ]] && ((SECONDS < former_until)) && grep -qF "$STILL_READY" "$HOME_DIR/kubeadm.log"; then
      reason="the cluster doesn't know yet that this node's former kubelet has stopped"
      attempt=0
      pause 10
    elif ((attempt < attempts)) && grep -qE "$TRANSIENT" < <(tail -n 5 "$HOME_DIR/kubeadm.log"); then
      reason="the API server was too slow: $(grep -m1 '^error' "$HOME_DIR/kubeadm.log")"
    else
      break
    fi
    say "$reason; again"
    cp -p "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"
    reset_node
    mark node.started
    mv -f "$HOME_DIR/kubeadm.again.yaml" "$HOME_DIR/kubeadm.yaml"
  done
  grep -v '^\[' "$HOME_DIR/kubeadm.log" | tail -n 25 >&2 || :
  fail "kubeadm $1 ended with status $status" "the lines above say why (all of it: $HOME_DIR/kubeadm.log on $HOST); mend it and run the same pulumi command again"
}
cleared=
readonly STILL_READY='and status "Ready" already exists in the cluster' # kubeadm's words, cmd/phases/join/kubelet.go
readonly TRANSIENT='Client.Timeout exceeded|context deadline exceeded|i/o timeout|TLS handshake timeout|connection refused|unexpected EOF|etcdserver: request timed out'

# kubeadm_phase ARGUMENT...: one of kubeadm's phases on a node that is there; on failure the end of its log.
kubeadm_phase() {
  kubeadm "$@" >"$HOME_DIR/phase.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    return 1
  }
}

delete() {
  if [[ ! -d $RECORD ]]; then
    say "the host is given back already"
    return
  fi
  reset_node
}

readonly KUBELET_FILES=(/var/lib/kubelet/config.yaml /var/lib/kubelet/kubeadm-flags.env)

# A new node starts with what the cluster has, which init has brought up to date before.
remember_settings() {
  local file
  for file in "${KUBELET_FILES[@]}"; do [[ ! -f $file ]] || remember_file "$file"; done
  printf '%s\n' "$KUBELET" | put_file "$HOME_DIR/kubelet.yaml" 0600 || :
  printf '%s\n' "$PROXY" | put_file "$HOME_DIR/proxy.yaml" 0600 || :
}

# kubelet takes the settings that the cluster has, where they or its own file have changed, and is
# restarted; its pods go on.
converge_kubelet() {
  if cmp -s <(printf '%s\n' "$KUBELET") "$HOME_DIR/kubelet.yaml" && as_remembered "${KUBELET_FILES[0]}" && kubelet_healthy; then return 0; fi
  say "kubelet gets its settings anew"
  kubeadm_phase upgrade node phase kubelet-config ||
    fail "kubelet's settings can't be taken from the cluster" "the lines above say why"
  systemctl restart kubelet
  wait_for 180 "kubelet" kubelet_healthy ||
    fail "kubelet doesn't come up with the changed settings: $(journalctl -u kubelet -n 1 -o cat --no-pager)" \
      "correct cluster.kubelet and run again; journalctl -u kubelet on $HOST says more"
  remember_file "${KUBELET_FILES[0]}"
  printf '%s\n' "$KUBELET" | put_file "$HOME_DIR/kubelet.yaml" 0600 || :
}

kubelet_healthy() { request 127.0.0.1:10248 /healthz; }
