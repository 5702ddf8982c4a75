# shellcheck shell=bash
# Runs a step's scripts, one after the other. loader.sh sources this file on the host.

set -e

# run_scripts VERB SCRIPT=DIGEST...: a delete runs the first script, in whatever version the host has: a state may be
# older than the scripts. Prints a line before and after the results, for model/steps.py. The text that bash gets differs
# from these lines, so a host that only returns its input isn't believed.
run_scripts() {
  local verb=$1 script
  shift
  # The script reports the signal. If this shell ended at once, `timeout` wouldn't kill a script that doesn't.
  trap : TERM INT HUP
  printf '\n--- kubeadm-ipvs: %s ---\n' begin
  for script in "$@"; do
    STEP=${script%%=*}
    # The script `claim` moves them from /run.
    # shellcheck disable=SC2154 # in loader.sh
    [[ -e $SCRIPTS ]] || SCRIPTS=$root/var/lib/kubeadm-ipvs/scripts
    check_script "$verb" "${script#*=}"
    # In a process of its own, because scripts define functions of the same names. Not in a condition, where bash
    # ignores `set -e`.
    (
      # shellcheck disable=SC1090 # checked by itself
      source "$SCRIPTS/$STEP.sh"
      run_step "$verb"
    )
    [[ $verb != delete ]] || break
  done
  printf '\n--- kubeadm-ipvs: %s ---\n' end
}

# check_script VERB DIGEST
check_script() {
  local digest=$2
  if [[ $1 == delete ]]; then digest=$(sed -n "s/  $STEP\.sh\$//p" "$SCRIPTS/SHA256SUMS") || :; fi
  [[ -n $digest && $(sha256sum <"$SCRIPTS/$STEP.sh") == "$digest"* ]] || {
    echo "$HOST: $STEP: FAILED: $SCRIPTS/$STEP.sh is missing, damaged or of another version of the program
$HOST: $STEP: next: set \`repair\` of $HOST to a new text and run \`pulumi up\`, which delivers the scripts again" >&2
    exit 1
  }
}
