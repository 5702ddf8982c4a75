# shellcheck shell=bash
# What every step's script starts with. A step arrives whole on bash's standard input: this
# file, the step's file (functions `create`, and where it differs `update` and `delete`),
# the step's values as plain shell variables (never exported, so never in a child's
# environment), and last the call of `run_step`. A connection cut while it is sent leaves a
# text without that call: nothing runs.

set -eEuo pipefail
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C DEBIAN_FRONTEND=noninteractive

# Everything of ours on a host that must outlive a step: root's alone.
readonly HOME_DIR=${KUBEADM_IPVS_HOME:-/var/lib/kubeadm-ipvs}
readonly RECORD=$HOME_DIR/record
# kubectl would leave its cache in root's home.
export KUBECACHEDIR=$HOME_DIR/cache
# A starved host's systemd answers late; its usual limit of 25 s would fail a step for that alone.
export SYSTEMD_BUS_TIMEOUT=120s
readonly LOCK=${KUBEADM_IPVS_LOCK:-/run/kubeadm-ipvs.lock}

say() { printf '%s: %s: %s\n' "$HOST" "$STEP" "$*" >&2; }

# fail CAUSE [NEXT MOVE]: the one way a step ends badly.
fail() {
  printf '%s: %s: FAILED: %s\n' "$HOST" "$STEP" "$1" >&2
  [[ -z ${2:-} ]] || printf '%s: %s: next: %s\n' "$HOST" "$STEP" "$2" >&2
  trap - ERR
  exit 1
}

on_error() {
  local status=$1 line=$2 command=$3
  # In `grep -q … < <(command)` the reader has seen enough, and its own status counts.
  if ((BASH_SUBSHELL && status == 141)); then
    trap - ERR
    exit "$status"
  fi
  fail "\`$command\` ended with status $status (line $line)" "mend the cause named above on $HOST, then run the same pulumi command again: every step can be run twice"
}

have() { command -v "$1" >/dev/null 2>&1; }

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds; the bound is a failure. It asks ever
# less often, and rests for twice as long as asking took (up to 15 s): where asking is work (kubectl
# on a busy host), it must not feed what it waits for.
# COMMAND may set `lacking` to what is still missing, for whoever watches.
wait_for() {
  local limit=$1 what=$2 deadline said began rest tenths=5
  shift 2
  deadline=$((SECONDS + limit))
  said=$SECONDS
  until
    began=$SECONDS
    "$@" >/dev/null 2>&1
  do
    rest=$((20 * (SECONDS - began - 1))) # the seconds that have surely passed
    ((rest <= 150)) || rest=150
    ((rest >= tenths)) || rest=$tenths
    ((SECONDS < deadline)) || return 1
    if ((SECONDS - said >= 20)); then
      say "still waiting for $what${lacking:+: $lacking}"
      said=$SECONDS
    fi
    pause "$((rest / 10)).$((rest % 10))"
    ((tenths >= 50)) || tenths=$((tenths * 3 / 2))
  done
}

# The polling interval of a wait: a read from a pipe that stays silent needs no process, which
# an emulated host would notice.
exec 8<> <(:)
pause() { read -rt "$1" -u 8 || :; }

# put_file PATH MODE: standard input becomes the file, in one rename. True if that changed it.
# Killed before the rename it leaves .kubeadm-ipvs.NAME beside the file: the next run writes it anew, and
# a host's giving back removes it (`remove_unfinished_files`).
# Files outside our own folder are remembered by their sum, for whoever asks later what has changed.
put_file() {
  local path=$1 mode=$2 new
  mkdir -p "${path%/*}"
  new=${path%/*}/.kubeadm-ipvs.${path##*/}
  rm -f "$new"
  (umask 077 && : >"$new")
  chmod "$mode" "$new"
  cat >"$new"
  if [[ -f $path ]] && cmp -s "$new" "$path" && [[ $(stat -c %04a "$path") == "$mode" ]]; then
    rm -f "$new"
    remember_file "$path"
    return 1
  fi
  # Written through before it is named: after a power cut there is the old file or the new.
  sync "$new"
  mv -f "$new" "$path"
  remember_file "$path"
}

readonly FILES=$HOME_DIR/files

