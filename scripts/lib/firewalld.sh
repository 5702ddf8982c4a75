# shellcheck shell=bash
# firewalld over D-Bus: the same calls that firewall-cmd makes, without starting Python for each of the dozens per
# host. Scope `permanent` is the stored configuration, `runtime` the active one.
# https://firewalld.org/documentation/man-pages/firewalld.dbus.html

source lib/step.sh

readonly FIREWALLD_BUS=org.fedoraproject.FirewallD1
readonly FIREWALLD_PATH=/org/fedoraproject/FirewallD1

# firewalld_call [INTERFACE.]METHOD [SIGNATURE ARGUMENT...]: calls the running firewall; prints busctl's output.
firewalld_call() {
  local interface=$FIREWALLD_BUS method=$1
  shift
  [[ $method != *.* ]] || interface+=.${method%.*}
  busctl --system call "$FIREWALLD_BUS" "$FIREWALLD_PATH" "$interface" "${method##*.}" "$@"
}

# firewalld_zone SCOPE ZONE METHOD [SIGNATURE ARGUMENT...]: calls a method of a zone; prints busctl's output.
firewalld_zone() {
  local scope=$1 zone=$2 method=$3 signature=${4:-} path
  shift $(($# < 4 ? 3 : 4))
  if [[ $scope == permanent ]]; then
    path=$(busctl --system call "$FIREWALLD_BUS" "$FIREWALLD_PATH/config" "$FIREWALLD_BUS.config" \
      getZoneByName s "$zone")
    path=${path#o \"}
    busctl --system call "$FIREWALLD_BUS" "${path%\"}" "$FIREWALLD_BUS.config.zone" "$method" \
      ${signature:+"$signature"} "$@"
  else
    # The runtime method also takes a timeout in seconds; 0 is none.
    if [[ $method == addRichRule ]]; then
      signature+=i
      set -- "$@" 0
    fi
    firewalld_call "zone.$method" "s$signature" "$zone" "$@"
  fi
}

# A rule in the record is a line `SCOPE ZONE KIND ARGUMENT`, where KIND is RichRule, Interface or Source. Earlier
# versions of this program also wrote the kind Port, with port and protocol. These two take such lines.

firewalld_add() {
  local left scope zone kind argument
  firewalld_store add "$1"
  while read -r scope zone kind argument; do
    [[ -z $scope ]] || firewalld_zone "$scope" "$zone" "add$kind" s "$argument" >/dev/null
  done <<<"$left"
}

# Removes those of the rules that are there.
firewalld_remove() {
  local left scope zone kind argument signature
  firewalld_store remove "$1"
  while read -r scope zone kind argument; do
    [[ -n $scope ]] || continue
    signature=s
    set -- "$argument"
    if [[ $kind == Port ]]; then
      signature=ss
      set -- "${argument% *}" "${argument#* }"
    fi
    if [[ $(firewalld_zone "$scope" "$zone" "query$kind" "$signature" "$@") == "b true" ]]; then
      firewalld_zone "$scope" "$zone" "remove$kind" "$signature" "$@" >/dev/null
    fi
  done <<<"$left"
}

# firewalld_store add|remove RULES: changes the stored rich rules of each zone in one call, and sets `left` to the other
# rules. firewalld writes the zone's whole file for each call: for 300 hosts, one by one, that takes minutes.
firewalld_store() {
  local zone rules present
  local -a stored
  left=$(grep -v '^permanent [^ ]* RichRule ' <<<"$2" || :)
  while read -r zone; do
    rules=$(grep "^permanent $zone RichRule " <<<"$2")
    present=$(firewalld_present permanent "$zone" RichRule)
    # busctl has escaped a character of the user's own rule, which mustn't be written back.
    if [[ $present == *\\* ]]; then
      left+=$'\n'$rules
      continue
    fi
    if [[ $1 == add ]]; then
      rules=$present$'\n'$rules
    else
      rules=$(awk 'NR == FNR {gone[$0]; next} !($0 in gone)' <(printf '%s\n' "$rules") <(printf '%s\n' "$present"))
    fi
    mapfile -t stored < <(sed -n "s#^permanent $zone RichRule ##p" <<<"$rules")
    firewalld_zone permanent "$zone" update2 'a{sv}' 1 rules_str as "${#stored[@]}" "${stored[@]}"
  done < <(sed -nE 's/^permanent ([^ ]+) RichRule .*/\1/p' <<<"$2" | sort -u)
}

# firewalld_present SCOPE ZONE KIND: the zone's rules of a kind, as lines of the record.
firewalld_present() {
  local found
  found=$(firewalld_zone "$1" "$2" "get$3s")
  # busctl prints the number of strings, then each in quotes.
  { grep -oE '"([^"\\]|\\.)*"' <<<"$found" || :; } | sed -E "s/^\"(.*)\"$/$1 $2 $3 \1/; s/\\\\\"/\"/g"
}

# The job that removes rules once hosts have left the cluster (steps/firewall.sh). The unit exists only while the job runs.
readonly FIREWALL_JOB=kubeadm-ipvs-firewall
stop_firewall_job() { systemctl stop "$FIREWALL_JOB.service" 2>/dev/null || :; }

# Starts and enables the firewalls that `firewall: disable` stopped and disabled.
start_stopped_firewalls() {
  local unit enabled active
  while read -r unit enabled active; do
    if ! systemctl cat "$unit" >/dev/null 2>&1; then
      say "$unit was stopped for the cluster and is no longer installed"
      continue
    fi
    if [[ $enabled == enabled ]] && ! systemctl is-enabled --quiet "$unit"; then systemctl enable --quiet "$unit"; fi
    if [[ $active == active ]] && ! unit_active "$unit"; then systemctl start "$unit"; fi
  done < <(noted firewalls-stopped)
  rm -f "$RECORD/firewalls-stopped"
}
