# shellcheck shell=bash
# Prints the services that are to be verified and their endpoints, as JSON. Runs on the control plane and waits until
# each service has as many endpoints as it should.
# Values: SERVICES (lines `namespace/name endpoints`), WAIT_SECONDS, SUBJECT (the verification attempt; not used here,
# but a new value makes this step run again).

source lib/step.sh

locking() { false; }
export KUBECONFIG=$ROOT/etc/kubernetes/admin.conf

create() {
  local detail='' objects='' nodes_checked=-$NODE_CHECK_SECONDS
  wait_for "$WAIT_SECONDS" "the services' endpoints" all_ready ||
    fail "not ready after $WAIT_SECONDS s: ${detail:-the API server does not respond}" \
      "run kubectl get pods -A -o wide to see which pod is missing"
  print_objects
}

# Prints what all_ready has read. On a busy cluster endpoints come and go: a second request could return a momentary
# state, and every kernel would be compared with that.
print_objects() {
  awk '
    BEGIN { print "{\"items\": [" }
    NR == FNR { expected[$1]; next }
    $1 == "object" && $2 in expected { sub(/^object [^ ]+ /, ""); print n++ ? "," : ""; print }
    END { print "]}" }' <(printf '%s\n' "$SERVICES") <(printf '%s\n' "$objects")
}

# Deployments as `deployed NAMESPACE/NAME GENERATION,OBSERVED,REPLICAS,UPDATED,ALL,AVAILABLE`; slices as
# `endpoints NAMESPACE/SERVICE READY,ADDRESS...`; services and slices as `object NAMESPACE/SERVICE JSON`.
readonly DEPLOYMENTS='{range .items[?(@.kind=="Deployment")]}deployed {.metadata.namespace}/{.metadata.name} '\
'{.metadata.generation},{.status.observedGeneration},{.spec.replicas},{.status.updatedReplicas},'\
'{.status.replicas},{.status.availableReplicas}{"\n"}{end}'
readonly SLICE_SERVICE='{.metadata.namespace}/{.metadata.labels.kubernetes\.io/service-name}'
readonly SLICES='{range .items[?(@.kind=="EndpointSlice")]}endpoints '$SLICE_SERVICE\
'{range .endpoints[*]} {.conditions.ready},{.addresses[0]}{end}{"\n"}object '$SLICE_SERVICE' {@}{"\n"}{end}'
readonly SERVICE_OBJECTS='{range .items[?(@.kind=="Service")]}object {.metadata.namespace}/{.metadata.name} '\
'{@}{"\n"}{end}'

# Sets `objects`, and `detail` to what is missing. One request for everything, because each takes seconds on a slow
# control plane. While a rollout is in progress even the right number of endpoints may be the wrong ones, and the
# provider has been seen to report a Deployment as updated two minutes before it was.
all_ready() {
  objects=$(kubectl --request-timeout=60s get deployments,services,endpointslices -A \
    -o jsonpath="$DEPLOYMENTS$SLICES$SERVICE_OBJECTS") || {
    detail=
    return 1
  }
  detail=$(awk '
    function missing(text) { printf "%s%s", separator, text; separator = "; " }
    $1 == "deployed" && ($2 == "default/nginx" || $2 == "kube-system/coredns") {
      split($3, n, ",")
      if (n[2] < n[1] || n[4] != n[3] || n[5] != n[3] || n[6] != n[3])
        missing(sprintf("the rollout of %s is in progress (%d of %d pods updated, %d available, %d in all)", $2, n[4],
          n[3], n[6], n[5]))
      # Users may scale CoreDNS.
      if ($2 == "kube-system/coredns") scaled["kube-system/kube-dns"] = n[3]
    }
    $1 == "endpoints" { for (i = 3; i <= NF; i++) if ($i !~ /^false,/ && !seen[$2, $i]++) count[$2]++ }
    NR != FNR && NF {
      expected = $1 in scaled ? scaled[$1] : $2
      if (count[$1] != expected) missing(sprintf("%s has %d ready endpoints, not %d", $1, count[$1], expected))
    }
  ' <(printf '%s\n' "$objects") <(printf '%s\n' "$SERVICES"))
  [[ -z $detail ]] || {
    evict_from_dead_nodes || :
    return 1
  }
}

# Kubernetes moves a dead node's pods after five minutes, and a worker that was removed from the settings leaves the
# cluster only at the end of the run. The pods behind these services are stateless, so they can be moved at once.
evict_from_dead_nodes() {
  local node
  ((SECONDS - nodes_checked >= NODE_CHECK_SECONDS)) || return 0
  nodes_checked=$SECONDS
  for node in $(kubectl --request-timeout=60s get nodes -o jsonpath="$NODE_STATUS" |
    awk '$2 == "Unknown" {print $1}'); do
    kubectl -n kube-system delete pods --selector k8s-app=kube-dns \
      --field-selector "spec.nodeName=$node" --wait=false
    kubectl -n default delete pods --selector app.kubernetes.io/name=nginx \
      --field-selector "spec.nodeName=$node" --wait=false
  done
}
readonly NODE_CHECK_SECONDS=30
readonly NODE_STATUS='{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}'
