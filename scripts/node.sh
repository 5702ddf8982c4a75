# shellcheck shell=bash
# What init and join share: the marks that tell a half-made node of ours from a finished one,
# and running kubeadm. Needs reset.sh before it.
#
# node.started: from before kubeadm's first change until the node is taken apart.
# node.done: kubeadm ended well. Started and not done is half a node: cleared, begun again.

# False when the node is finished already.
begin_node() {
  need_record
  [[ ! -e $HOME_DIR/node.done ]] || return 1
  if [[ -e $HOME_DIR/node.started ]]; then
    say "a run that was cut off is cleared away"
    reset_node
  fi
  mark node.started
}

mark() { : | put_file "$HOME_DIR/$1" 0600 || :; }

# run_kubeadm ATTEMPTS ARGUMENT...: phases as they pass; on failure the end of kubeadm's own log.
# Tokens are blotted out of both. kubeadm gives some requests 10 s and no second chance: where
# that was all that went wrong, the half-made node is cleared and it begins again.
run_kubeadm() {
  local attempts=$1 attempt status
  shift
  for ((attempt = 1; ; attempt++)); do
    status=0
    say "kubeadm $1"
    kubeadm "$@" --config "$HOME_DIR/kubeadm.yaml" 2>&1 9>&- | redact | tee "$HOME_DIR/kubeadm.log" |
      sed -unE "s/^\[([a-z0-9-]+)\] (.*)/$HOST: $STEP: [\1] \2/p" >&2 || status=$?
    ((status)) || return 0
    if ((attempt == attempts)) || ! tail -n 5 "$HOME_DIR/kubeadm.log" | grep -qE "$TRANSIENT"; then break; fi
    say "the API server was too slow: $(grep -m1 '^error' "$HOME_DIR/kubeadm.log"); again"
    cp -p "$HOME_DIR/kubeadm.yaml" "$HOME_DIR/kubeadm.again.yaml"
    reset_node
    mark node.started
    mv -f "$HOME_DIR/kubeadm.again.yaml" "$HOME_DIR/kubeadm.yaml"
  done
  grep -v '^\[' "$HOME_DIR/kubeadm.log" | tail -n 25 >&2 || :
  fail "kubeadm $1 ended with status $status" "the lines above say why (all of it: $HOME_DIR/kubeadm.log on $HOST); mend it and run the same pulumi command again"
}
readonly TRANSIENT='Client.Timeout exceeded|context deadline exceeded|i/o timeout|TLS handshake timeout|connection refused|unexpected EOF|etcdserver: request timed out'

delete() {
  if [[ ! -d $RECORD ]]; then
    say "the host is given back already"
    return
  fi
  reset_node
}
