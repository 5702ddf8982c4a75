# shellcheck shell=bash
# Prepares the kernel: modules, sysctls, no swap, SELinux, if present, in permissive mode, and links that network
# managers leave alone.
# Values: MODE and SCHEDULER (kube-proxy's), NETWORK_MODULES (the pod network's, separated by spaces), POD_NETWORK.

source lib/step.sh
source lib/network_managers.sh

readonly MODULES_FILE=$ROOT/etc/modules-load.d/kubeadm-ipvs.conf
readonly SYSCTL_FILE=$ROOT/etc/sysctl.d/99-kubeadm-ipvs.conf
readonly UNITS=$ROOT/etc/systemd/system
readonly SELINUX_CONFIG=$ROOT/etc/selinux/config

create() {
  need_record
  load_modules
  set_sysctls
  stop_swap
  relax_selinux
  keep_network_managers_away
  say "modules, sysctls and swap are set for kubelet and IPVS"
}

load_modules() {
  local modules=(overlay br_netfilter nf_conntrack) module
  [[ $MODE != ipvs ]] || modules+=(ip_vs "ip_vs_$SCHEDULER")
  local -a network
  read -ra network <<<"$NETWORK_MODULES"
  modules+=("${network[@]}")
  put_file "$MODULES_FILE" 0644 < <(
    echo "# kubeadm-ipvs: containers, bridged pod traffic, IPVS and its scheduler"
    printf '%s\n' "${modules[@]}"
  )
  for module in "${modules[@]}"; do
    module_loaded "$module" || modprobe "$module" ||
      fail "can't load the module $module" "check dmesg on $HOST; a hardened kernel may forbid it"
    module_loaded "$module" || fail "the module $module isn't loaded after modprobe"
  done
}

set_sysctls() {
  local settings=(
    net.bridge.bridge-nf-call-iptables=1
    net.bridge.bridge-nf-call-ip6tables=1
    net.ipv4.ip_forward=1
    vm.swappiness=0
  ) setting path
  for setting in "${settings[@]}"; do
    path=$ROOT/proc/sys/$(tr . / <<<"${setting%%=*}")
    grep -q "^${setting%%=*} " "$RECORD/sysctls" 2>/dev/null || note sysctls "${setting%%=*} $(cat "$path")"
  done
  put_file "$SYSCTL_FILE" 0644 < <(
    echo "# kubeadm-ipvs: iptables sees bridged pod traffic, hosts forward, no swapping"
    printf '%s\n' "${settings[@]}"
  )
  for setting in "${settings[@]}"; do
    path=$ROOT/proc/sys/$(tr . / <<<"${setting%%=*}")
    [[ $(cat "$path") == "${setting#*=}" ]] || echo "${setting#*=}" >"$path"
  done
}

# Masks the units instead of editing /etc/fstab: the file stays the user's, and other kinds of swap (zram-generator,
# GPT) have units too.
stop_swap() {
  local unit units=()
  while read -r unit; do
    if [[ $(readlink -f "$UNITS/$unit") == /dev/null ]]; then
      continue
    elif [[ -e $UNITS/$unit ]]; then
      hold_unit "$unit"
    else
      note masked "$unit"
      units+=("$unit")
    fi
  done < <(systemctl list-units --type=swap --all --plain --no-legend | awk '$1 ~ /[.]swap$/ {print $1}')
  # Services that turn on swap with a program of their own instead of a swap unit.
  for unit in dphys-swapfile.service zramswap.service zram-config.service armbian-zram-config.service; do
    if systemctl cat "$unit" >/dev/null 2>&1; then hold_unit "$unit"; fi
  done
  # All in one call, because systemd reloads all units after each.
  ((${#units[@]} == 0)) || systemctl mask --quiet "${units[@]}"
  if [[ -n $(swaps) ]]; then swapoff -a; fi
  [[ -z $(swaps) ]] || fail "swap is still on: $(swaps | xargs)"
}

swaps() { awk 'NR > 1 {print $1}' "$ROOT/proc/swaps"; }

# Keeps a unit from starting, whatever requires it, with a condition that isn't met. A unit with a file in /etc can't be
# masked: the mask would replace the file. The condition's file must be on the root file system, because /var may be
# mounted after swap is turned on.
hold_unit() {
  local folder=$UNITS/$1.d
  [[ -d $folder ]] || note held-folders "$folder"
  note held-units "$1"
  put_file "$folder/kubeadm-ipvs.conf" 0644 <<'CONF'
# kubeadm-ipvs: kubelet doesn't start while swap is on
[Unit]
ConditionPathExists=!/etc/modules-load.d/kubeadm-ipvs.conf
CONF
  if $changed; then systemctl daemon-reload; fi
}

relax_selinux() {
  local config
  [[ -r $ROOT/sys/fs/selinux/enforce ]] || return 0
  if [[ $(cat "$ROOT/sys/fs/selinux/enforce") == 1 ]]; then setenforce 0; fi
  if [[ -f $SELINUX_CONFIG ]] && grep -q '^SELINUX=enforcing' "$SELINUX_CONFIG"; then
    config=$(sed 's/^SELINUX=enforcing/SELINUX=permissive/' "$SELINUX_CONFIG")
    put_file "$SELINUX_CONFIG" 0644 <<<"$config"
  fi
}
