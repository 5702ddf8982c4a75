# shellcheck shell=bash
# Restores kernel settings, swap, modules, SELinux and network managers.

source lib/step.sh
source lib/record.sh
source lib/network_managers.sh

readonly HASHSIZE=$ROOT/sys/module/nf_conntrack/parameters/hashsize

restore_kernel() {
  local units
  rm -f "$ROOT"/etc/{modules-load.d,tmpfiles.d}/kubeadm-ipvs.conf "$ROOT/etc/sysctl.d/99-kubeadm-ipvs.conf"
  restore_sysctls
  if [[ -s $RECORD/hashsize && -w $HASHSIZE ]]; then cat "$RECORD/hashsize" >"$HASHSIZE"; fi
  mapfile -t units < <(noted masked)
  ((${#units[@]} == 0)) || systemctl unmask --quiet "${units[@]}"
  restore_swap
  restore_network_managers
  unload_modules
  if [[ -s $RECORD/selinux ]]; then
    [[ $(cat /sys/fs/selinux/enforce) == "$(cat "$RECORD/selinux")" ]] || setenforce "$(cat "$RECORD/selinux")"
    restore_file /etc/selinux/config
  fi
}

# A value stays if one of the host's own files sets it by now, for example for a VPN or another container runtime.
restore_sysctls() {
  local key value now keeps_forwarding=
  while read -r key value; do
    [[ -e $ROOT/proc/sys/$key ]] || continue
    now=$(<"$ROOT/proc/sys/$key")
    if [[ $now == "$value" || ($keeps_forwarding && $key == */forwarding) ]]; then
      continue
    elif set_by_host "$key" "$now"; then
      say "$key stays $now: a configuration file of the host sets it"
      [[ $key != */ip_forward ]] || keeps_forwarding=yes
    else
      echo "$value" >"$ROOT/proc/sys/$key"
    fi
  done < <(recorded_sysctls)
}

# set_by_host KEY VALUE: whether one of sysctl's files sets KEY to VALUE.
set_by_host() {
  awk -F= -v key="$1" -v value="$2" '
    {gsub("[[:space:]]", ""); sub("^-", "", $1); gsub("[.]", "/", $1)}
    $1 == key {last = $2}
    END {exit last "" != value ""}' < <(sysctl_files)
}
sysctl_files() {
  cat "$ROOT"/{usr/lib,run,etc}/sysctl.d/*.conf "$ROOT/etc/sysctl.conf" 2>/dev/null || :
}

# Recorded keys (with slashes) and values. ip_forward comes first, because changing it changes some of the others.
recorded_sysctls() {
  noted sysctls | awk '
    $1 !~ "/" {gsub("[.]", "/", $1)}
    $1 == "net/ipv4/ip_forward" {print; next}
    {rest = rest $0 "\n"}
    END {printf "%s", rest}'
}

# Swap that no longer exists, or has another name now, is reported and skipped.
restore_swap() {
  local unit_folder=$ROOT/etc/systemd/system unit folder swap priority options
  while read -r unit; do
    rm -f "$unit_folder/$unit.d/"{,.kubeadm-ipvs.}kubeadm-ipvs.conf
  done < <(noted held-units)
  while read -r folder; do
    [[ ! -d $folder ]] || rmdir --ignore-fail-on-non-empty "$folder"
  done < <(noted held-folders)
  if [[ -n $(noted held-units) ]]; then systemctl daemon-reload; fi
  while read -r unit; do
    # Such a service may have finished at boot without turning swap on. Only a restart makes it try again.
    if [[ $unit == *.service ]] && systemctl is-enabled --quiet "$unit"; then
      timeout 100 systemctl restart "$unit" || :
    fi
  done < <(noted held-units)
  while read -r swap _ priority; do
    if swap_is_on "$swap"; then continue; fi
    # The kernel chooses negative priorities itself; they can't be requested.
    options=()
    ((priority < 0)) || options=(--priority "$priority")
    if swapon "${options[@]}" "$swap" 2>/dev/null; then continue; fi
    # A zram device is set up by the units that its swap unit depends on.
    timeout 100 systemctl start "$(systemd-escape --path --suffix=swap "$swap")" 2>/dev/null || :
    swap_is_on "$swap" || say "can't turn on swap on $swap, which was on before: skipped"
  done <"$RECORD/swaps"
}

swap_is_on() { grep -qx "$1" < <(awk 'NR > 1 {print $1}' "$ROOT/proc/swaps"); }

# Unloads modules that were loaded since the claim, of the kinds that containers and Kubernetes load. Several rounds,
# because some modules use others. The kernel refuses to unload one that is in use.
unload_modules() {
  local kinds='^(ip_vs.*|ip_set.*|ipset|xt_.*|ipt_.*|ip6t_.*|nf_.*|nft_.*|nfnetlink.*|ip_tables|ip6_tables'
  kinds+='|iptable_.*|ip6table_.*|x_tables|br_netfilter|bridge|stp|llc|veth|vxlan|ip6_udp_tunnel|udp_tunnel|dummy'
  kinds+='|overlay)$'
  local before=-1 module
  while [[ $(wc -l </proc/modules) != "$before" ]]; do
    before=$(wc -l </proc/modules)
    while read -r module; do
      modprobe -r "$module" 2>/dev/null || :
    done < <(comm -13 "$RECORD/modules" <(cut -d' ' -f1 /proc/modules | sort) | grep -E "$kinds" || :)
  done
}
