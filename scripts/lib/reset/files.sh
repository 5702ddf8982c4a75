# shellcheck shell=bash
# Removes the files and folders of a node and of its packages.

source lib/step.sh
source lib/record.sh
source lib/containerd.sh
source lib/pod_network.sh

readonly NODE_FOLDERS=(/var/lib/kubelet /var/lib/etcd /etc/kubernetes)
readonly PACKAGE_FOLDERS=(
  /etc/containerd /etc/crictl.yaml /var/lib/kubelet /var/lib/etcd
  /etc/kubernetes /var/lib/containerd /opt/containerd /usr/libexec/kubernetes
)
readonly CNI_FOLDERS=(/etc/cni /opt/cni /var/lib/cni)
readonly LOG_FOLDERS=(/var/log/pods /var/log/containers)
# kubelet writes it for cluster.kubelet.shutdownGracePeriod (pkg/kubelet/nodeshutdown/systemd, v1.37.2).
readonly LOGIND_FILE=/etc/systemd/logind.conf.d/99-kubelet.conf
# The API server's pod creates these if they are missing.
readonly CERTIFICATE_FOLDERS=(
  /etc/ssl/certs /etc/ssl /etc/pki /etc/ca-certificates /usr/share/ca-certificates /usr/local/share/ca-certificates
)

# Removes the node's files, and its folders if they are new. In folders that are shared with others, removes only what
# belongs to the pod network.
remove_node_files() {
  local path
  remove_network_files
  remove_if_empty /var/lib/cni
  # Everything that kubeadm reset removes, in case it failed. The claim has checked that none of this existed before.
  rm -rf "$ROOT"/etc/kubernetes/{manifests,pki}/* \
    "$ROOT"/etc/kubernetes/{admin,super-admin,bootstrap-kubelet,kubelet,controller-manager,scheduler}.conf \
    "$ROOT"/var/lib/kubelet/{pki,config.yaml,instance-config.yaml,kubeadm-flags.env}
  for path in "${NODE_FOLDERS[@]}" $(pod_network folder); do
    if was_absent "$path"; then
      rm -rf --one-file-system "$ROOT$path"
    else
      say "$path existed before and stays"
      # kubeadm reset leaves the data of the only etcd member. The claim has checked that none existed before.
      [[ $path != */etcd ]] || rm -rf "$ROOT$path/member"
    fi
  done
  rm -rf "$ROOT/opt/cni/bin/$(pod_network cni-plugin)"
  remove_pod_logs
}

# Patterns of the files with which the pod network configures the host and CNI keeps track of it. The folder
# /etc/cni/net.d isn't one of them: containerd watches that very folder, and wouldn't see the next node's network in a
# new one of the same name.
network_files() {
  local network
  network=$(pod_network cni-network)
  printf '%s\n' "/etc/cni/net.d/$(pod_network cni-config)" "/var/lib/cni/$(pod_network cni-state)" \
    "/var/lib/cni/networks/$network" "/var/lib/cni/results/$network-*"
}

remove_network_files() {
  local pattern path
  while IFS= read -r pattern; do
    while IFS= read -r path; do rm -rf "$path"; done < <(compgen -G "$ROOT$pattern" || :)
  done < <(network_files; echo '/var/lib/cni/results/cni-loopback-*')
}

# kubelet deletes the logs of pods that it deletes, but not those of the last ones.
remove_pod_logs() {
  local folder path newer=()
  # Records by earlier versions of this program don't have this list.
  [[ -e $RECORD/pod-logs ]] || newer=(-newer "$RECORD/packages")
  for folder in "${LOG_FOLDERS[@]}"; do
    [[ -d $ROOT$folder ]] || continue
    while IFS= read -r path; do
      grep -qxF -- "${path#"$ROOT"}" < <(noted pod-logs) || rm -rf --one-file-system "$path"
    done < <(find "$ROOT$folder" -mindepth 1 -maxdepth 1 "${newer[@]}")
    if was_absent "$folder"; then rmdir --ignore-fail-on-non-empty "$ROOT$folder"; fi
  done
}

# remove_if_empty FOLDER: unless the folder existed before, removes the empty folders in it, and the folder itself if
# nothing is left.
remove_if_empty() {
  if [[ -d $ROOT$1 ]] && was_absent "$1"; then find "$ROOT$1" -depth -type d -empty -delete; fi
}

# remove_unfinished_files FOLDER: removes what interrupted calls of put_file and restore_file left there.
remove_unfinished_files() { find "$ROOT$1" -xdev -name '.kubeadm-ipvs.*' -prune -exec rm -r {} +; }

restore_files() {
  local path
  remove_unfinished_files /etc
  restore_file_if_present /etc/default/kubelet
  restore_file_if_present /etc/sysconfig/kubelet
  for path in "${CNI_FOLDERS[@]}"; do
    remove_if_empty "$path"
    if [[ -d $ROOT$path ]] && was_absent "$path"; then
      say "$path stays: it has files that this program didn't create"
    fi
  done
  for path in "${PACKAGE_FOLDERS[@]}"; do
    # Ours was removed with its package, so somebody else has installed this containerd since.
    if [[ $path == *containerd* ]] && ! unit_recorded containerd && have containerd; then
      [[ ! -e $ROOT$path ]] || say "$path stays: somebody else has installed containerd"
      continue
    fi
    if [[ -e $ROOT$path ]] && was_absent "$path"; then
      if [[ $path == /etc/containerd ]]; then
        remove_containerd_folder
      else
        rm -rf --one-file-system "$ROOT$path"
      fi
    fi
  done
  # A folder with files in it is in use.
  for path in "${CERTIFICATE_FOLDERS[@]}"; do
    if was_absent "$path"; then rmdir "$ROOT$path" 2>/dev/null || :; fi
  done
  restore_missing_files
  restore_logind
  systemctl daemon-reload
  systemctl reset-failed kubelet 2>/dev/null || :
}

# Records by earlier versions of this program don't mention the file. It is ours if it is newer.
restore_logind() {
  local file=$ROOT$LOGIND_FILE
  [[ -e $file ]] || return 0
  if grep -qxF "$LOGIND_FILE" "$RECORD/present"; then
    if cmp -s "$file" <(tar -xOf "$RECORD/files.tar" "${LOGIND_FILE#/}"); then return 0; fi
    restore_file "$LOGIND_FILE"
  elif was_absent "$LOGIND_FILE" || [[ $file -nt $RECORD/packages ]]; then
    rm -f "$file"
    if was_absent "${LOGIND_FILE%/*}"; then rmdir --ignore-fail-on-non-empty "${file%/*}"; fi
  else
    return 0
  fi
  # As kubelet does. logind may not run.
  systemctl kill --signal=HUP systemd-logind 2>/dev/null || :
}
