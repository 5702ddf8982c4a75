# shellcheck shell=bash
# The proof on one host: its kernel holds what the cluster promises, in the way of kube-proxy's
# mode and in no other, and requests come back; in IPVS mode, spread as the scheduler promises.
# kube-proxy converges every few seconds, so what isn't so yet is waited for, with a bound; then
# the difference is the error. Reads only.
#
# Values: EXPECTED (lines, see below), MODE, SCHEDULER, CLUSTER_ENDPOINT (address:port of the
# application's ClusterIP service), NODE_ENDPOINT (this host's address:NodePort), ENDPOINTS
# (every host's address:NodePort, one a line), REQUESTS, WAIT_SECONDS.
#
# Lines, expected and seen. Of IPVS: `address 10.96.0.1` (on kube-ipvs0), `virtual TCP 10.96.0.1:443
# rr`, `real TCP 10.96.0.1:443 192.168.166.101:6443 Masq`, `set KUBE-CLUSTER-IP`. Of iptables and
# nftables: `service TCP 10.96.0.1:443`, `node-port TCP 30080`, `endpoint TCP 10.244.1.2:80`.

source lib/http.sh

locking() { false; }

create() {
  local deadline=$((SECONDS + WAIT_SECONDS)) said=$SECONDS problems
  until problems=$(differences) && [[ -z $problems ]]; do
    if ((SECONDS >= deadline)); then
      printf '%s\n' "$problems" | sed "s/^/$HOST: $STEP: /" >&2
      fail "the kernel doesn't show what the cluster promises, after $WAIT_SECONDS s (differences above)" \
        "look at the kube-proxy pod of $HOST: kubectl -n kube-system logs -l k8s-app=kube-proxy"
    fi
    if ((SECONDS - said >= 20)); then
      say "still waiting: $(wc -l <<<"$problems") difference(s), the first: $(head -n 1 <<<"$problems")"
      said=$SECONDS
    fi
    pause 3
  done
  say "the kernel's tables are as promised"
  answers
  local spread=
  # The others choose at random, which promises nothing about a few requests.
  [[ $MODE != ipvs ]] || spread=$(spreads "$CLUSTER_ENDPOINT"; spreads "$NODE_ENDPOINT")
  report
}

seen() { "seen_$MODE"; }

seen_ipvs() {
  ip -4 -o address show dev kube-ipvs0 2>/dev/null | awk '{sub("/.*", "", $4); print "address " $4}' || :
  # -A -t 10.96.0.1:443 -s rr; -a -t 10.96.0.1:443 -r 192.168.166.101:6443 -m -w 1. A weight of
  # 0 is a real server that is gone but still has connections.
  ipvsadm -Sn | awk '
    function protocol(flag) { return flag == "-u" ? "UDP" : flag == "--sctp-service" ? "SCTP" : "TCP" }
    $1 == "-A" { print "virtual", protocol($2), $3, $5 }
    $1 == "-a" && $NF != 0 {
      method = $6 == "-m" ? "Masq" : $6 == "-g" ? "Route" : "Tunnel"
      print "real", protocol($2), $3, $5, method
    }'
  ipset list -n | sed 's/^/set /'
}

seen_iptables() {
  iptables-save -t nat | awk '
    function after(word,  i) { for (i = 1; i < NF; i++) if ($i == word) return $(i + 1) }
    { protocol = toupper(after("-p")) }
    $2 == "KUBE-SERVICES" && after("-j") ~ /^KUBE-SVC-/ { sub("/32", "", $4); print "service", protocol, $4 ":" after("--dport") }
    $2 == "KUBE-NODEPORTS" && after("-j") ~ /^KUBE-EXT-/ { print "node-port", protocol, after("--dport") }
    $2 ~ /^KUBE-SEP-/ && after("-j") == "DNAT" { print "endpoint", protocol, after("--to-destination") }'
}

seen_nftables() {
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
    differences_ipvs
  else
    comm -23 <(sort -u <<<"$EXPECTED") <(seen | sort -u) | sed 's/^/missing: /'
    [[ ! -e /sys/class/net/kube-ipvs0 ]] || echo "kube-ipvs0 is there in mode $MODE"
    # Virtual servers of the user's own are none of ours.
    sed -n 's/^service \([A-Z]*\) /\1 /p' <<<"$EXPECTED" | while read -r protocol place; do
      if grep -qxF "$protocol $place" < <(virtual_servers); then echo "balanced by IPVS: $protocol $place"; fi
    done
  fi
  if [[ $MODE != iptables ]]; then
    iptables-save 2>/dev/null | grep -oE '^:KUBE-(SVC|SEP)-[^ ]+' | head -n 3 | sed 's/^:/balanced in iptables: /' || :
  fi
  if [[ $MODE != nftables ]] && nft list table ip kube-proxy >/dev/null 2>&1; then echo "balanced in nftables: the table ip kube-proxy"; fi
}

virtual_servers() { if [[ -r /proc/net/ip_vs ]]; then seen_ipvs | sed -n 's/^virtual \([A-Z]* [^ ]*\) .*/\1/p'; fi; }

