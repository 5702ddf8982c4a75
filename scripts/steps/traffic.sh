# shellcheck shell=bash
# What a host's kernel has balanced so far, for whoever looks from outside a run. Reads only. Prints
# the mode in which kube-proxy says that it runs, and the proof's report where IPVS is in use.

source lib/http.sh
source steps/verification.sh

locking() { false; }

create() {
  echo "== mode"
  fetch 127.0.0.1:10249 /proxyMode || echo unknown
  echo
  # The kernel balances, whether kube-proxy answers or not. ipvsadm alone would load the module.
  [[ ! -e /sys/class/net/kube-ipvs0 ]] || MODE=ipvs spread='' report
}
