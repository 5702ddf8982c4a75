# shellcheck shell=bash
# Prints the services that are to be verified and their endpoints, as JSON. Runs on the control plane and waits until
# each service has as many endpoints as it should, and for a while until every node is Ready; so it also spreads
# CoreDNS's pods. The output contains each node's state, too.
# Values: SERVICES (lines `namespace/name endpoints`), NODE_NAMES (one per line, without those of dead hosts),
# WAIT_SECONDS, SUBJECT (the verification attempt; not used here, but a new value makes this step run again).

source lib/step.sh
source lib/dns.sh

locking() { false; }
export KUBECONFIG=$ROOT/etc/kubernetes/admin.conf

create() {
  local detail='' objects='' evicted=-$EVICT_EVERY_SECONDS node
  wait_for_services
  spread_dns 240
  # The new pods have other addresses.
  if ((moved)); then wait_for_services; fi
  for node in $(nodes_not_ready); do
    say "the node $node isn't Ready: the other hosts' verification leaves it out"
  done
  print_objects
}

wait_for_services() {
  wait_for "$WAIT_SECONDS" "the services' endpoints" all_ready ||
    fail "not ready after $WAIT_SECONDS s: ${detail:-the API server does not respond}" \
      "run kubectl get pods -A -o wide to see which pod is missing"
}

# Prints what all_ready has read. On a busy cluster endpoints come and go: a second request could return a momentary
# state, and every kernel would be compared with that.
print_objects() {
  awk '
    BEGIN { print "{\"items\": [" }
    NR == FNR { expected[$1]; next }
    $1 == "node" || $1 == "object" && $2 in expected {
      sub(/^(node [^ ]+|object) [^ ]+ /, "")
      print n++ ? "," : ""
      print
    }
    END { print "]}" }' <(printf '%s\n' "$SERVICES") <(printf '%s\n' "$objects")
}

# Nodes as `node NAME =READY JSON`, with only the part of the object that the verification needs. Deployments as
# `deployed NAMESPACE/NAME GENERATION,OBSERVED,REPLICAS,UPDATED,ALL,AVAILABLE`; slices as `endpoints NAMESPACE/SERVICE
# READY,ADDRESS...`; services and slices as `object NAMESPACE/SERVICE JSON`.
readonly READY='.status.conditions[?(@.type=="Ready")]'
readonly NODE_OBJECTS='{range .items[?(@.kind=="Node")]}node {.metadata.name} ={'$READY'.status} '\
'{"{"}"kind":"Node","metadata":{"{"}"name":"{.metadata.name}"{"}"},"conditions":[{'$READY'}],'\
'"addresses":"{.status.addresses[?(@.type=="InternalIP")].address}"{"}"}{"\n"}{end}'
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
  local node
  objects=$(kubectl --request-timeout=60s get nodes,deployments,services,endpointslices -A \
    -o jsonpath="$NODE_OBJECTS$DEPLOYMENTS$SLICES$SERVICE_OBJECTS") || {
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
  if ((SECONDS < NODES_SECONDS)); then
    for node in $(nodes_not_ready); do detail+="${detail:+; }the node $node isn't Ready"; done
  fi
  [[ -z $detail ]] || {
    evict_from_dead_nodes || :
    return 1
  }
}

# A kubelet reports its node's condition every 10 s, so after this time a node isn't just slow.
NODES_SECONDS=60

nodes_not_ready() {
  awk 'NR == FNR { if ($1 == "node" && $3 == "=True") ready[$2]; next } NF && !($1 in ready) { print $1 }' \
    <(printf '%s\n' "$objects") <(printf '%s\n' "$NODE_NAMES")
}

# Kubernetes moves a dead node's pods after five minutes, and a worker that was removed from the settings leaves the
# cluster only at the end of the run. The pods behind these services are stateless, so they can be moved at once.
evict_from_dead_nodes() {
  local node
  ((SECONDS - evicted >= EVICT_EVERY_SECONDS)) || return 0
  evicted=$SECONDS
  while read -r node; do
    kubectl -n kube-system delete pods --selector k8s-app=kube-dns \
      --field-selector "spec.nodeName=$node" --wait=false
    kubectl -n default delete pods --selector app.kubernetes.io/name=nginx \
      --field-selector "spec.nodeName=$node" --wait=false
  done < <(awk '$1 == "node" && $3 == "=Unknown" {print $2}' <<<"$objects")
}
readonly EVICT_EVERY_SECONDS=30
