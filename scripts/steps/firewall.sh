# shellcheck shell=bash
# The host's firewall: `open` the cluster's ports, `disable` the firewall, or `leave` it alone.
# Each rule is recorded before it is added, so that exactly these rules are removed later.
# Values: FIREWALL, ROLE, ADDRESS, POD_SUBNET, POD_NETWORK.

source lib/firewalld.sh
source lib/pod_network.sh

create() {
  need_record
  case $FIREWALL in
    leave) say "unchanged, as configured" ;;
    disable) disable_firewall ;;
    open)
      start_stopped_firewalls
      open_firewall
      ;;
  esac
}

disable_firewall() {
  local unit enabled active
  for unit in firewalld ufw; do
    enabled=$(systemctl is-enabled "$unit" 2>/dev/null) || :
    active=$(systemctl is-active "$unit" 2>/dev/null) || :
    [[ $enabled == enabled || $active == active ]] || continue
    # Only once: an interrupted run may have recorded the unit and already changed it.
    grep -q "^$unit " < <(noted firewalls-stopped) || note firewalls-stopped "$unit $enabled $active"
    say "stopping $unit"
    systemctl disable --quiet --now "$unit"
  done
}

open_firewall() {
  # kubelet and NodePorts.
  local ports=(10250/tcp 30000-32767/tcp 30000-32767/udp)
  mapfile -t -O "${#ports[@]}" ports < <(pod_network port)
  # The API server.
  [[ $ROLE == worker ]] || ports+=(6443/tcp)
  if unit_active firewalld; then
    open_firewalld "${ports[@]}"
  elif have ufw && grep -q '^Status: active' < <(ufw status); then
    open_ufw "${ports[@]}"
  else
    say "neither firewalld nor ufw is active"
    warn_of_other_rules
  fi
}

# Rules that somebody wrote by hand aren't changed. Those that may reject incoming traffic are printed.
warn_of_other_rules() {
  local rules
  have nft || return 0
  rules=$(nft list ruleset 2>/dev/null | awk '
    /^[[:space:]]*chain / {hook = 0; name = $2}
    / hook input / {hook = 1; if (/policy drop/) print "chain " name ": policy drop"}
    hook && / (drop|reject)/ && !/ hook / && !/invalid/' | sed -nE '1,3s/^[[:space:]]*//p') || :
  [[ -z $rules ]] ||
    say "existing rules may block the cluster's ports (listed in docs/own-machines.md): ${rules//$'\n'/; }"
}

# Changes both the stored and the active rules; a reload instead would drop active rules that the user hasn't stored.
open_firewalld() {
  local zone zones scope port interface
  zones=$(cluster_zones)
  for scope in permanent runtime; do
    for zone in $zones; do
      for port in "$@"; do firewalld_add "$scope" "$zone" Port "${port%/*}" "${port#*/}"; done
    done
    # The pods' own traffic. Restricting it is up to network policies.
    while read -r interface; do
      firewalld_add "$scope" trusted Interface "$interface"
    done < <(pod_network interface)
    firewalld_add "$scope" trusted Source "$POD_SUBNET"
  done
  say "firewalld allows the cluster's ports and the pod network"
}

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

open_ufw() {
  local port
  # ufw writes a range with a colon.
  for port in "$@"; do add_ufw_rule "allow ${port/-/:}"; done
  add_ufw_rule "allow from $POD_SUBNET"
  add_ufw_rule "route allow from $POD_SUBNET"
  add_ufw_rule "route allow to $POD_SUBNET"
  say "ufw allows the cluster's ports and the pod network"
}

add_ufw_rule() {
  if grep -qF "ufw $1" < <(ufw show added); then return 0; fi
  note ufw "$1"
  # shellcheck disable=SC2086 # a rule is several words
  ufw $1 >/dev/null
}
