# shellcheck shell=bash
# The end of each step's text, before the call of run_scripts: finds the scripts, which deliver.sh has put on the host.
# model/steps.py leaves out the comments, because the state has this text for every step of every host.
root=${KUBEADM_IPVS_ROOT:-}
if [[ $1 == delete && ! -e $root/var/lib/kubeadm-ipvs ]]; then
  # By now the host may be somebody else's; ownership can't be determined. An interrupted delete leaves this folder.
  rm -rf "$root/var/lib/kubeadm-ipvs.removed"
  echo "$HOST: $STEP: the host is already restored; a node that is still on it stays" >&2
  exit
fi
# A host that isn't claimed has them in /run.
SCRIPTS=$root/run/kubeadm-ipvs/scripts
[[ -e $SCRIPTS ]] || SCRIPTS=$root/var/lib/kubeadm-ipvs/scripts
# shellcheck disable=SC1091 # only on hosts
. "$SCRIPTS/run.sh" || {
  echo "$HOST: $STEP: FAILED: no scripts in $SCRIPTS; next: set \`repair\` to a new text and run \`pulumi up\`" >&2
  exit 1
}
