# shellcheck shell=bash
# The start of every step. bash reads a step from standard input: this file, the step's own file with its functions
# `create`, `update` and `delete`, the step's values as shell variables (not exported, so child processes don't see
# them), and finally the call of `run_step`. If the connection breaks while this is sent, the call is missing and
# nothing runs.

set -eEuo pipefail
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C DEBIAN_FRONTEND=noninteractive

# Empty on hosts. Tests set it to a folder that stands in for the root file system.
readonly ROOT=${KUBEADM_IPVS_ROOT:-}
# Everything that must outlive a step. Only root can read it.
readonly HOME_DIR=$ROOT/var/lib/kubeadm-ipvs
readonly RECORD=$HOME_DIR/record
readonly LOCK=$ROOT/run/kubeadm-ipvs.lock
# Keeps kubectl's cache out of root's home folder.
export KUBECACHEDIR=$HOME_DIR/cache
# On an overloaded host systemd may need more than the default of 25 s to reply.
export SYSTEMD_BUS_TIMEOUT=120s

say() { printf '%s: %s: %s\n' "$HOST" "$STEP" "$*" >&2; }

# fail CAUSE [NEXT MOVE]
fail() {
  printf '%s: %s: FAILED: %s\n' "$HOST" "$STEP" "$1" >&2
  [[ -z ${2:-} ]] || printf '%s: %s: next: %s\n' "$HOST" "$STEP" "$2" >&2
  trap - ERR
  exit 1
}

on_error() {
  local status=$1 line=$2 command=$3
  # In `grep -q … < <(command)`, grep exits at the first match. The SIGPIPE that the command gets is not a failure.
  if ((BASH_SUBSHELL && status == 141)); then
    trap - ERR
    exit "$status"
  fi
  fail "\`$command\` exited with status $status (line $line)" \
    "fix the cause above on $HOST and run the same command again; every step is safe to repeat"
}

have() { command -v "$1" >/dev/null 2>&1; }

# wait_for SECONDS DESCRIPTION COMMAND...: runs COMMAND until it succeeds, at growing intervals. Returns 1 at the time
# limit. COMMAND may set `detail` to what is still missing; it is printed with the progress.
#
# The pause is at least twice as long as COMMAND took (up to 15 s), so that polling a busy host doesn't keep it busy.
wait_for() {
  local limit=$1 description=$2 deadline reported started delay tenths=5
  shift 2
  deadline=$((SECONDS + limit))
  reported=$SECONDS
  until
    started=$SECONDS
    "$@" >/dev/null 2>&1
  do
    delay=$((20 * (SECONDS - started - 1))) # SECONDS are whole: up to one of them may not have passed
    ((delay <= 150)) || delay=150
    ((delay >= tenths)) || delay=$tenths
    ((SECONDS < deadline)) || return 1
    if ((SECONDS - reported >= 20)); then
      say "still waiting for $description${detail:+: $detail}"
      reported=$SECONDS
    fi
    pause "$((delay / 10)).$((delay % 10))"
    ((tenths >= 50)) || tenths=$((tenths * 3 / 2))
  done
}

# Sleeps without starting a process, which is slow on an emulated host: a read from a pipe that stays empty.
exec 8<> <(:)
pause() { read -rt "$1" -u 8 || :; }

# put_file PATH PERMISSIONS: replaces the file with standard input, in one rename. Succeeds if that changed the file.
# If it is killed before the rename, .kubeadm-ipvs.NAME stays beside the file until the next run or the host's restore
# (remove_unfinished_files). Checksums of files outside HOME_DIR are stored, so that check.sh can tell what changed.
put_file() {
  local path=$1 permissions=$2 new
  mkdir -p "${path%/*}"
  new=${path%/*}/.kubeadm-ipvs.${path##*/}
  rm -f "$new"
  (umask 077 && : >"$new")
  chmod "$permissions" "$new"
  cat >"$new"
  if [[ -f $path ]] && cmp -s "$new" "$path" && [[ $(stat -c %04a "$path") == "$permissions" ]]; then
    rm -f "$new"
    store_checksum "$path"
    return 1
  fi
  # After a power cut there is either the old file or the new one, but never an empty one.
  sync "$new"
  mv -f "$new" "$path"
  store_checksum "$path"
}

readonly CHECKSUMS=$HOME_DIR/files

