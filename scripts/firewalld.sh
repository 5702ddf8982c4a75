# shellcheck shell=bash
# firewalld by its D-Bus interface: the same calls that firewall-cmd makes, without starting
# Python for each (some thirty a host). Scope `permanent` is the stored rules, `runtime` those
# in force. https://firewalld.org/documentation/man-pages/firewalld.dbus.html

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
    busctl --system call "$FIREWALLD" "/${FIREWALLD//./\/}" "$FIREWALLD.zone" "$method" "s$signature" "$zone" "$@"
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
    if ! recorded_file "$file" && cmp -s <(tr -d '[:space:]' <"$file") <(tr -d '[:space:]' <"/usr/lib/firewalld/zones/$name"); then
      rm -f "$file"
    fi
  done
  for file in /etc/firewalld/zones/*.xml.old; do
    if [[ -e $file ]] && ! recorded_file "$file"; then rm -f "$file"; fi
  done
}

# firewalld_take_back: every addition that was noted and is still there.
firewalld_take_back() {
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
}
