# shellcheck shell=bash
# Keeps NetworkManager and systemd-networkd away from the links of the cluster, whose addresses and routes they may
# otherwise remove when they start or reload.
# Value: POD_NETWORK.

source lib/step.sh
source lib/pod_network.sh

# Sorts last: a later file that sets the list, and doesn't add to it, would replace ours.
readonly NETWORKMANAGER_FILE=$ROOT/etc/NetworkManager/conf.d/zz-kubeadm-ipvs.conf
# Sorts first: a link's first matching file applies.
readonly NETWORKD_FILE=$ROOT/etc/systemd/network/00-kubeadm-ipvs.network

keep_network_managers_away() {
  local -a links
  # CNI names a pod's link by eight hexadecimal digits (RandomVethName). A shorter pattern would match the user's own.
  mapfile -t links < <(pod_network link; printf '%s\n' kube-ipvs0 'veth????????')
  if unit_active NetworkManager; then
    put_manager_file "$NETWORKMANAGER_FILE" reload_networkmanager < <(
      printf '# kubeadm-ipvs\n[keyfile]\nunmanaged-devices+='
      printf 'interface-name:%s;' "${links[@]}"
      echo
    )
  fi
  if unit_active systemd-networkd; then
    put_manager_file "$NETWORKD_FILE" reload_networkd < <(
      printf '# kubeadm-ipvs\n[Match]\nName=%s\n\n[Link]\nUnmanaged=yes\n' "${links[*]}"
    )
  fi
}

# put_manager_file FILE RELOAD: the copy in HOME_DIR is what the manager has read, which an interrupted run may not have
# reached.
put_manager_file() {
  [[ -d ${1%/*} ]] || note network-folders "${1%/*}"
  put_file "$1" 0644
  if ! cmp -s "$1" "$HOME_DIR/${1##*/}"; then
    "$2"
    put_file "$HOME_DIR/${1##*/}" 0600 <"$1"
  fi
}

# The flag 1 is its configuration: without it, connections that somebody has edited would be reloaded too.
reload_networkmanager() {
  busctl --system call org.freedesktop.NetworkManager /org/freedesktop/NetworkManager org.freedesktop.NetworkManager \
    Reload u 1 >/dev/null
}

reload_networkd() { networkctl reload; }

restore_network_managers() {
  local folder
  remove_manager_file "$NETWORKMANAGER_FILE" NetworkManager reload_networkmanager
  remove_manager_file "$NETWORKD_FILE" systemd-networkd reload_networkd
  while read -r folder; do
    [[ ! -d $folder ]] || rmdir --ignore-fail-on-non-empty "$folder"
  done < <(noted network-folders)
}

remove_manager_file() {
  rm -f "${1%/*}/.kubeadm-ipvs.${1##*/}"
  [[ -e $1 || -e $HOME_DIR/${1##*/} ]] || return 0
  remove_file "$1"
  if unit_active "$2"; then "$3"; fi
  rm -f "$HOME_DIR/${1##*/}"
}
