# shellcheck shell=bash
# Verifies one host: its kernel has the expected entries of kube-proxy's mode and none of another mode, and requests
# succeed. In IPVS mode, requests must also be distributed as the scheduler specifies. kube-proxy converges every few
# seconds, so differences are errors only if they still exist at the time limit. Read-only.
#
# Values: EXPECTED (lines, see below), MODE, SCHEDULER, CLUSTER_ENDPOINT (address:port of the application's ClusterIP
# service), NODE_ENDPOINT (this host's address:NodePort), ENDPOINTS (address:NodePort of each host whose node is Ready,
# one per line), NODE_PROBLEM (why this host's node isn't as it should be; empty if it is), REQUESTS, WAIT_SECONDS,
# POD_NETWORK.
#
# Lines for IPVS: `address 10.96.0.1` (on kube-ipvs0), `virtual TCP 10.96.0.1:443 rr`,
# `real TCP 10.96.0.1:443 192.168.166.101:6443 Masq`, `set KUBE-CLUSTER-IP`, `node-port-networks TCP 30080 10.0.0.0/8`
# (no address outside serves the node port). Lines for iptables and nftables:
# `service TCP 10.96.0.1:443`, `node-port TCP 30080`, `endpoint TCP 10.244.1.2:80`.

source lib/http.sh
source lib/ipvs.sh
source lib/pod_network.sh

locking() { false; }

create() {
  local deadline=$((SECONDS + WAIT_SECONDS)) reported=$SECONDS problems spread=
  check_node
  until problems=$(differences) && [[ -z $problems ]]; do
    if ((SECONDS >= deadline)); then
      printf '%s\n' "$problems" | sed "s/^/$HOST: $STEP: /" >&2
      fail "the kernel's tables differ from the cluster's services after $WAIT_SECONDS s (differences above)" \
        "check the kube-proxy pod of $HOST: kubectl -n kube-system logs -l k8s-app=kube-proxy"
    fi
    if ((SECONDS - reported >= 20)); then
      say "still waiting: $(wc -l <<<"$problems") difference(s), the first: $(head -n 1 <<<"$problems")"
      reported=$SECONDS
    fi
    pause 3
  done
  say "the kernel's tables match the cluster's services"
  check_responses
  # The other modes choose endpoints at random, so a few requests can't show how they are distributed.
  if [[ $MODE == ipvs ]]; then
    spread=$(check_spread "$CLUSTER_ENDPOINT"; check_spread "$NODE_ENDPOINT")
    ipvs_report "$spread" | verified_only
  fi
}

check_node() {
  local address=${NODE_ENDPOINT%:*} found
  found=$(ip -4 -o address show)
  grep -qwF "$address" <<<"$found" ||
    fail "the host no longer has the address $address, but $(awk -v others="lo kube-ipvs0 $(pod_network link | xargs)" '
      index(" " others " ", " " $2 " ") == 0 {sub("/.*", "", $4); print $4}' <<<"$found" | xargs)" \
      "give it that address again, for example by a DHCP reservation; docs/operating.md has the steps for a new one"
  [[ -z $NODE_PROBLEM ]] || fail "$NODE_PROBLEM" "check journalctl -u kubelet -u containerd on $HOST"
}

# Keeps the verified services' virtual servers and addresses of a report. The output stays in Pulumi's state, and a
# kernel has a virtual server for every service of the cluster. A node port is served on all addresses of the host.
verified_only() {
  awk '
    FILENAME == ARGV[1] {
      if ($1 == "address") address[$2]
      if ($1 == "virtual") {
        server[$2, $3]
        split($3, part, ":")
        if (!(part[1] in address)) node_port[$2, part[2]]
      }
      next
    }
    FILENAME == ARGV[2] { service[$1]; next }
    $1 == "==" { section = $2; kept = section != "addresses" }
    section == "addresses" { kept = $1 == "==" || $1 in address }
    section ~ /^(ipvs|stats)$/ && $1 ~ /^(TCP|UDP|SCTP|FWM)$/ {
      split($2, part, ":")
      kept = ($1, $2) in server || ($1, part[2]) in node_port && !(part[1] in service)
    }
    kept' <(printf '%s\n' "$EXPECTED") <(ip -4 -o address show dev kube-ipvs0 | awk '{sub("/.*", "", $4); print $4}') -
}

entries() { "${MODE}_entries"; }

