# shellcheck shell=bash
# The kernel's IPVS tables. Read-only.

source lib/step.sh
source lib/networks.sh

# ipvs_active: whether kube-proxy has set up IPVS. Checking costs nothing; ipvsadm would load the kernel module.
ipvs_active() { [[ -e $ROOT/sys/class/net/kube-ipvs0 ]]; }

# virtual_servers cluster|other: prints a line `TCP 10.96.0.1:443` for each IPv4 virtual server that is kube-proxy's, or
# isn't. kube-proxy's have an address of kube-ipvs0 or in the service or pod subnet, or a node port on an address of the
# host. Those in the record and those in proxy.excludeCidrs are never kube-proxy's.
virtual_servers() {
  [[ -r $ROOT/proc/net/ip_vs ]] || return 0
  local protocol encoded link address number port whose
  local -A recorded=() bound=() own=()
  local -a excluded subnets
  while read -r protocol encoded _; do recorded["$protocol $encoded"]=1; done < <(noted ipvs)
  mapfile -t excluded < <(cluster_networks exclude)
  mapfile -t subnets < <(cluster_networks service pod)
  while read -r _ link _ address _; do
    address=${address%/*}
    if [[ $link == kube-ipvs0 ]]; then
      bound[$address]=1
    # kube-proxy serves no node ports on loopback addresses.
    elif [[ $address != 127.* ]] && ipvs_active; then
      own[$address]=1
    fi
  done < <(ip -4 -o address show)
  # Lines: `TCP  C0A8A665:7562 rr`.
  while read -r protocol encoded _; do
    number=$((16#${encoded%:*})) port=$((16#${encoded#*:}))
    address=$((number >> 24)).$((number >> 16 & 255)).$((number >> 8 & 255)).$((number & 255))
    whose=other
    if [[ ${recorded["$protocol $encoded"]:-} ]] || in_network "$address" "${excluded[@]}"; then
      :
    elif [[ ${bound[$address]:-} ]] || in_network "$address" "${subnets[@]}"; then
      whose=cluster
    elif [[ ${own[$address]:-} ]] && ((port >= 30000 && port <= 32767)); then
      whose=cluster
    fi
    [[ $whose != "$1" ]] || echo "$protocol $address:$port"
  done < <(grep -E '^(TCP|UDP|SCTP) +[0-9A-F]{8}:' "$ROOT/proc/net/ip_vs" || :)
}

# Prints a line for each address, virtual server, real server and set, in the form that verification.sh describes.
ipvs_entries() {
  ip -4 -o address show dev kube-ipvs0 2>/dev/null | awk '{sub("/.*", "", $4); print "address " $4}' || :
  # Lines: `-A -t 10.96.0.1:443 -s rr` and `-a -t 10.96.0.1:443 -r 192.168.166.101:6443 -m -w 1`.
  # A real server with weight 0 was removed but still has connections.
  ipvsadm -Sn | awk '
    function protocol(flag) { return flag == "-u" ? "UDP" : flag == "--sctp-service" ? "SCTP" : "TCP" }
    $1 == "-A" { print "virtual", protocol($2), $3, $5 }
    $1 == "-a" && $NF != 0 {
      method = $6 == "-m" ? "Masq" : $6 == "-g" ? "Route" : "Tunnel"
      print "real", protocol($2), $3, $5, method
    }'
  ipset list -n | sed 's/^/set /'
}

# ipvs_report [SPREAD]: prints the tables, and SPREAD: lines `virtual-server real-server requests`.
ipvs_report() {
  echo "== ipvs"
  ipvsadm -Ln
  echo "== stats"
  ipvsadm -Ln --stats --exact
  echo "== addresses"
  ip -4 -o address show dev kube-ipvs0 | awk '{sub("/.*", "", $4); print $4}'
  echo "== sets"
  ipset list -n
  echo "== spread"
  printf '%s\n' "${1:-}"
}