store_checksum() {
  [[ -d $HOME_DIR && $1 != "$HOME_DIR"/* ]] || return 0
  if checksum_matches "$1"; then return 0; fi
  {
    if [[ -f $CHECKSUMS ]]; then awk -v path="$1" 'substr($0, 67) != path' "$CHECKSUMS"; fi
    sha256sum "$1"
  } >"$CHECKSUMS.new"
  mv -f "$CHECKSUMS.new" "$CHECKSUMS"
}

checksum_matches() { [[ -f $1 && -f $CHECKSUMS ]] && grep -qxF "$(sha256sum "$1")" "$CHECKSUMS"; }

# remove_file PATH: removes a file that put_file wrote, and its checksum.
remove_file() {
  rm -f "$1"
  [[ -f $CHECKSUMS ]] || return 0
  awk -v path="$1" 'substr($0, 67) != path' "$CHECKSUMS" >"$CHECKSUMS.new"
  mv -f "$CHECKSUMS.new" "$CHECKSUMS"
}

# note FILE LINE: adds LINE to a file of the record, unless it is there. Call it before the change that LINE describes.
note() {
  local file=$RECORD/$1 line=$2
  if [[ -f $file ]] && grep -qxF -- "$line" "$file"; then return 0; fi
  printf '%s\n' "$line" >>"$file"
  sync "$file"
}

noted() { if [[ -f $RECORD/$1 ]]; then cat "$RECORD/$1"; fi; }

# Whether the host's `repair` setting has changed since this step last ran. Some steps then do more than usual.
repair_requested() { [[ -n ${REPAIR:-} ]] && ! cmp -s <(printf '%s\n' "$REPAIR") "$HOME_DIR/repaired.$STEP"; }
store_repair() { printf '%s\n' "${REPAIR:-}" | put_file "$HOME_DIR/repaired.$STEP" 0600 || :; }

need_record() {
  [[ -d $RECORD ]] || fail "the record of this host's original state ($RECORD) is missing" \
    "restore that folder from a backup, or reinstall the host: without the record it can't be restored"
}

# Hides bootstrap tokens, certificate keys and passwords in proxy URLs, all of which kubeadm prints.
redact() {
  sed -uE 's#://[^/@ "]+@#://[password]@#g; s/[a-z0-9]{6}\.[a-z0-9]{16}/[token]/g;
    s/[0-9a-f]{64}([^0-9a-f]|$)/[key]\1/g'
}

# A built-in module without parameters isn't in /sys/module.
module_loaded() { [[ -d /sys/module/$1 || $(modinfo -F filename "$1" 2>/dev/null) == '(builtin)' ]]; }

unit_active() { systemctl is-active --quiet "$1"; }

is_root() { ((EUID == 0)); }

# Defaults, which a step's own file may redefine.
#
# Read-only steps that may wait for long don't take the lock.
locking() { true; }
# Steps that download from the Internet keep the login's proxy settings. The others connect to the cluster's own
# addresses, which no_proxy rarely lists.
fetching() { false; }
update() { create; }
delete() { :; }

# An interrupted step may go on running on the host until its own time limit.
LOCK_SECONDS=900

# run_step VERB: the last line of every step.
run_step() {
  trap 'on_error $? $LINENO "$BASH_COMMAND"' ERR
  trap 'fail "stopped by its time limit or by a signal" \
    "check load, network and disk of $HOST, then run the same command again"' TERM INT HUP
  is_root || fail "not running as root" "allow the login user to run commands as root through sudo without a password"
  fetching || unset {http,https,all}_proxy {HTTP,HTTPS,ALL}_PROXY
  if locking; then
    exec 9>"$LOCK"
    until flock -w 20 9; do
      say "an earlier step is still running on this host; waiting for it to end"
      ((SECONDS < LOCK_SECONDS)) || fail "another step is still running on this host" \
        "wait for it to end (fuser -v $LOCK shows it), then run the same command again"
    done
  fi
  check_owner "$1"
  "$1"
}

# check_owner VERB: refuses a host that belongs to another stack. A delete leaves such a host alone and succeeds.
# OWNER and the file contain `STACK ID`; earlier versions of this program wrote the stack's name only.
check_owner() {
  local owner
  [[ -n ${OWNER:-} && -f $HOME_DIR/owner ]] || return 0
  owner=$(<"$HOME_DIR/owner")
  if [[ $owner == "$OWNER" || $owner == "${OWNER% *}" ]]; then return 0; fi
  [[ ${owner% *} != "${OWNER% *}" ]] || owner="$owner, a stack of the same name in another state"
  if [[ $1 == delete ]]; then
    say "the host now belongs to the stack $owner; nothing was changed"
    exit 0
  fi
  fail "the host belongs to the stack $owner" \
    "destroy that stack, or remove $HOST from this one; nothing was changed. If that stack's state is lost for good, \
run \`rm $HOME_DIR/owner\` on the host and this stack takes it over"
}
