# shellcheck shell=bash
# The rules with which the host's firewall lets the cluster in (docs/decisions/0033-whom-the-firewall-lets-in.md).
# Values: ROLE, ADDRESS, POD_SUBNET, POD_NETWORK, HOST_SOURCES (networks of exactly the cluster's hosts, one per line),
# API_SOURCES and NODE_PORT_SOURCES (networks that may use these ports too, one per line; `any` is everybody).

source lib/firewalld.sh
source lib/ufw.sh
source lib/networks.sh
source lib/pod_network.sh

# Prints the firewall that is active: firewalld, ufw or nothing.
active_firewall() {
  if unit_active firewalld; then
    echo firewalld
  elif ufw_active; then
    echo ufw
  fi
}

# Prints lines `PORT/PROTOCOL SOURCE`; the source `any` is everybody.
openings() {
  local port
  # kubelet, for the API server, and for pods such as metrics-server's.
  openings_of 10250/tcp ''
  while read -r port; do openings_of "$port" ''; done < <(pod_network port)
  [[ $ROLE == worker ]] || openings_of 6443/tcp "$API_SOURCES"
  for port in 30000-32767/{tcp,udp}; do openings_of "$port" "$NODE_PORT_SOURCES"; done
}

# openings_of PORT/PROTOCOL OTHERS: for the cluster's hosts and OTHERS.
openings_of() {
  local source
  if [[ $2 == any ]]; then
    echo "$1 any"
    return
  fi
  for source in $HOST_SOURCES $2; do echo "$1 ${source%/32}"; done # ufw writes a single address without its /32
}

# wanted_rules FIREWALL: the rules that it must have, sorted, as lines of the record.
wanted_rules() { "${1}_wanted" | sort -u; }

# Both the stored and the active rules change; a reload instead would drop active rules that the user hasn't stored.
#
# Rich rules, because firewalld joins a port with the ranges that contain it: it would forget the user's own 30080/tcp.
firewalld_wanted() {
  local zones zone scope ports source interface rule
  zones=$(cluster_zones)
  for scope in permanent runtime; do
    while read -r ports source; do
      rule="port port=\"${ports%/*}\" protocol=\"${ports#*/}\" accept"
      [[ $source == any ]] || rule="family=\"ipv4\" source address=\"$source\" $rule"
      for zone in $zones; do echo "$scope $zone RichRule rule $rule"; done
    done < <(openings)
    # The pods' own traffic. Restricting it is up to network policies.
    while read -r interface; do echo "$scope trusted Interface $interface"; done < <(pod_network interface)
    echo "$scope trusted Source $POD_SUBNET"
  done
}

ufw_wanted() {
  local ports source
  while read -r ports source; do
    # ufw writes a range with a colon.
    ports=${ports/-/:}
    if [[ $source == any ]]; then
      echo "allow $ports"
    else
      echo "allow from $source to any port ${ports%/*} proto ${ports#*/}"
    fi
  done < <(openings)
  printf '%s\n' "allow from $POD_SUBNET" "route allow from $POD_SUBNET" "route allow to $POD_SUBNET"
}

# missing_rules FIREWALL WANTED: the wanted rules that it doesn't have.
missing_rules() {
  local present scope zone kind
  if [[ $1 == ufw ]]; then
    present=$(ufw_present)
  else
    present=$(
      while read -r scope zone kind; do
        firewalld_present "$scope" "$zone" "$kind"
      done < <(cut -d ' ' -f 1-3 <<<"$2" | uniq)
    )
  fi
  comm -23 <(printf '%s\n' "$2") <(sort -u <<<"$present")
}

# unwanted_rules FIREWALL WANTED: the rules that this program has added and that are no longer wanted.
unwanted_rules() { comm -13 <(printf '%s\n' "$2") <(noted "$1" | sort -u); }

# The zone of the interface that has the host's address; the default zone, for interfaces without one; and the source
# zones that the hosts' network belongs to, which take precedence in firewalld.
cluster_zones() {
  local interface default own
  interface=$(ip -o -4 address show to "$ADDRESS" | awk 'NR == 1 {print $2}')
  default=$(firewalld_call getDefaultZone)
  own=$(firewalld_call zone.getZoneOfInterface s "$interface")
  { printf '%s\n' "$default" "$own" | sed -nE 's/^s "(.+)"$/\1/p'; source_zones; } | sort -u
}

# The zones with a source that contains the host's address. busctl prints a{sa{sas}}: the number of zones; for each its
# name and the number of its lists; for each list its name (interfaces, sources), its length and its items.
source_zones() {
  firewalld_call zone.getActiveZones | tr -d '"' | awk -v address="$ADDRESS" '
    function number(ip,  part) {
      split(ip, part, ".")
      return ((part[1] * 256 + part[2]) * 256 + part[3]) * 256 + part[4]
    }
    function contains(network,  part, size) {
      if (network !~ /^[0-9.]+(\/[0-9]+)?$/) return 0
      size = 2 ^ (32 - (split(network, part, "/") == 2 ? part[2] : 32))
      return int(number(part[1]) / size) == int(number(address) / size)
    }
    {
      field = 3
      for (zones = $2; zones > 0; zones--) {
        zone = $(field++)
        for (lists = $(field++); lists > 0; lists--) {
          list = $(field++)
          for (items = $(field++); items > 0; items--) {
            item = $(field++)
            if (list == "sources" && contains(item)) print zone
          }
        }
      }
    }'
}

# Prints the addresses of nodes that the pod network still sends to, but that are no longer hosts of the cluster. `up`
# updates this step first, and drains and removes such a host at its very end.
leaving_hosts() {
  local interface node routes
  local -a known
  mapfile -t known <<<"$HOST_SOURCES"$'\n'"$POD_SUBNET"
  routes=$(ip -4 route show root "$POD_SUBNET")
  {
    # flannel's VXLAN has an entry for each node, host-gw a route. After a change of the backend, the entries stay.
    while read -r interface; do
      [[ $routes == *" dev $interface "* ]] || continue
      bridge fdb show dev "$interface" 2>/dev/null | sed -nE 's/.* dst ([0-9.]+)( .*)?$/\1/p' || :
    done < <(pod_network interface)
    sed -nE 's/.* via ([0-9.]+) .*/\1/p' <<<"$routes"
  } | sort -u | while read -r node; do
    in_network "$node" "${known[@]}" || echo "$node"
  done
}
