# shellcheck shell=bash
# What the cluster promises: the services to be proved and their endpoints, as JSON;
# runs on the control plane and waits until each of them has as many endpoints as it should.
# Values: SERVICES (lines `namespace/name endpoints`), WAIT_SECONDS, SUBJECT (which attempt at the
# proof of what: a new one makes this step look again).

source lib/step.sh

locking() { false; }
export KUBECONFIG=/etc/kubernetes/admin.conf

create() {
  local lacking='' seen='' dead_looked=-$DEAD_LOOK_SECONDS
  wait_for "$WAIT_SECONDS" "what the services promise" all_ready ||
    fail "after $WAIT_SECONDS s: ${lacking:-the API server does not answer}" "kubectl get pods -A -o wide says which pod is missing"
  objects
}

# Of `seen`, in which all was ready: on a busy host an endpoint comes or goes between two calls, and every kernel
# would be held against what has been for a moment only.
objects() {
  awk '
    BEGIN { print "{\"items\": [" }
    NR == FNR { promised[$1]; next }
    $1 == "object" && $2 in promised { sub(/^object [^ ]+ /, ""); print n++ ? "," : ""; print }
    END { print "]}" }' <(printf '%s\n' "$SERVICES") <(printf '%s\n' "$seen")
}

# The Deployments behind the promised services, the endpoints of every service, and services and slices as they are.
readonly DEPLOYED='{range .items[?(@.kind=="Deployment")]}deployed {.metadata.namespace}/{.metadata.name} {.metadata.generation},{.status.observedGeneration},{.spec.replicas},{.status.updatedReplicas},{.status.replicas},{.status.availableReplicas}{"\n"}{end}'
readonly ENDPOINTS='{range .items[?(@.kind=="EndpointSlice")]}endpoints {.metadata.namespace}/{.metadata.labels.kubernetes\.io/service-name}{range .endpoints[*]} {.conditions.ready},{.addresses[0]}{end}{"\n"}object {.metadata.namespace}/{.metadata.labels.kubernetes\.io/service-name} {@}{"\n"}{end}'
readonly OBJECTS='{range .items[?(@.kind=="Service")]}object {.metadata.namespace}/{.metadata.name} {@}{"\n"}{end}'

# Sets `seen`, and `lacking`, a line for a person. One call for all services: on a slow control plane each costs seconds.
# As long as a rollout goes on, as many endpoints as promised may still be the wrong ones: the provider has
# been seen to call a Deployment updated that had two minutes to go.
all_ready() {
  seen=$(kubectl --request-timeout=60s get deployments,services,endpointslices -A -o jsonpath="$DEPLOYED$ENDPOINTS$OBJECTS") || {
    lacking=
    return 1
  }
  lacking=$(awk '
    function lacks(what) { printf "%s%s", separator, what; separator = "; " }
    $1 == "deployed" && ($2 == "default/nginx" || $2 == "kube-system/coredns") {
      split($3, n, ",")
      if (n[2] < n[1] || n[4] != n[3] || n[5] != n[3] || n[6] != n[3])
        lacks(sprintf("the rollout of %s goes on (%d of %d pods new, %d available, %d in all)", $2, n[4], n[3], n[6], n[5]))
      # How many there are of it is for whoever runs the cluster to say.
      if ($2 == "kube-system/coredns") asked["kube-system/kube-dns"] = n[3]
    }
    $1 == "endpoints" { for (i = 3; i <= NF; i++) if ($i !~ /^false,/ && !seen[$2, $i]++) count[$2]++ }
    NR != FNR && NF {
      wanted = $1 in asked ? asked[$1] : $2
      if (count[$1] != wanted) lacks(sprintf("%s has %d ready endpoints, not %d", $1, count[$1], wanted))
    }
  ' <(printf '%s\n' "$seen") <(printf '%s\n' "$SERVICES"))
  [[ -z $lacking ]] || {
    move_from_dead_nodes || :
    return 1
  }
}

# Of a node that has died Kubernetes moves the pods after five minutes, and a worker that is taken out of the
# settings goes at the run's end only. What stands behind the services is stateless: it is moved at once.
move_from_dead_nodes() {
  local node
  ((SECONDS - dead_looked >= DEAD_LOOK_SECONDS)) || return 0
  dead_looked=$SECONDS
  for node in $(kubectl --request-timeout=60s get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | awk '$2 == "Unknown" {print $1}'); do
    kubectl -n kube-system delete pods --selector k8s-app=kube-dns --field-selector "spec.nodeName=$node" --wait=false
    kubectl -n default delete pods --selector app.kubernetes.io/name=nginx --field-selector "spec.nodeName=$node" --wait=false
  done
}
readonly DEAD_LOOK_SECONDS=30