iptables_entries() {
  iptables-save -t nat | awk '
    function after(word,  i) { for (i = 1; i < NF; i++) if ($i == word) return $(i + 1) }
    { protocol = toupper(after("-p")) }
    $2 == "KUBE-SERVICES" && after("-j") ~ /^KUBE-SVC-/ {
      sub("/32", "", $4); print "service", protocol, $4 ":" after("--dport") }
    $2 == "KUBE-NODEPORTS" && after("-j") ~ /^KUBE-EXT-/ { print "node-port", protocol, after("--dport") }
    $2 ~ /^KUBE-SEP-/ && after("-j") == "DNAT" { print "endpoint", protocol, after("--to-destination") }'
}

nftables_entries() {
  nft list table ip kube-proxy 2>/dev/null | awk '
    /^\tmap / { map = $2 }
    /^\tchain / { map = "" }
    map == "service-ips" && match($0, /[0-9.]+ \. (tcp|udp|sctp) \. [0-9]+/) {
      split(substr($0, RSTART, RLENGTH), part, " [.] "); print "service", toupper(part[2]), part[1] ":" part[3] }
    map == "service-nodeports" && match($0, /(tcp|udp|sctp) \. [0-9]+/) {
      split(substr($0, RSTART, RLENGTH), part, " [.] "); print "node-port", toupper(part[1]), part[2] }
    match($0, /l4proto (tcp|udp|sctp) dnat/) {
      split(substr($0, RSTART, RLENGTH), part, " "); rest = substr($0, RSTART + RLENGTH)
      while (match(rest, /[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+( [.] |:)[0-9]+/)) {
        place = substr(rest, RSTART, RLENGTH); sub(/ [.] /, ":", place); print "endpoint", toupper(part[2]), place
        rest = substr(rest, RSTART + RLENGTH) } }'
}

differences() {
  if [[ $MODE == ipvs ]]; then
    ipvs_differences
  else
    comm -23 <(sort -u <<<"$EXPECTED") <(entries | sort -u) | sed 's/^/missing: /'
    if ipvs_active; then echo "kube-ipvs0 exists in mode $MODE"; fi
    # Only the cluster's services: the user may have virtual servers too.
    sed -n 's/^service \([A-Z]*\) /\1 /p' <<<"$EXPECTED" | while read -r protocol place; do
      if grep -qxF "$protocol $place" < <(ipvs_servers); then echo "balanced by IPVS: $protocol $place"; fi
    done
  fi
  if [[ $MODE != iptables ]]; then
    iptables-save 2>/dev/null | grep -oE '^:KUBE-(SVC|SEP)-[^ ]+' | head -n 3 |
      sed 's/^:/balanced in iptables: /' || :
  fi
  if [[ $MODE != nftables ]] && nft list table ip kube-proxy >/dev/null 2>&1; then
    echo "balanced in nftables: the table ip kube-proxy"
  fi
}

ipvs_servers() {
  if [[ -r $ROOT/proc/net/ip_vs ]]; then ipvs_entries | sed -n 's/^virtual \([A-Z]* [^ ]*\) .*/\1/p'; fi
}

ipvs_differences() {
  local found state rules set
  state=$(cat "$ROOT/sys/class/net/kube-ipvs0/operstate" 2>/dev/null || echo missing)
  [[ $state == down ]] || echo "kube-ipvs0 is $state, not DOWN"
  found=$(entries | sort -u)
  comm -23 <(grep -v '^node-port-networks ' <<<"$EXPECTED" | sort -u) <(printf '%s\n' "$found") | sed 's/^/missing: /'
  node_ports_elsewhere
  # Unexpected servers matter only for the cluster's own services.
  comm -13 <(sort -u <<<"$EXPECTED") <(printf '%s\n' "$found") | awk '
    NR == FNR { if ($1 == "virtual") expected[$2 " " $3] = 1; next }
    ($1 == "real" || $1 == "virtual") && (($2 " " $3) in expected) {
      print "unexpected: " $0 }' <(printf '%s\n' "$EXPECTED") -
  rules=$(iptables-save 2>/dev/null)
  for set in KUBE-CLUSTER-IP KUBE-LOOP-BACK; do
    # kube-proxy creates no rule for an empty set, and the second set contains only this host's own endpoints.
    [[ -n $(ipset list "$set" 2>/dev/null | sed '1,/^Members:/d') ]] || continue
    grep -qE -- "^-A KUBE-(POSTROUTING|SERVICES) .*--match-set $set " <<<"$rules" ||
      echo "missing: a rule that masquerades by the set $set"
  done
}

# With proxy.nodePortAddresses, other addresses of the host must not serve a node port. A service may have the same port
# on an address of its own, on kube-ipvs0, and the user in proxy.excludeCidrs.
node_ports_elsewhere() {
  local protocol port networks place
  while read -r protocol port networks; do
    mapfile -t networks < <(tr ' ' '\n' <<<"$networks"; cluster_networks exclude)
    while read -r _ _ place _; do
      if ! in_network "${place%:*}" "${networks[@]}" && ! grep -qxF "address ${place%:*}" <<<"$found"; then
        echo "unexpected: virtual $protocol $place, because proxy.nodePortAddresses doesn't contain its address"
      fi
    done < <(grep -E "^virtual $protocol [0-9.]+:$port " <<<"$found" || :)
  done < <(sed -n 's/^node-port-networks //p' <<<"$EXPECTED")
}

check_responses() {
  local endpoint addresses=$CLUSTER_ENDPOINT$'\n'$ENDPOINTS
  while read -r endpoint; do
    [[ -n $endpoint ]] || continue
    wait_for "$WAIT_SECONDS" "a response from $endpoint" request "$endpoint" ||
      fail "$endpoint doesn't return 200 to $HOST after $WAIT_SECONDS s" \
        "check the firewalls between the hosts: the NodePort range (TCP) and $(pod_network port | xargs) must be \
open; see docs/troubleshooting.md"
  done <<<"$addresses"
  say "$(wc -l <<<"$addresses") addresses respond"
}

# connections VIRTUAL_SERVER: lines `real-server connections` from the kernel's statistics. Real servers with weight 0
# were removed and get no new connections, so they don't count.
connections() {
  awk '$1 != "->" || $2 !~ /^[0-9]/ {next} NR == FNR {weight[$2] = $4; next} weight[$2] > 0 {print $2, $3}' \
    <(ipvsadm -Ln -t "$1") <(ipvsadm -Ln --stats --exact -t "$1")
}

# check_spread ENDPOINT: sends the requests and prints how many each real server got. Requests that other hosts'
# verifications send meanwhile don't matter: rr distributes any sequence of requests evenly.
#
# The kernel updates its counters every two seconds, each real server's at a different moment, and later on a busy host.
# So this waits until its requests are counted. The count before may lack earlier requests for the same reason, hence
# the three attempts.
check_spread() {
  local endpoint=$1 before counts='' attempt i
  for attempt in 1 2 3; do
    before=$(connections "$endpoint")
    for ((i = 0; i < REQUESTS; i++)); do
      request "$endpoint" || fail "request $((i + 1)) of $REQUESTS to $endpoint failed" \
        "check with kubectl get pods -o wide whether a pod has restarted"
    done
    if wait_for "$COUNT_SECONDS" "the kernel to count $REQUESTS requests to $endpoint" spread_as_expected; then
      awk -v endpoint="$endpoint" '{print endpoint, $1, $2}' <<<"$counts"
      return
    fi
    say "attempt $attempt: requests per real server of $endpoint not as expected from $SCHEDULER: \
$(tr '\n' ' ' <<<"$counts")"
  done
  fail "$SCHEDULER didn't distribute $REQUESTS requests to $endpoint as expected: $(tr '\n' ' ' <<<"$counts")" \
    "check whether something else uses IPVS on $HOST"
}
COUNT_SECONDS=20

# Sets `counts` to the requests per real server since `before`. Succeeds if all are counted and evenly distributed.
spread_as_expected() {
  counts=$(awk 'NR == FNR {had[$1] = $2; next} {print $1, $2 - had[$1]}' \
    <(printf '%s\n' "$before") <(connections "$endpoint"))
  (($(awk '{n += $2} END {print n + 0}' <<<"$counts") >= REQUESTS)) && evenly_distributed "$counts"
}

# With rr, and with wrr and kube-proxy's equal weights, counts differ by at most one. Other schedulers guarantee nothing
# for idle servers: the hashing ones send all requests of a client to one server.
evenly_distributed() {
  case $SCHEDULER in
    rr | wrr)
      awk 'NR == 1 {low = high = $2} {if ($2 < low) low = $2; if ($2 > high) high = $2} END {exit !(high - low <= 1)}' \
        <<<"$1"
      ;;
    *) return 0 ;;
  esac
}
