# shellcheck shell=bash
# What the cluster promises: the services to be proved and their ready endpoints, as JSON;
# runs on the control plane and waits until each of them has as many endpoints as it should.
# Values: SERVICES (lines `namespace/name endpoints`), WAIT_SECONDS, GENERATION (of what the
# services stand on: a new one makes this step look again).

locking() { false; }
export KUBECONFIG=/etc/kubernetes/admin.conf

create() {
  local service count
  while read -r service count; do
    [[ -n $service ]] || continue
    wait_for "$WAIT_SECONDS" "$count ready endpoints of $service" has_endpoints "$service" "$count" ||
      fail "$service has $(endpoints "$service" | wc -l) ready endpoints, not $count, after $WAIT_SECONDS s" "kubectl get pods -A -o wide says which pod is missing"
  done <<<"$SERVICES"
  kubectl get services,endpointslices -A -o json
}

endpoints() {
  kubectl --request-timeout=20s get endpointslices -n "${1%/*}" -l "kubernetes.io/service-name=${1#*/}" \
    -o jsonpath='{range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]}{"\n"}{end}'
}

has_endpoints() { (($(endpoints "$1" | sort -u | wc -l) == $2)); }
