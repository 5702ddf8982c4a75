# shellcheck shell=bash
# Finds differences between a host and its setup. Read-only; takes seconds, because it doesn't query the cluster.
#
# Prints a line `SUBJECT<tab>EXPECTED<tab>FOUND` for each difference, and each certificate as
# `certificate<tab>PATH<tab>BASE64 IN ONE LINE`. The caller decides which certificates expire too soon.
#
# Values: STACK (with its ID, as on its hosts), VERSION, MANAGE, FIREWALL and those of lib/firewall.sh, MODE, SCHEDULER,
# SERVICE_ADDRESS (the API's: 10.96.0.1).

source lib/firewall.sh
source lib/http.sh
source lib/packages.sh

locking() { false; }

create() {
  if [[ ! -d $RECORD ]]; then
    differs host "a node of the stack ${STACK% *}" "not set up"
    return
  fi
  local owner
  owner=$(cat "$HOME_DIR/owner" 2>/dev/null) || owner=nobody
  # Earlier versions of this program wrote the stack's name only.
  [[ $owner == "$STACK" || $owner == "${STACK% *}" ]] ||
    differs host "a node of the stack $STACK" "${owner:+of the stack }${owner:-$HOME_DIR/owner is empty}"
  [[ -e $HOME_DIR/node.done ]] || differs node finished unfinished
  check_files
  check_kernel
  check_swap
  check_firewall
  check_pod_routes
  check_packages
  check_services
  check_proxy
  print_certificates
}

differs() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-nothing}"; }

check_files() {
  local sum path
  if [[ ! -s $CHECKSUMS ]] || grep -qvE '^[0-9a-f]{64}  /' "$CHECKSUMS"; then
    differs "$CHECKSUMS" "a checksum in each line" "empty or damaged"
    return
  fi
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
  local unit active wanted missing unwanted rule
  case $FIREWALL in
    disable)
      for unit in firewalld ufw; do
        if unit_active "$unit"; then differs "$unit" stopped running; fi
      done
      ;;
    open)
      active=$(active_firewall)
      [[ -n $active ]] || return 0
      wanted=$(wanted_rules "$active")
      missing=$(missing_rules "$active" "$wanted")
      unwanted=$(unwanted_rules "$active" "$wanted")
      while read -r rule; do
        [[ -z $rule ]] || differs "$(rule_place "$active" "$rule")" "$(rule_text "$active" "$rule")" "not allowed"
      done <<<"$missing"
      while read -r rule; do
        [[ -z $rule ]] || differs "$(rule_place "$active" "$rule")" "not allowed" "$(rule_text "$active" "$rule")"
      done <<<"$unwanted"
      ;;
  esac
}

# The parts of a rule in the record (see lib/firewalld.sh and lib/ufw.sh).
rule_place() {
  local scope zone
  read -r scope zone _ <<<"$2"
  if [[ $1 == ufw ]]; then echo ufw; else echo "firewalld, zone $zone ($scope)"; fi
}
rule_text() {
  if [[ $1 == ufw ]]; then echo "$2"; else cut -d ' ' -f 3- <<<"${2/ RichRule / }"; fi
}

# Addresses and routes that NetworkManager or systemd-networkd removes don't come back: flannel adds them once.
check_pod_routes() {
  local interface nodes missing
  local -a routes
  # On any interface: VXLAN's entries stay after a change to host-gw.
  mapfile -t routes < <(ip -4 route show root "$POD_SUBNET" | awk '$2 == "via" {print $1}')
  while read -r interface; do
    [[ -e $ROOT/sys/class/net/$interface ]] || continue
    [[ -n $(ip -4 -o address show dev "$interface") ]] || differs "$interface" "an address" "none"
    # flannel's VXLAN still has an entry for each node, with its host's address.
    nodes=$(bridge fdb show dev "$interface" 2>/dev/null | awk '/ dst / {n++} END {print n + 0}') || continue
    ((nodes > ${#routes[@]})) || continue
    missing=$(comm -23 <(ip -4 neigh show dev "$interface" nud permanent | awk '{print $1}' | sort) \
      <(printf '%s\n' "${routes[@]%/*}" | sort) | xargs)
    differs "routes to other nodes' pods" "$nodes" "${#routes[@]}${missing:+, none to $missing}"
  done < <(pod_network interface)
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
