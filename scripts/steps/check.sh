# shellcheck shell=bash
# What on a host is not as it was set up. Reads only, and takes seconds: no program of the cluster is
# asked.
#
# Prints a line `WHAT<tab>SET UP AS<tab>FOUND` for each difference, and each certificate as
# `certificate<tab>PATH<tab>ITS TEXT IN ONE LINE`: their end is judged by who asks.
#
# Values: STACK, VERSION, MANAGE, FIREWALL, MODE, SCHEDULER, SERVICE_ADDRESS (of the API: 10.96.0.1).

source lib/firewalld.sh
source lib/http.sh

locking() { false; }

create() {
  if [[ ! -d $RECORD ]]; then
    differs host "a node of the stack $STACK" "not set up"
    return
  fi
  local owner
  owner=$(sed 's/ .*//' "$HOME_DIR/owner" 2>/dev/null) || owner=nobody
  [[ $owner == "$STACK" ]] || differs host "a node of the stack $STACK" "of the stack $owner"
  [[ -e $HOME_DIR/node.done ]] || differs node finished "half made"
  check_files
  check_kernel
  check_swap
  check_firewall
  check_packages
  check_services
  check_proxy
  certificates
}

differs() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-nothing}"; }

check_files() {
  local sum path
  while read -r sum path; do
    if [[ ! -f $path ]]; then
      differs "$path" "there" "missing"
    elif ! as_remembered "$path"; then
      differs "$path" "as written ($(cut -c 1-8 <<<"$sum"))" "edited on $(date -r "$path" '+%F %T')"
    fi
  done <"$FILES"
}

check_kernel() {
  local name value found
  while read -r name; do
    [[ $name == '#'* ]] || module_there "$name" || differs "module $name" loaded "not loaded"
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
    [[ $(systemctl is-enabled "$unit" 2>/dev/null) == masked ]] || differs "swap unit $unit" masked "comes back at boot"
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
            differs "firewalld, zone $zone ($scope)" "$kind ${arguments[*]}" "not let through"
        done < <(noted firewalld)
      fi
      while read -r rule; do
        grep -qF "ufw $rule" < <(ufw show added) || differs ufw "$rule" "not let through"
      done < <(noted ufw)
      ;;
  esac
}

check_packages() {
  [[ $MANAGE == true ]] || return 0
  local package found held kind
  kind=$(family)
  if [[ $kind == deb ]]; then held=$(apt-mark showhold); fi
  for package in kubelet kubeadm kubectl; do
    if [[ $kind == deb ]]; then
      found=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || :)
      grep -qx "$package" <<<"$held" || differs "package $package" held "not held"
    else
      # Held by the repository's own file, which is among those that are looked at.
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

# The mode in which kube-proxy says that it runs, and what the kernel balances with.
check_proxy() {
  local live schedulers
  live=$(fetch 127.0.0.1:10249 /proxyMode || :)
  [[ $live == "$MODE" ]] || differs "kube-proxy's mode" "$MODE" "${live:-no answer}"
  if [[ $MODE == ipvs ]] && have ipvsadm; then
    schedulers=$(ipvsadm -Sn | awk -v place="$SERVICE_ADDRESS:443" '$1 == "-A" && $3 == place {print $5}')
    [[ $schedulers == "$SCHEDULER" ]] || differs "IPVS scheduler" "$SCHEDULER" "$schedulers"
  fi
}

certificates() {
  local path
  for path in /etc/kubernetes/pki/*.crt /etc/kubernetes/pki/etcd/*.crt /var/lib/kubelet/pki/kubelet-client-current.pem; do
    [[ ! -r $path ]] || printf 'certificate\t%s\t%s\n' "$path" "$(certificate_text <"$path")"
  done
  for path in /etc/kubernetes/{admin,super-admin,controller-manager,scheduler}.conf; do
    [[ ! -r $path ]] ||
      printf 'certificate\t%s\t%s\n' "$path" "$(awk '$1 == "client-certificate-data:" {print $2}' "$path" | base64 -d | certificate_text)"
  done
}

# The first certificate of what is read, which may hold the key as well.
certificate_text() { awk '/-BEGIN CERTIFICATE-/ {on = !seen++; next} /-END CERTIFICATE-/ {on = 0} on' | tr -d '\n'; }
