# shellcheck shell=bash
# firewalld over D-Bus: the same calls that firewall-cmd makes, without starting Python for each of the thirty or so
# per host. Scope `permanent` is the stored configuration, `runtime` the active one.
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

# firewalld_zone SCOPE ZONE METHOD SIGNATURE ARGUMENT...: calls a method of a zone; prints busctl's output.
firewalld_zone() {
  local scope=$1 zone=$2 method=$3 signature=$4 path
  shift 4
  if [[ $scope == permanent ]]; then
    path=$(busctl --system call "$FIREWALLD_BUS" "$FIREWALLD_PATH/config" "$FIREWALLD_BUS.config" \
      getZoneByName s "$zone")
    path=${path#o \"}
    busctl --system call "$FIREWALLD_BUS" "${path%\"}" "$FIREWALLD_BUS.config.zone" "$method" "$signature" "$@"
  else
    # The runtime addPort also takes a timeout in seconds; 0 is none.
    if [[ $method == addPort ]]; then
      signature+=i
      set -- "$@" 0
    fi
    firewalld_call "zone.$method" "s$signature" "$zone" "$@"
  fi
}

# firewalld_add SCOPE ZONE KIND ARGUMENT...: KIND is Port (with port and protocol), Interface or Source.
# Anything that was already configured isn't recorded, so restoring the host leaves it in place.
firewalld_add() {
  local scope=$1 zone=$2 kind=$3 signature=s
  shift 3
  (($# == 1)) || signature=ss
  [[ $(firewalld_zone "$scope" "$zone" "query$kind" "$signature" "$@") == "b false" ]] || return 0
  note firewalld "$scope $zone $kind $*"
  firewalld_zone "$scope" "$zone" "add$kind" "$signature" "$@" >/dev/null
}

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
