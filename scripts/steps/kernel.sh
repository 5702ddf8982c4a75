# shellcheck shell=bash
# What the kernel must be: modules, sysctls, no swap, SELinux permissive where it is.
# Values: MODE and SCHEDULER (kube-proxy's), BACKEND (flannel's).

source lib/step.sh

readonly MODULES_FILE=/etc/modules-load.d/kubeadm-ipvs.conf
readonly SYSCTL_FILE=/etc/sysctl.d/99-kubeadm-ipvs.conf

create() {
  need_record
  load_modules
  set_sysctls
  stop_swap
  relax_selinux
  say "modules, sysctls and swap are as kubelet and IPVS need them"
}

load_modules() {
  local modules=(overlay br_netfilter nf_conntrack) module
  [[ $MODE != ipvs ]] || modules+=(ip_vs "ip_vs_$SCHEDULER")
  [[ $BACKEND != vxlan ]] || modules+=(vxlan)
  { echo "# kubeadm-ipvs: containers, bridged pod traffic, IPVS and its scheduler"
    printf '%s\n' "${modules[@]}"; } | put_file "$MODULES_FILE" 0644 || :
  for module in "${modules[@]}"; do
    module_there "$module" || modprobe "$module" ||
      fail "the module $module can't be loaded" "look at dmesg on $HOST; a hardened kernel may forbid it"
    module_there "$module" || fail "the module $module isn't there after modprobe"
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
    path=/proc/sys/$(tr . / <<<"${setting%%=*}")
    grep -q "^${setting%%=*} " "$RECORD/sysctls" 2>/dev/null || note sysctls "${setting%%=*} $(cat "$path")"
  done
  { echo "# kubeadm-ipvs: pod traffic over the bridge meets iptables, hosts forward, no swapping"
    printf '%s\n' "${settings[@]}"; } | put_file "$SYSCTL_FILE" 0644 || :
  for setting in "${settings[@]}"; do
    path=/proc/sys/$(tr . / <<<"${setting%%=*}")
    [[ $(cat "$path") == "${setting#*=}" ]] || echo "${setting#*=}" >"$path"
  done
}

# Units are masked rather than /etc/fstab edited: that file stays the user's own, and other ways to swap (zram-generator,
# GPT) go by a unit as well.
stop_swap() {
  local unit units=()
  while read -r unit; do
    if [[ $(readlink -f "/etc/systemd/system/$unit") == /dev/null ]]; then
      continue
    elif [[ -e /etc/systemd/system/$unit ]]; then
      hold_unit "$unit"
    else
      note masked "$unit"
      units+=("$unit")
    fi
  done < <(systemctl list-units --type=swap --all --plain --no-legend | awk '$1 ~ /[.]swap$/ {print $1}')
  # They swap on by a program of their own, not by a unit of systemd's kind for it.
  for unit in dphys-swapfile.service zramswap.service zram-config.service armbian-zram-config.service; do
    if systemctl cat "$unit" >/dev/null 2>&1; then hold_unit "$unit"; fi
  done
  # All at once: systemd reads all its units again after each call.
  ((${#units[@]} == 0)) || systemctl mask --quiet "${units[@]}"
  if [[ -n $(sed 1d /proc/swaps) ]]; then swapoff -a; fi
  [[ -z $(sed 1d /proc/swaps) ]] || fail "swap is still on: $(awk 'NR > 1 {print $1}' /proc/swaps | xargs)"
}

# A unit whose file is in /etc can't be masked: the mask would be in that file's place. A condition that doesn't hold
# keeps any unit from starting, whoever wants it. The file that it names is on the root file system: /var may be
# mounted later than swap is turned on.
hold_unit() {
  local folder=/etc/systemd/system/$1.d
  [[ -d $folder ]] || note held-folders "$folder"
  note held-units "$1"
  if put_file "$folder/kubeadm-ipvs.conf" 0644 <<'CONF'
# kubeadm-ipvs: kubelet doesn't start where swap is on
[Unit]
ConditionPathExists=!/etc/modules-load.d/kubeadm-ipvs.conf
CONF
  then
    systemctl daemon-reload
  fi
}

relax_selinux() {
  [[ -r /sys/fs/selinux/enforce ]] || return 0
  if [[ $(cat /sys/fs/selinux/enforce) == 1 ]]; then setenforce 0; fi
  if [[ -f /etc/selinux/config ]] && grep -q '^SELINUX=enforcing' /etc/selinux/config; then
    sed 's/^SELINUX=enforcing/SELINUX=permissive/' /etc/selinux/config | put_file /etc/selinux/config 0644 || :
  fi
}
