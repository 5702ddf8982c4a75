# shellcheck shell=bash
# Restores the host's firewall.

source lib/step.sh
source lib/record.sh
source lib/firewalld.sh
source lib/ufw.sh

restore_firewall() {
  stop_firewall_job
  # Before the rest: rules can only be removed from a firewalld that is running.
  start_stopped_firewalls
  restore_firewalld
  remove_unchanged_zones
  restore_ufw
}

# Removes what firewalld_add added. The list of additions is deleted afterwards: querying firewalld again takes a
# minute on a slow host, and a step that opens the ports again creates a new list.
restore_firewalld() {
  [[ -n $(noted firewalld) ]] || return 0
  if unit_active firewalld; then
    restore_running_firewalld
  else
    restore_stopped_firewalld
  fi
  rm -f "$RECORD/firewalld"
}

restore_running_firewalld() {
  firewalld_remove "$(noted firewalld)"
  reload_firewalld
}

# Somebody has stopped firewalld since. It stays stopped; only its stored configuration is cleaned up.
restore_stopped_firewalld() {
  local scope zone kind argument option
  have firewall-offline-cmd || return 0
  while read -r scope zone kind argument; do
    [[ $scope == permanent ]] || continue
    case $kind in
      RichRule) option=rich-rule=$argument ;;
      Port) option=port=${argument/ //} ;;
      *) option=${kind,,}=$argument ;;
    esac
    if firewall-offline-cmd --zone="$zone" --query-"$option" >/dev/null 2>&1; then
      firewall-offline-cmd --zone="$zone" --remove-"$option" >/dev/null
    fi
  done < <(noted firewalld)
}

# firewalld keeps the chains of zones that are no longer used, and after a restart (seen with 2.3) also the rules that
# lead to them, until it is reloaded.
reload_firewalld() {
  if firewalld_all_permanent; then
    firewall-cmd --quiet --reload
  else
    say "firewalld has active rules that aren't stored, so it isn't reloaded: unused chains of the cluster stay until \
the next reload"
  fi
}

# Whether everything active is stored too, so that a reload loses nothing. Interfaces don't count: firewalld keeps their
# zones across a reload. The iptables backend would flush all rules, ours or not. Direct rules and ipsets aren't
# compared: if there are any, there is no reload.
firewalld_all_permanent() {
  local list backend
  backend=$(busctl --system get-property "$FIREWALLD_BUS" "$FIREWALLD_PATH/config" "$FIREWALLD_BUS.config" \
    FirewallBackend)
  [[ $backend == 's "nftables"' ]] || return 1
  for list in direct.getAllChains direct.getAllRules direct.getAllPassthroughs ipset.getIPSets; do
    [[ $(firewalld_call "$list") == *" 0" ]] || return 1
  done
  for list in --list-all-zones --list-all-policies; do
    cmp -s <(firewalld_list "$list") <(firewalld_list --permanent "$list") || return 1
  done
}

# The active `public (default, active)` is listed as `public (default)` among the stored zones.
firewalld_list() { firewall-cmd "$@" | sed -E 's/^([^ ]+) \(.*\)$/\1/; /^  interfaces:/d'; }

# Removes the stored copies of zones that firewalld created for our changes and that now equal the package's own.
remove_unchanged_zones() {
  local file packaged
  for file in /etc/firewalld/zones/*.xml; do
    packaged=/usr/lib/firewalld/zones/${file##*/}
    if [[ -e $file && -e $packaged ]] && ! file_recorded "$file" &&
      cmp -s <(tr -d '[:space:]' <"$file") <(tr -d '[:space:]' <"$packaged"); then
      rm -f "$file"
    fi
  done
  for file in /etc/firewalld/zones/*.xml.old; do
    if [[ -e $file ]] && ! file_recorded "$file"; then rm -f "$file"; fi
  done
}

restore_ufw() { if have ufw; then ufw_remove "$(noted ufw)"; fi; }
