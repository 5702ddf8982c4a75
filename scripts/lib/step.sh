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
  trap - ERR
  printf '%s: %s: FAILED: %s\n' "$HOST" "$STEP" "$1" >&2
  disk_problems >&2
  [[ -z ${2:-} ]] || printf '%s: %s: next: %s\n' "$HOST" "$STEP" "$2" >&2
  exit 1
}

# Prints which of the folders that steps write to can't be written. Many programs don't report this clearly, and their
# logs may be cut off by it.
disk_problems() {
  local folder blocks inodes free_inodes
  is_root || return 0
  for folder in "$HOME_DIR" "$ROOT/etc"; do
    [[ -d $folder ]] || continue
    read -r blocks inodes free_inodes < <(df --output=avail,itotal,iavail "$folder" 2>/dev/null | tail -n 1) || continue
    if [[ $blocks == 0 || ($inodes != 0 && $free_inodes == 0) ]]; then
      printf '%s: %s: the file system of %s is full\n' "$HOST" "$STEP" "$folder"
    elif [[ ! -w $folder ]]; then
      printf '%s: %s: the file system of %s is read-only\n' "$HOST" "$STEP" "$folder"
    fi
  done
}

# A function may set `doing` to what its commands are for.
on_error() {
  local status=$1 line=$2 command=$3
  # In `grep -q … < <(command)`, grep exits at the first match. The SIGPIPE that the command gets is not a failure.
  if ((BASH_SUBSHELL && status == 141)); then
    trap - ERR
    exit "$status"
  fi
  fail "${doing:+$doing: }\`$command\` exited with status $status (line $line)" \
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

# write_failed PATH ERROR: ends the step. ERROR has a tool's messages; the reason is at the end of the first line.
write_failed() {
  local error=${2%%$'\n'*}
  fail "can't write $1: ${error##*: }" "check the file system with \`df -h ${1%/*}\` and \`df -i ${1%/*}\` on $HOST: \
free space or make it writable, then run the same command again"
}

# put_file PATH PERMISSIONS: replaces the file with standard input, in one rename, and sets `changed` to true or false.
# A failed write ends the step, even in a condition, where bash ignores `set -e`. Don't call it in a pipeline: its parts
# are subshells, and neither `changed` nor the end of the step would get out of one.
#
# If it is killed before the rename, .kubeadm-ipvs.NAME stays beside the file until the next run or the host's restore
# (remove_unfinished_files). Checksums of files outside HOME_DIR are stored, so that check.sh can tell what changed.
put_file() {
  local path=$1 permissions=$2 new=${1%/*}/.kubeadm-ipvs.${1##*/} new_checksums=''
  write_unfinished "$path" "$permissions"
  # Written before the rename: if this fails, the next run must find the file different again.
  write_checksum "$path" "$new"
  if [[ -f $path ]] && cmp -s "$new" "$path" && [[ $(stat -c %04a "$path") == "$permissions" ]]; then
    changed=false
    rm -f "$new"
  else
    changed=true
    replace "$new" "$path"
  fi
  [[ -z $new_checksums ]] || replace "$new_checksums" "$CHECKSUMS"
}
# shellcheck disable=SC2034 # for the steps
changed=false

# write_unfinished PATH PERMISSIONS: writes standard input to .kubeadm-ipvs.NAME beside the file.
write_unfinished() {
  local new=${1%/*}/.kubeadm-ipvs.${1##*/} error
  # With the sync, there is either the old file or the new one after a power cut, but never an empty one.
  error=$({
    mkdir -p "${1%/*}" && rm -f "$new" && (umask 077 && : >"$new") && chmod "$2" "$new" && cat >"$new" && sync "$new"
  } 2>&1) || {
    rm -f "$new" || :
    write_failed "$1" "$error"
  }
}

# replace FILE PATH: renames FILE to PATH.
replace() {
  local error
  error=$(mv -f "$1" "$2" 2>&1) || {
    rm -f "$1" || :
    write_failed "$2" "$error"
  }
}

# mark NAME: an empty file in HOME_DIR.
mark() { put_file "$HOME_DIR/$1" 0600 </dev/null; }

# Lines as sha256sum prints them.
readonly CHECKSUMS=$HOME_DIR/files

# store_checksum PATH: of a file that put_file didn't write.
store_checksum() {
  local new_checksums=''
  write_checksum "$1" "$1"
  [[ -z $new_checksums ]] || replace "$new_checksums" "$CHECKSUMS"
}

# write_checksum PATH FILE: if the checksum of FILE isn't stored as that of PATH, writes it to a new list and sets
# `new_checksums` to that.
write_checksum() {
  [[ -d $HOME_DIR && $1 != "$HOME_DIR"/* ]] || return 0
  local sum
  sum=$(sha256sum <"$2") || fail "can't read $2" "check the disk of $HOST, then run the same command again"
  sum="${sum%% *}  $1"
  if [[ -f $CHECKSUMS ]] && grep -qxF -- "$sum" "$CHECKSUMS"; then return 0; fi
  write_checksums "$1" "$sum"$'\n'
}

# write_checksums PATH LINE: LINE replaces that of PATH. Drops damaged lines.
write_checksums() {
  local others=''
  if [[ -f $CHECKSUMS ]]; then
    others=$(awk -v path="$1" 'substr($0, 65, 3) == "  /" && substr($0, 67) != path' "$CHECKSUMS") ||
      fail "can't read $CHECKSUMS" "check the disk of $HOST, then run the same command again"
  fi
  write_unfinished "$CHECKSUMS" 0600 < <(printf '%s' "${others:+$others$'\n'}$2")
  new_checksums=$HOME_DIR/.kubeadm-ipvs.files
}

checksum_matches() { [[ -f $1 && -f $CHECKSUMS ]] && grep -qxF -- "$(sha256sum "$1")" "$CHECKSUMS"; }

# remove_file PATH: removes a file that put_file wrote, and its checksum.
remove_file() {
  local error new_checksums
  error=$(rm -f "$1" 2>&1) || fail "can't remove $1: ${error##*: }" "make its file system writable, then run the same \
command again"
  if [[ -f $CHECKSUMS ]]; then
    write_checksums "$1" ''
    replace "$new_checksums" "$CHECKSUMS"
  fi
}

# note FILE LINE: adds LINE to a file of the record, unless it is there. Call it before the change that LINE describes.
# Writes by rename, because a full disk could cut an appended line off in the middle.
note() {
  local file=$RECORD/$1 line=$2 lines error
  if [[ -f $file ]] && grep -qxF -- "$line" "$file"; then return 0; fi
  lines=$(noted "$1")
  error=$({
    printf '%s\n' ${lines:+"$lines"} "$line" >"$file.new" && sync "$file.new" && mv -f "$file.new" "$file"
  } 2>&1) || {
    rm -f "$file.new" || :
    write_failed "$file" "$error"
  }
}

# noted FILE: the lines of a file of the record. Earlier versions of this program appended to it. If the last line has no
# end, a full disk cut it off, and the change that it describes was never made.
noted() {
  local line
  [[ -f $RECORD/$1 ]] || return 0
  while IFS= read -r line; do printf '%s\n' "$line"; done <"$RECORD/$1"
}

# Whether the host's `repair` setting has changed since this step last ran. Some steps then do more than usual.
repair_requested() { [[ -n ${REPAIR:-} ]] && ! cmp -s <(printf '%s\n' "$REPAIR") "$HOME_DIR/repaired.$STEP"; }
store_repair() { put_file "$HOME_DIR/repaired.$STEP" 0600 <<<"${REPAIR:-}"; }

need_record() {
  local file next="restore that folder from a backup, or reinstall the host: without the record it can't be restored"
  [[ -d $RECORD ]] || fail "the record of this host's original state ($RECORD) is missing" "$next"
  # None of these is empty on any host. An empty list would make the host's own packages, links and files the cluster's.
  for file in packages units links sysctls files.tar; do
    [[ -s $RECORD/$file ]] || fail "the record of this host's original state ($RECORD) is damaged: $file is missing or \
empty" "$next"
  done
}

# need_content FILE NEXT MOVE: fails if the file exists and is empty.
need_content() {
  [[ ! -e $1 || -s $1 ]] || fail "$1 is empty: perhaps the disk was full when it was written" "$2; nothing was changed"
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
    # Whoever can open the file can lock it. Earlier versions of this program let every user read it.
    { (umask 077 && : >>"$LOCK") && chmod 0600 "$LOCK"; } || fail "can't write $LOCK" "make /run writable on $HOST"
    exec 9>"$LOCK"
    until flock -w 20 9; do
      say "an earlier step is still running on this host; waiting for it to end"
      ((SECONDS < LOCK_SECONDS)) || fail "another step is still running on this host" "wait for it to end, or stop it \
if it isn't a step (fuser -v $LOCK shows it), then run the same command again"
    done
  fi
  check_owner "$1"
  "$1"
}

# check_owner VERB: refuses a host that belongs to another stack. A delete leaves such a host alone and succeeds.
# OWNER and the file contain `STACK ID`; earlier versions of this program wrote the stack's name only.
#
# They also left the file empty on a full disk. Nothing else on the host names the stack, so a person has to.
check_owner() {
  local owner
  [[ -n ${OWNER:-} && -f $HOME_DIR/owner ]] || return 0
  owner=$(tr -d '\0' <"$HOME_DIR/owner")
  [[ $owner =~ ^[^[:space:]]+(\ [^[:space:]]+)?$ ]] ||
    fail "ownership can't be determined: $HOME_DIR/owner is empty or damaged, perhaps by a full disk" \
      "if $HOST belongs to the stack ${OWNER% *}, run \`echo '$OWNER' >$HOME_DIR/owner\` on it, then the same command \
again; nothing was changed"
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