differences_ipvs() {
  local tables state rules
  state=$(cat /sys/class/net/kube-ipvs0/operstate 2>/dev/null || echo missing)
  [[ $state == down ]] || echo "kube-ipvs0 is $state, not DOWN"
  tables=$(seen | sort -u)
  comm -23 <(sort -u <<<"$EXPECTED") <(printf '%s\n' "$tables") | sed 's/^/missing: /'
  # Of the virtual servers that are promised, no real server may be too many.
  comm -13 <(sort -u <<<"$EXPECTED") <(printf '%s\n' "$tables") | awk '
    NR == FNR { if ($1 == "virtual") promised[$2 " " $3] = 1; next }
    ($1 == "real" || $1 == "virtual") && (($2 " " $3) in promised) { print "too many: " $0 }' <(printf '%s\n' "$EXPECTED") -
  rules=$(iptables-save 2>/dev/null)
  local set
  for set in KUBE-CLUSTER-IP KUBE-LOOP-BACK; do
    # kube-proxy writes no rule for an empty set, and the second holds this host's own endpoints only.
    [[ -n $(ipset list "$set" 2>/dev/null | sed '1,/^Members:/d') ]] || continue
    grep -qE -- "^-A KUBE-(POSTROUTING|SERVICES) .*--match-set $set " <<<"$rules" || echo "missing: a rule that masquerades by the set $set"
  done
}

answers() {
  local endpoint
  while read -r endpoint; do
    [[ -n $endpoint ]] || continue
    wait_for "$WAIT_SECONDS" "an answer of $endpoint" request "$endpoint" ||
      fail "$endpoint doesn't answer with 200 from $HOST after $WAIT_SECONDS s" \
        "a firewall between the hosts? needed: the NodePort range/tcp and 8472/udp; see the troubleshooting page"
  done <<<"$CLUSTER_ENDPOINT
$ENDPOINTS"
  say "$(wc -l <<<"$CLUSTER_ENDPOINT
$ENDPOINTS") addresses answer"
}

# Connections of each real server so far, by the kernel's statistics. One with weight 0 is gone and gets no new ones.
connections() {
  awk '$1 != "->" || $2 !~ /^[0-9]/ {next} NR == FNR {weight[$2] = $4; next} weight[$2] > 0 {print $2, $3}' \
    <(ipvsadm -Ln -t "$1") <(ipvsadm -Ln --stats --exact -t "$1")
}

# spreads ENDPOINT: sends the requests and prints how many each real server got. Another host's
# proof may send some meanwhile: with rr that changes nothing, any run of requests is spread.
#
# The kernel adds its counters up every other second (each real server's at a moment of its own,
# later where the host is busy), so what was just sent is waited for. The first count may lack
# earlier requests in the same way: hence more than one attempt.
spreads() {
  local endpoint=$1 before counts='' attempt i
  for attempt in 1 2 3; do
    before=$(connections "$endpoint")
    for ((i = 0; i < REQUESTS; i++)); do
      request "$endpoint" || fail "request $((i + 1)) of $REQUESTS to $endpoint failed" "kubectl get pods -o wide says whether a pod restarted"
    done
    if wait_for "$COUNTED_SECONDS" "the kernel's count of $REQUESTS requests to $endpoint" spread_counted; then
      awk -v endpoint="$endpoint" '{print endpoint, $1, $2}' <<<"$counts"
      return
    fi
    say "attempt $attempt: $(tr '\n' ' ' <<<"$counts")of $endpoint's real servers is not what $SCHEDULER promises"
  done
  fail "$REQUESTS requests to $endpoint were not spread as $SCHEDULER promises: $(tr '\n' ' ' <<<"$counts")" "is something else using ipvsadm on $HOST?"
}
readonly COUNTED_SECONDS=20

# Whether all requests since `before` are counted, and spread as promised. Sets `counts`.
spread_counted() {
  counts=$(awk 'NR == FNR {had[$1] = $2; next} {print $1, $2 - had[$1]}' <(printf '%s\n' "$before") <(connections "$endpoint"))
  (($(awk '{n += $2} END {print n + 0}' <<<"$counts") >= REQUESTS)) && spread_kept "$counts"
}

# rr, and wrr with kube-proxy's equal weights: equal within one. The others promise nothing
# about idle servers (the hashing ones send one client to one server).
spread_kept() {
  case $SCHEDULER in
    rr | wrr) awk 'NR == 1 {low = high = $2} {if ($2 < low) low = $2; if ($2 > high) high = $2} END {exit !(high - low <= 1)}' <<<"$1" ;;
    *) return 0 ;;
  esac
}

report() {
  [[ $MODE == ipvs ]] || return 0
  echo "== ipvs"
  ipvsadm -Ln
  echo "== stats"
  ipvsadm -Ln --stats --exact
  echo "== addresses"
  ip -4 -o address show dev kube-ipvs0 | awk '{sub("/.*", "", $4); print $4}'
  echo "== sets"
  ipset list -n
  echo "== spread"
  printf '%s\n' "$spread"
}
