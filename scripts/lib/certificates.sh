# shellcheck shell=bash
# kubeadm's certificates on the control plane: when they expire, and their renewal.
# Values: CERTIFICATE_DAYS (certificates that expire within this many days expire soon).

source lib/step.sh
source lib/containerd.sh

readonly ADMIN=/etc/kubernetes/admin.conf

api_ready() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s get --raw /readyz; }

# Times in kubeadm's form, 2027-11-30T10:00:00Z, which can be compared as text.
soon() { date -u -d "+$CERTIFICATE_DAYS days" +%FT%TZ; }

# Sets `first_expiry` to the time at which the first certificate expires. The CAs, valid for ten years, don't count.
read_expiry() {
  local found
  found=$(kubeadm certs check-expiration --config "$HOME_DIR/kubeadm.yaml" --output json 2>"$HOME_DIR/phase.log") || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    fail "can't determine when the cluster's certificates expire" \
      "the lines above name the file: restore it, or remove it so that kubeadm creates a new one"
  }
  first_expiry=$(tr ',' '\n' <<<"$found" | awk '
    /"certificateAuthorities"/ {authorities = 1}
    !authorities && match($0, /"expirationDate": *"[^"]*"/) {
      split(substr($0, RSTART, RLENGTH), part, "\"")
      if (first == "" || part[4] < first) first = part[4]
    }
    END {print first}')
  [[ -n $first_expiry ]] ||
    fail "kubeadm lists no certificate of the cluster" "check kubeadm certs check-expiration on $HOST"
}
first_expiry=

# renew_certificates TIME: renews all of kubeadm's certificates except the CAs if one expires by then. Doesn't need the
# API server, which may be down because of them. The components read their certificates only when they start; after an
# interruption, the marker file makes the next run restart them.
renew_certificates() {
  local limit=$1 name containers
  if [[ ! -e $HOME_DIR/certificates.renewing ]]; then
    read_expiry
    [[ ! $first_expiry > $limit ]] || return 0
    mark certificates.renewing
  fi
  say "renewing the cluster's certificates and restarting the components that use them"
  kubeadm certs renew all --config "$HOME_DIR/kubeadm.yaml" >"$HOME_DIR/renewal.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/renewal.log" >&2
    fail "can't renew the cluster's certificates" "fix the cause above and run the same command again"
  }
  # kubeadm succeeds without the key of a CA, but skips that CA's certificates.
  read_expiry
  if [[ ! $first_expiry > $limit ]]; then
    grep "can't be renewed" "$HOME_DIR/renewal.log" >&2 || :
    fail "kubeadm didn't renew the certificates that expire at $first_expiry" \
      "restore the CA keys in /etc/kubernetes/pki on $HOST, or renew these certificates yourself, then run the same \
command again"
  fi
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
    containers=$(cri ps --quiet --name "^$name\$") ||
      fail "can't find the container of $name, which still uses its old certificate" \
        "run the same command again, or check crictl ps on $HOST"
    # shellcheck disable=SC2086 # several IDs
    [[ -z $containers ]] || cri stop --timeout 30 $containers >/dev/null
  done
  wait_for 300 "the API server" api_ready ||
    fail "the API server doesn't respond with its new certificate" "check crictl ps -a on $HOST"
  rm -f "$HOME_DIR/certificates.renewing"
  say "the certificates are valid until $first_expiry"
}
