# shellcheck shell=bash
# firewalld by its D-Bus interface: the same calls that firewall-cmd makes, without starting
# Python for each (some thirty a host). Scope `permanent` is the stored rules, `runtime` those
# in force. https://firewalld.org/documentation/man-pages/firewalld.dbus.html

source lib/step.sh

readonly FIREWALLD=org.fedoraproject.FirewallD1

# firewalld_zone SCOPE ZONE METHOD SIGNATURE ARGUMENT...: a zone's method; prints busctl's reply.
firewalld_zone() {
  local scope=$1 zone=$2 method=$3 signature=$4 path
  shift 4
  if [[ $scope == permanent ]]; then
    path=$(busctl --system call "$FIREWALLD" "/${FIREWALLD//./\/}/config" "$FIREWALLD.config" getZoneByName s "$zone")
    path=${path#o \"}
    busctl --system call "$FIREWALLD" "${path%\"}" "$FIREWALLD.config.zone" "$method" "$signature" "$@"
  else
    # At run time some methods also take how long the change lasts: 0 is for good.
    if [[ $method == addPort ]]; then
      signature+=i
      set -- "$@" 0
    fi
    firewalld_call "zone.$method" "s$signature" "$zone" "$@"
  fi
}

# firewalld_add SCOPE ZONE KIND ARGUMENT...: KIND is Port (port, protocol), Interface or Source.
# Noted before it is done; what the user has already is not ours to take back.
firewalld_add() {
  local scope=$1 zone=$2 kind=$3 signature=s
  shift 3
  (($# == 1)) || signature=ss
  [[ $(firewalld_zone "$scope" "$zone" "query$kind" "$signature" "$@") == "b false" ]] || return 0
  note firewalld "$scope $zone $kind $*"
  firewalld_zone "$scope" "$zone" "add$kind" "$signature" "$@" >/dev/null
}

# A zone that firewalld stored only because of us, and that says now what its package says, is
# stored no longer.
firewalld_forget_zones() {
  local file name
  for file in /etc/firewalld/zones/*.xml; do
    [[ -e $file ]] || continue
    name=${file##*/}
    [[ -e /usr/lib/firewalld/zones/$name ]] || continue
    if ! recorded_file "$file" && cmp -s <(tr -d '[:space:]' <"$file") <(tr -d '[:space:]' <"/usr/lib/firewalld/zones/$name"); then
      rm -f "$file"
    fi
  done
  for file in /etc/firewalld/zones/*.xml.old; do
    if [[ -e $file ]] && ! recorded_file "$file"; then rm -f "$file"; fi
  done
}

# firewalld_call [INTERFACE.]METHOD [SIGNATURE ARGUMENT...]: of the running firewall; prints busctl's reply.
firewalld_call() {
  local interface=$FIREWALLD method=$1
  shift
  [[ $method != *.* ]] || interface+=.${method%.*}
  busctl --system call "$FIREWALLD" "/${FIREWALLD//./\/}" "$interface" "${method##*.}" "$@"
}

# Whether all that is in force is stored too, so that a reload loses nothing. Interfaces are
# left out: firewalld itself keeps their zones over a reload. Its iptables backend would flush
# everybody's rules; direct rules and ipsets are not compared, so where there are any the answer is no.
firewalld_all_stored() {
  local list
  [[ $(busctl --system get-property "$FIREWALLD" "/${FIREWALLD//./\/}/config" "$FIREWALLD.config" FirewallBackend) == 's "nftables"' ]] || return 1
  [[ $(firewalld_call direct.getAllChains) == *" 0" && $(firewalld_call direct.getAllRules) == *" 0" ]] || return 1
  [[ $(firewalld_call direct.getAllPassthroughs) == *" 0" && $(firewalld_call ipset.getIPSets) == *" 0" ]] || return 1
  for list in --list-all-zones --list-all-policies; do
    cmp -s <(firewalld_list "$list") <(firewalld_list --permanent "$list") || return 1
  done
}

# `public (default, active)` is `public (default)` in the stored rules.
firewalld_list() { firewall-cmd "$@" | sed -E 's/^([^ ]+) \(.*\)$/\1/; /^  interfaces:/d'; }

# firewalld keeps the chains of a zone that nothing uses any more, and after a restart (seen with
# 2.3) also the rules that lead to them, until it reads its rules anew.
firewalld_tidy() {
  if firewalld_all_stored; then
    firewall-cmd --quiet --reload
  else
    say "firewalld has rules in force that are not stored: chains of ours stay, without effect, until it is reloaded"
  fi
}

# What this program has stopped and disabled (firewall: disable) runs as it did before; nobody else's decision is touched.
start_stopped_firewalls() {
  local unit enabled active
  while read -r unit enabled active; do
    if ! systemctl cat "$unit" >/dev/null 2>&1; then
      say "$unit, which was stopped for the cluster, is not installed any more"
      continue
    fi
    if [[ $enabled == enabled ]] && ! systemctl is-enabled --quiet "$unit"; then systemctl enable --quiet "$unit"; fi
    if [[ $active == active ]] && ! unit_active "$unit"; then systemctl start "$unit"; fi
  done < <(noted firewalls-stopped)
  rm -f "$RECORD/firewalls-stopped"
}

# firewalld_take_back: every addition that was noted and is still there. Once: asking it again costs a minute on a slow
# host, and whoever opens the ports again notes them again.
firewalld_take_back() {
  [[ -n $(noted firewalld) ]] || return 0
  if unit_active firewalld; then
    firewalld_take_back_all
  else
    firewalld_take_back_stored
  fi
  rm -f "$RECORD/firewalld"
}

firewalld_take_back_all() {
  local scope zone kind first second arguments signature
  while read -r scope zone kind first second; do
    arguments=("$first")
    signature=s
    if [[ -n $second ]]; then
      arguments+=("$second")
      signature=ss
    fi
    if [[ $(firewalld_zone "$scope" "$zone" "query$kind" "$signature" "${arguments[@]}") == "b true" ]]; then
      firewalld_zone "$scope" "$zone" "remove$kind" "$signature" "${arguments[@]}" >/dev/null
    fi
  done < <(noted firewalld)
  firewalld_tidy
}

# Somebody has stopped it since: it stays stopped, and would come back without our rules.
firewalld_take_back_stored() {
  local scope zone kind first second option
  have firewall-offline-cmd || return 0
  while read -r scope zone kind first second; do
    [[ $scope == permanent ]] || continue
    option=${kind,,}=$first${second:+/$second}
    if firewall-offline-cmd --zone="$zone" --query-"$option" >/dev/null 2>&1; then
      firewall-offline-cmd --zone="$zone" --remove-"$option" >/dev/null
    fi
  done < <(noted firewalld)
}
