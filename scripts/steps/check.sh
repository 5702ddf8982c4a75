# shellcheck shell=bash
# Finds differences between a host and its setup. Read-only; takes seconds, because it doesn't query the cluster.
#
# Prints a line `SUBJECT<tab>EXPECTED<tab>FOUND` for each difference, and each certificate as
# `certificate<tab>PATH<tab>BASE64 IN ONE LINE`. The caller decides which certificates expire too soon.
#
# Values: STACK, VERSION, MANAGE, FIREWALL, MODE, SCHEDULER, SERVICE_ADDRESS (the API's: 10.96.0.1).

source lib/firewalld.sh
source lib/http.sh
source lib/packages.sh

locking() { false; }

create() {
  if [[ ! -d $RECORD ]]; then
    differs host "a node of the stack $STACK" "not set up"
    return
  fi
  local owner
  owner=$(sed 's/ .*//' "$HOME_DIR/owner" 2>/dev/null) || owner=nobody
  [[ $owner == "$STACK" ]] || differs host "a node of the stack $STACK" "of the stack $owner"
  [[ -e $HOME_DIR/node.done ]] || differs node finished unfinished
  check_files
  check_kernel
  check_swap
  check_firewall
  check_packages
  check_services
  check_proxy
  print_certificates
}

differs() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-nothing}"; }

check_files() {
  local sum path
  while read -r sum path; do
    if [[ ! -f $path ]]; then
      differs "$path" present missing
    elif ! checksum_matches "$path"; then
      differs "$path" "as written ($(cut -c 1-8 <<<"$sum"))" "edited on $(date -r "$path" '+%F %T')"
    fi
  done <"$CHECKSUMS"
}

check_kernel() {
  local name value found
  while read -r name; do
    [[ $name == '#'* ]] || module_loaded "$name" || differs "module $name" loaded "not loaded"
  done < <(cat /etc/modules-load.d/kubeadm-ipvs.conf 2>/dev/null)
  while IFS='=' read -r name value; do
    [[ $name != '#'* ]] || continue
    found=$(cat "/proc/sys/$(tr . / <<<"$name")" 2>/dev/null || :)
    [[ $found == "$value" ]] || differs "sysctl $name" "$value" "$found"
  done < <(cat /etc/sysctl.d/99-kubeadm-ipvs.conf 2>/dev/null)
  [[ ! -r /sys/fs/selinux/enforce || $(cat /sys/fs/selinux/enforce) == 0 ]] || differs SELinux permissive enforcing
}

check_swap() {
  local unit
  [[ -z $(sed 1d /proc/swaps) ]] || differs swap off "on: $(awk 'NR > 1 {print $1}' /proc/swaps | xargs)"
  while read -r unit; do
    [[ $(systemctl is-enabled "$unit" 2>/dev/null) == masked ]] || differs "swap unit $unit" masked "not masked"
  done < <(noted masked)
}

check_firewall() {
  local unit scope zone kind first second arguments signature rule
  case $FIREWALL in
    disable)
      for unit in firewalld ufw; do
        if unit_active "$unit"; then differs "$unit" stopped running; fi
      done
      ;;
    open)
      if unit_active firewalld; then
        while read -r scope zone kind first second; do
          arguments=("$first")
          signature=s
          if [[ -n $second ]]; then
            arguments+=("$second")
            signature=ss
          fi
          [[ $(firewalld_zone "$scope" "$zone" "query$kind" "$signature" "${arguments[@]}") == "b true" ]] ||
            differs "firewalld, zone $zone ($scope)" "$kind ${arguments[*]}" "not allowed"
        done < <(noted firewalld)
      fi
      while read -r rule; do
        grep -qF "ufw $rule" < <(ufw show added) || differs ufw "$rule" "not allowed"
      done < <(noted ufw)
      ;;
  esac
}

check_packages() {
  [[ $MANAGE == true ]] || return 0
  local package found held family
  family=$(package_family)
  if [[ $family == deb ]]; then held=$(apt-mark showhold); fi
  for package in kubelet kubeadm kubectl; do
    if [[ $family == deb ]]; then
      found=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || :)
      grep -qx "$package" <<<"$held" || differs "package $package" held "not held"
    else
      # Held by the repository's file, which check_files checks.
      found=$(rpm -q --qf '%{VERSION}-%{RELEASE}' "$package" 2>/dev/null) || found=
    fi
    [[ $found == "$VERSION"-* ]] || differs "package $package" "$VERSION" "$found"
  done
}

check_services() {
  local unit
  for unit in containerd kubelet; do
    unit_active "$unit" || differs "$unit" running "$(systemctl is-active "$unit" || :)"
    systemctl is-enabled --quiet "$unit" || differs "$unit" "started at boot" "not started at boot"
  done
}

# kube-proxy's live mode, and the scheduler that the kernel uses.
check_proxy() {
  local live schedulers
  live=$(fetch 127.0.0.1:10249 /proxyMode || :)
  [[ $live == "$MODE" ]] || differs "kube-proxy's mode" "$MODE" "${live:-no response}"
  if [[ $MODE == ipvs ]] && have ipvsadm; then
    schedulers=$(ipvsadm -Sn | awk -v server="$SERVICE_ADDRESS:443" '$1 == "-A" && $3 == server {print $5}')
    [[ $schedulers == "$SCHEDULER" ]] || differs "IPVS scheduler" "$SCHEDULER" "$schedulers"
  fi
}

print_certificates() {
  local path
  for path in /etc/kubernetes/pki/*.crt /etc/kubernetes/pki/etcd/*.crt \
    /var/lib/kubelet/pki/kubelet-client-current.pem; do
    [[ ! -r $path ]] || printf 'certificate\t%s\t%s\n' "$path" "$(certificate_text <"$path")"
  done
  for path in /etc/kubernetes/{admin,super-admin,controller-manager,scheduler}.conf; do
    [[ ! -r $path ]] || printf 'certificate\t%s\t%s\n' "$path" \
      "$(awk '$1 == "client-certificate-data:" {print $2}' "$path" | base64 -d | certificate_text)"
  done
}

# Prints the first certificate of standard input, which may contain the private key too.
certificate_text() { awk '/-BEGIN CERTIFICATE-/ {on = !seen++; next} /-END CERTIFICATE-/ {on = 0} on' | tr -d '\n'; }
