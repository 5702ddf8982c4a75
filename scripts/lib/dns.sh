# shellcheck shell=bash
# Spreads CoreDNS's pods. Both start on the control plane, the only node at that time. Its Deployment prefers different
# nodes, but no pod moves later. While the control plane is down, every kernel keeps sending DNS queries to the pods
# there, because kube-proxy learns nothing without the API server.

source lib/kubectl.sh

# spread_dns SECONDS: moves the second pod of a node to a node without any, and pods on control planes to free workers,
# one after the other. Sets `moved` to the number of moves. Each needs another pod that serves meanwhile.
spread_dns() {
  local deadline=$((SECONDS + $1)) pods='' pod
  moved=0
  wait_for "$1" "CoreDNS's pods" dns_ready || return 0
  while pod=$(misplaced_dns_pod); do
    # Every pod has had its chance.
    if ((moved == $(wc -l <<<"$pods"))); then
      say "CoreDNS's pod ${pod% *} stays on ${pod#* }: the scheduler doesn't choose another node"
      return 0
    fi
    say "moving CoreDNS's pod ${pod% *} away from ${pod#* }"
    kube -n kube-system delete pod "${pod% *}" --wait=false >/dev/null
    moved=$((moved + 1))
    wait_for "$((deadline - SECONDS))" "CoreDNS's new pod" dns_ready || return 0
  done
}
moved=0

# Sets `pods` to lines `NAME NODE`, or to nothing if there should be fewer than two: one can't move without a gap.
# Succeeds if all are ready. Terminating ones don't count; on a dead node they stay.
dns_ready() {
  local found
  found=$(kubectl --request-timeout=60s -n kube-system get deployments,pods --selector k8s-app=kube-dns \
    -o jsonpath="$DNS_OBJECTS") || return 1
  pods=$(awk -F '|' '
    $1 == "Deployment" {wanted = $2}
    $1 == "Pod" && $6 == "" {pods = pods $3 " " $4 "\n"; all++; ready += $5 == "True"}
    END {
      if (wanted < 2) exit 0
      printf "%s", pods
      exit !(all == wanted && ready == wanted)
    }' <<<"$found")
}
readonly DNS_OBJECTS='{range .items[*]}{.kind}|{.spec.replicas}|{.metadata.name}|{.spec.nodeName}|'\
'{.status.conditions[?(@.type=="Ready")].status}|{.metadata.deletionTimestamp}{"\n"}{end}'

# Prints `NAME NODE` of a pod that should move; returns 1 if there is none. CoreDNS tolerates the control plane's taint
# and the key CriticalAddonsOnly.
misplaced_dns_pod() {
  local nodes
  [[ -n $pods ]] || return 1
  nodes=$(kube --request-timeout=60s get nodes -o jsonpath="$DNS_NODES")
  awk -F '|' '
    NR == FNR {
      control[$1] = $5 ~ /"node-role\.kubernetes\.io\/control-plane":/
      gsub(/node-role\.kubernetes\.io\/control-plane:NoSchedule |CriticalAddonsOnly:[A-Za-z]+ |[^ ]+:PreferNoSchedule /,
        "", $4)
      usable[$1] = $2 == "True" && $3 == "" && $4 == ""
      next
    }
    {split($0, part, " "); pod[++n] = part[1]; place[n] = part[2]; count[part[2]]++}
    END {
      for (node in usable) if (usable[node] && !count[node]) {
        free++
        if (!control[node]) workers++
      }
      for (i = 1; i <= n; i++) if (control[place[i]] && workers) {print pod[i], place[i]; exit}
      for (i = 1; i <= n; i++) if (count[place[i]] > 1 && free) {print pod[i], place[i]; exit}
    }' <(printf '%s\n' "$nodes") <(printf '%s\n' "$pods") | grep .
}
readonly DNS_NODES='{range .items[*]}{.metadata.name}|{.status.conditions[?(@.type=="Ready")].status}|'\
'{.spec.unschedulable}|{range .spec.taints[*]}{.key}:{.effect} {end}|{.metadata.labels}{"\n"}{end}'