# remember_file PATH: the file is now as it was set up.
remember_file() {
  [[ -d $HOME_DIR && $1 != "$HOME_DIR"/* ]] || return 0
  if as_remembered "$1"; then return 0; fi
  { if [[ -f $FILES ]]; then awk -v path="$1" 'substr($0, 67) != path' "$FILES"; fi; sha256sum "$1"; } >"$FILES.new"
  mv -f "$FILES.new" "$FILES"
}

# remove_file PATH: one that put_file has written goes, and isn't looked for any more.
remove_file() {
  rm -f "$1"
  [[ -f $FILES ]] || return 0
  awk -v path="$1" 'substr($0, 67) != path' "$FILES" >"$FILES.new"
  mv -f "$FILES.new" "$FILES"
}

# as_remembered PATH: it is there, and nobody has changed it since.
as_remembered() { [[ -f $1 && -f $FILES ]] && grep -qxF "$(sha256sum "$1")" "$FILES"; }

# note FILE LINE: remembers LINE once, before the change that it stands for is made.
note() {
  local file=$RECORD/$1 line=$2
  if [[ -f $file ]] && grep -qxF -- "$line" "$file"; then return 0; fi
  printf '%s\n' "$line" >>"$file"
  sync "$file"
}

noted() { if [[ -f $RECORD/$1 ]]; then cat "$RECORD/$1"; fi; }

# A repair (see components/remote.py) is asked for once; some steps do more then than they do otherwise.
repair_asked() { [[ -n ${REPAIR:-} ]] && ! cmp -s <(printf '%s\n' "$REPAIR") "$HOME_DIR/repaired.$STEP"; }
remember_repair() { printf '%s\n' "${REPAIR:-}" | put_file "$HOME_DIR/repaired.$STEP" 0600 || :; }

need_record() {
  [[ -d $RECORD ]] || fail "this host's record of its prior state ($RECORD) is gone" \
    "restore that folder from a backup, or reinstall the host: what was there before is not guessed"
}

# Bootstrap tokens and certificate keys never leave the host in what we print.
# Nor does a proxy's password, which kubeadm prints with its address.
redact() { sed -uE 's#://[^/@ "]+@#://[password]@#g; s/[a-z0-9]{6}\.[a-z0-9]{16}/[token]/g; s/[0-9a-f]{64}([^0-9a-f]|$)/[key]\1/g'; }

readonly OURS='# kubeadm-ipvs'

# remove_mirrors FOLDER KEPT: from containerd's folder of registries the files of ours, except those that KEPT names
# (lines that begin with a registry).
remove_mirrors() {
  local file registry
  for file in "$1"/*/hosts.toml; do
    registry=${file%/hosts.toml}
    registry=${registry##*/}
    if [[ -e $file ]] && grep -qx "$OURS" "$file" && ! grep -q "^$registry " <<<"$2"; then
      remove_file "$file"
      rmdir --ignore-fail-on-non-empty "${file%/hosts.toml}"
    fi
  done
}

# A host's own /etc/crictl.yaml may name another runtime.
cri() { crictl --runtime-endpoint "$CONTAINERD" --image-endpoint "$CONTAINERD" "$@"; }
readonly CONTAINERD=unix:///run/containerd/containerd.sock

# Of a module that is built in the kernel shows nothing in /sys/module where it has no parameters.
module_there() { [[ -d /sys/module/$1 || $(modinfo -F filename "$1" 2>/dev/null) == '(builtin)' ]]; }

unit_active() { systemctl is-active --quiet "$1"; }

# By what the distribution says of itself: Fedora has a package of apt-get, and Debian one of dnf.
family() {
  local words
  words=$(sed -nE 's/^(ID|ID_LIKE)=//p' "${KUBEADM_IPVS_OS_RELEASE:-/etc/os-release}" | tr -s '"\n' ' ')
  if [[ " $words " == *' fedora '* || " $words " == *' rhel '* ]] && have dnf; then
    echo rpm
  elif have apt-get; then
    echo deb
  elif have dnf; then
    echo rpm
  else
    fail "neither apt-get nor dnf is here" "use a Debian, Ubuntu, Fedora or Enterprise Linux host"
  fi
}

# A dpkg that was killed in the middle refuses everything until it is let finish; one that is at work (a fresh
# machine's first updates) is waited for: apt-get does so itself, dpkg doesn't.
finish_dpkg() {
  local answer=
  wait_for 300 "another package manager" dpkg_finished && [[ -z $answer ]] ||
    fail "dpkg can't finish what an earlier run has begun: $(tail -n 1 <<<"$answer")" "dpkg --configure -a on $HOST says more"
}

# True also where waiting is no use: then `answer` says why.
dpkg_finished() {
  if [[ -z $(ls -A /var/lib/dpkg/updates) && -z $(dpkg --audit) ]]; then return; fi
  if answer=$(dpkg --configure -a 2>&1); then
    answer=
  else
    [[ $answer != *'locked by another process'* ]]
  fi
}

# Steps that only read, and may wait long, say no.
locking() { true; }
# Only a step that fetches from the Internet says yes, and keeps a login's proxy: others speak to the cluster's own
# addresses, which no_proxy seldom names.
fetching() { false; }
update() { create; }
delete() { :; }

# Every step ends by itself after its own limit: so long may an earlier one go on that was cut off.
readonly LOCK_SECONDS=900

# run_step VERB: the last line of every text that is sent.
run_step() {
  trap 'on_error $? $LINENO "$BASH_COMMAND"' ERR
  trap 'fail "stopped after its time limit or by a signal" "look at $HOST (load, network, disk), then run the same pulumi command again"' TERM INT HUP
  ((EUID == 0)) || fail "not root here" "let the login user run commands as root by sudo without a password"
  fetching || unset {http,https,all}_proxy {HTTP,HTTPS,ALL}_PROXY
  # A run that was cut off may still be at work: two at once on one host would spoil each other.
  if locking; then
    exec 9>"$LOCK"
    until flock -w 20 9; do
      say "an earlier run is still at work here; waiting for its end"
      ((SECONDS < LOCK_SECONDS)) || fail "another run of this program is still at work here" "wait for it to end (fuser -v $LOCK), then run again"
    done
  fi
  look_whose_host "$1"
  "$1"
}

# look_whose_host VERB. OWNER and the file: `STACK ID`, or the stack's name alone where an earlier version of this program wrote it.
# What a host has become for somebody else since is nobody's to delete but theirs.
look_whose_host() {
  local owner
  [[ -n ${OWNER:-} && -f $HOME_DIR/owner ]] || return 0
  owner=$(<"$HOME_DIR/owner")
  if [[ $owner == "$OWNER" || $owner == "${OWNER% *}" ]]; then return 0; fi
  [[ ${owner% *} != "${OWNER% *}" ]] || owner="$owner, which has another state than this one of the same name"
  if [[ $1 == delete ]]; then
    say "the host belongs to the stack $owner now: left as it is"
    exit 0
  fi
  fail "the host belongs to the stack $owner" \
    "run pulumi destroy on that stack, or take $HOST out of this one; nothing was changed here. If that stack's state is lost for good: rm $HOME_DIR/owner on the host lets this one take it over"
}
