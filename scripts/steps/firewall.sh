# shellcheck shell=bash
# The host's firewall: `open` the cluster's ports, `disable` it, or `leave` it alone.
# Every rule that is added is noted first, so that exactly these are taken back.
# Values: FIREWALL, ROLE, ADDRESS, POD_SUBNET.

source lib/firewalld.sh

create() {
  need_record
  case $FIREWALL in
    leave) say "left as it is" ;;
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
    # Once: a run that was cut off in between has changed one of the two already.
    grep -q "^$unit " < <(noted firewalls-stopped) || note firewalls-stopped "$unit $enabled $active"
    say "stopping $unit"
    systemctl disable --quiet --now "$unit"
  done
}

open_firewall() {
  # kubelet; every NodePort; and on the control plane the API server.
  local ports=(10250/tcp 30000-32767/tcp 30000-32767/udp)
  [[ $ROLE == worker ]] || ports+=(6443/tcp)
  # Flannel's VXLAN.
  ports+=(8472/udp)
  if unit_active firewalld; then
    open_firewalld "${ports[@]}"
  elif have ufw && grep -q '^Status: active' < <(ufw status); then
    open_ufw "${ports[@]}"
  else
    say "neither firewalld nor ufw is active"
    tell_of_other_rules
  fi
}

# Rules of somebody's own hand aren't changed; where they may reject what comes in, that is said.
tell_of_other_rules() {
  local rules
  have nft || return 0
  rules=$(nft list ruleset 2>/dev/null | awk '
    /^[[:space:]]*chain / {hook = 0; name = $2}
    / hook input / {hook = 1; if (/policy drop/) print "chain " name ": policy drop"}
    hook && / (drop|reject)/ && !/ hook / && !/invalid/' | sed -nE '1,3s/^[[:space:]]*//p') || :
  [[ -z $rules ]] || say "rules of this host's own may reject the cluster's ports (docs/own-machines.md lists them): ${rules//$'\n'/; }"
}

# Both the rules in force and the stored ones: a reload would drop what the user has only at
# run time.
open_firewalld() {
  local zone zones scope port
  zones=$(cluster_zones)
  for scope in permanent runtime; do
    for zone in $zones; do
      for port in "$@"; do firewalld_add "$scope" "$zone" Port "${port%/*}" "${port#*/}"; done
    done
    # Pods' own traffic crosses these; what may reach a pod is for network policies to say.
    firewalld_add "$scope" trusted Interface cni0
    firewalld_add "$scope" trusted Interface flannel.1
    firewalld_add "$scope" trusted Source "$POD_SUBNET"
  done
  say "firewalld lets the cluster's ports and the pod network through"
}

# The zone of the interface that has the host's address; the default one, in which all others are by themselves; and
# those by source in which the hosts' network is, which firewalld asks first.
cluster_zones() {
  local interface default own
  interface=$(ip -o -4 address show to "$ADDRESS" | awk 'NR == 1 {print $2}')
  default=$(firewalld_call getDefaultZone)
  own=$(firewalld_call zone.getZoneOfInterface s "$interface")
  { printf '%s\n' "$default" "$own" | sed -nE 's/^s "(.+)"$/\1/p'; source_zones; } | sort -u
}

# The zones of which a source holds the host's address. busctl prints a{sa{sas}}: how many zones; of each its name, how
# many kinds; of each its name (interfaces, sources), how many, and these.
source_zones() {
  firewalld_call zone.getActiveZones | tr -d '"' | awk -v address="$ADDRESS" '
    function number(ip,  part) { split(ip, part, "."); return ((part[1] * 256 + part[2]) * 256 + part[3]) * 256 + part[4] }
    function holds(network,  part, size) {
      if (network !~ /^[0-9.]+(\/[0-9]+)?$/) return 0
      size = 2 ^ (32 - (split(network, part, "/") == 2 ? part[2] : 32))
      return int(number(part[1]) / size) == int(number(address) / size)
    }
    {
      at = 3
      for (zones = $2; zones > 0; zones--) {
        zone = $(at++)
        for (kinds = $(at++); kinds > 0; kinds--) {
          kind = $(at++)
          for (many = $(at++); many > 0; many--) { thing = $(at++); if (kind == "sources" && holds(thing)) print zone }
        }
      }
    }'
}

# ufw writes a range with a colon.
open_ufw() {
  local port rule
  for port in "$@"; do
    rule="allow ${port/-/:}"
    if ! grep -qF "ufw $rule" < <(ufw show added); then
      note ufw "$rule"
      # shellcheck disable=SC2086 # the rule's words
      ufw $rule >/dev/null
    fi
  done
  for rule in "allow from $POD_SUBNET" "route allow from $POD_SUBNET" "route allow to $POD_SUBNET"; do
    if ! grep -qF "ufw $rule" < <(ufw show added); then
      note ufw "$rule"
      # shellcheck disable=SC2086 # the rule's words
      ufw $rule >/dev/null
    fi
  done
  say "ufw lets the cluster's ports and the pod network through"
}
