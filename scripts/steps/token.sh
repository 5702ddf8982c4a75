# shellcheck shell=bash
# Prints a new value for a bootstrap token. Nothing accepts it: it is made valid right before
# a join and revoked right after. On its own and constant, as admin.sh.
set -eu
run_step() { PATH=/usr/local/bin:/usr/bin:/bin kubeadm token generate; }
