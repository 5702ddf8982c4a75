# shellcheck shell=bash
# Prints kube-proxy's mode and, if IPVS is in use, the same report as the verification, for tools outside of a run.
# Read-only.

source lib/http.sh
source lib/ipvs.sh

locking() { false; }

create() {
  echo "== mode"
  fetch 127.0.0.1:10249 /proxyMode || echo unknown
  echo
  # The kernel balances even if kube-proxy doesn't respond.
  if ipvs_active; then ipvs_report; fi
}
