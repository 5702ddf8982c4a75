# shellcheck shell=bash
# The kernel's IPVS tables. Read-only.

source lib/step.sh

# ipvs_active: whether kube-proxy has set up IPVS. Checking costs nothing; ipvsadm would load the kernel module.
ipvs_active() { [[ -e $ROOT/sys/class/net/kube-ipvs0 ]]; }

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
