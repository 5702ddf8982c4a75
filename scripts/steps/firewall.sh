# shellcheck shell=bash
# The host's firewall: `open` the cluster's ports, `disable` the firewall, or `leave` it alone.
# Each rule is recorded before it is added, so that exactly these rules are removed later.
# Values: FIREWALL, and those of lib/firewall.sh.

source lib/firewall.sh

create() {
  local active
  need_record
  stop_firewall_job
  case $FIREWALL in
    leave) say "unchanged, as configured" ;;
    disable) disable_firewall ;;
    open)
      start_stopped_firewalls
      active=$(active_firewall)
      if [[ -n $active ]]; then
        open_firewall "$active"
      else
        say "neither firewalld nor ufw is active"
        warn_of_other_rules
      fi
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

# open_firewall ACTIVE: only what differs changes, in an order without a gap. After a host was added, that is a rule per
# port.
open_firewall() {
  local wanted missing leaving
  wanted=$(wanted_rules "$1")
  missing=$(missing_rules "$1" "$wanted")
  if [[ -n $missing ]]; then
    # All at once: `note` writes the whole file for each line.
    put_file "$RECORD/$1" 0600 < <(
      noted "$1"
      comm -23 <(printf '%s\n' "$missing") <(noted "$1" | sort -u)
    )
    "${1}_add" "$missing"
  fi
  say "$1 lets in the cluster's hosts, its pods and the configured sources"
  [[ -n $(unwanted_rules "$1" "$wanted") ]] || return 0
  leaving=$(leaving_hosts)
  if [[ -z $leaving ]]; then
    remove_unwanted_rules
  else
    say "rules that the cluster no longer needs are removed once these nodes have left it: ${leaving//$'\n'/, }"
    remove_unwanted_rules_later
  fi
}

remove_unwanted_rules() {
  local active wanted unwanted kept
  active=$(active_firewall)
  [[ -n $active ]] || return 0
  wanted=$(wanted_rules "$active")
  unwanted=$(unwanted_rules "$active" "$wanted")
  [[ -n $unwanted ]] || return 0
  "${active}_remove" "$unwanted"
  kept=$(comm -12 <(printf '%s\n' "$wanted") <(noted "$active" | sort -u))
  put_file "$RECORD/$active" 0600 < <(printf '%s' "${kept:+$kept$'\n'}")
  say "removed $(wc -l <<<"$unwanted") rule(s) of $active that the cluster no longer needs"
}

# A drain can take hours if a disruption budget forbids it, so this doesn't wait. If the host reboots before the job
# ends, check.sh reports the rules that are left.
remove_unwanted_rules_later() {
  put_file "$HOME_DIR/$FIREWALL_JOB.sh" 0600 < <(
    declare -f
    declare -p PATH HOST STEP OWNER ROOT HOME_DIR RECORD LOCK LOCK_SECONDS CHECKSUMS FIREWALLD_BUS FIREWALLD_PATH \
      ROLE ADDRESS POD_SUBNET POD_NETWORK HOST_SOURCES API_SOURCES NODE_PORT_SOURCES
    cat <<'JOB'
set -eEuo pipefail
export PATH LC_ALL=C
exec 8<> <(:)
changed=false
wait_for 86400 "nodes to leave the cluster" nobody_leaves
run_step remove_unwanted_rules
JOB
  )
  systemd-run --quiet --collect --unit="$FIREWALL_JOB" bash "$HOME_DIR/$FIREWALL_JOB.sh"
}

nobody_leaves() { [[ -z $(leaving_hosts) ]]; }

# Rules that somebody wrote by hand aren't changed. Those that may reject the cluster's traffic are printed: to the
# host, and between its interfaces, such as from a pod to another host.
warn_of_other_rules() {
  local rules
  rules=$({ nft_rejections; iptables_rejections; } | sed -n '1,4p')
  [[ -z $rules ]] ||
    say "existing rules may block the cluster's traffic (docs/own-machines.md lists what it needs): ${rules//$'\n'/; }"
}

# A policy in iptables' own FORWARD, which Docker sets, is left out: flannel appends rules to that chain that accept the
# pods' traffic. A policy in another table's chain applies whatever flannel accepts.
nft_rejections() {
  have nft || return 0
  nft list ruleset 2>/dev/null | awk '
    /^table / {table = $2 " " $3}
    /^[[:space:]]*chain / {hook = ""; name = $2}
    / hook (input|forward) / {
      hook = / hook input / ? "input" : "forward"
      if (/policy drop/ && !(hook == "forward" && table == "ip filter")) print "chain " name " (" hook "): policy drop"
    }
    hook != "" && /[[:space:]](drop|reject)/ && !/ hook / && !/invalid/ {
      sub("^[[:space:]]*", ""); print "chain " name " (" hook "): " $0
    }' || :
}

# Rules of the older iptables, which nft doesn't show, or all of iptables if nft isn't installed.
iptables_rejections() {
  local save=iptables-save
  if [[ -s $ROOT/proc/net/ip_tables_names ]] && have iptables-legacy-save; then
    save=iptables-legacy-save
  elif have nft || ! have iptables-save; then
    return 0
  fi
  "$save" -t filter 2>/dev/null | awk '
    /^:INPUT DROP/ {print "chain INPUT: policy drop"}
    /^-A (INPUT|FORWARD) .*-j (DROP|REJECT)/ && !/INVALID/ {sub("^-A ", ""); print "chain " $0}' || :
}
