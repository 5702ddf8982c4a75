# shellcheck shell=bash
# The host's package manager.

source lib/step.sh

# Prints `deb` or `rpm`. os-release comes first: Fedora packages apt-get, and Debian packages dnf.
package_family() {
  local ids
  ids=$(sed -nE 's/^(ID|ID_LIKE)=//p' "$ROOT/etc/os-release" | tr -s '"\n' ' ')
  if [[ " $ids " == *' fedora '* || " $ids " == *' rhel '* ]] && have dnf; then
    echo rpm
  elif have apt-get; then
    echo deb
  elif have dnf; then
    echo rpm
  else
    fail "neither apt-get nor dnf is installed" "use a Debian, Ubuntu, Fedora or Enterprise Linux host"
  fi
}

# installed_version PACKAGE: prints its version without the revision; nothing if it isn't installed.
installed_version() {
  local found
  if [[ $(package_family) == deb ]]; then
    found=$(dpkg-query -W -f '${db:Status-Abbrev}|${Version}' "$1" 2>/dev/null) || found=
    [[ $found == ?i*'|'* ]] || found=
    found=${found#*|}
  else
    found=$(rpm -q --qf '%{VERSION}' "$1" 2>/dev/null) || found=
  fi
  printf '%s' "${found%%-*}"
}

# Completes an interrupted dpkg run; until then dpkg refuses to do anything else. Waits if another package manager is
# running, such as for a new host's first updates: apt-get can do that itself, dpkg can't.
finish_dpkg() {
  local dpkg_error=
  wait_for 300 "another package manager" dpkg_finished && [[ -z $dpkg_error ]] ||
    fail "dpkg can't complete an interrupted run: $(tail -n 1 <<<"$dpkg_error")" \
      "run dpkg --configure -a on $HOST to see the full output"
}

# Also succeeds if waiting wouldn't help: `dpkg_error` then says why.
dpkg_finished() {
  if [[ -z $(ls -A /var/lib/dpkg/updates) && -z $(dpkg --audit) ]]; then return; fi
  if dpkg_error=$(dpkg --configure -a 2>&1); then
    dpkg_error=
  else
    [[ $dpkg_error != *'locked by another process'* ]]
  fi
}
