# shellcheck shell=bash
# Removes the files and folders of a node and of its packages.

source lib/step.sh
source lib/record.sh
source lib/pod_network.sh

readonly NODE_FOLDERS=(/var/lib/kubelet /var/lib/etcd /etc/kubernetes)
readonly PACKAGE_FOLDERS=(
  /etc/containerd /etc/crictl.yaml /var/lib/kubelet /var/lib/etcd
  /etc/kubernetes /var/lib/containerd /opt/containerd /usr/libexec/kubernetes
)
readonly CNI_FOLDERS=(/etc/cni /opt/cni /var/lib/cni)
# The API server's pod creates these if they are missing.
readonly CERTIFICATE_FOLDERS=(
  /etc/ssl/certs /etc/ssl /etc/pki /etc/ca-certificates /usr/share/ca-certificates /usr/local/share/ca-certificates
)

# Removes the node's files, and its folders if they are new. In folders that are shared with others, removes only what
# belongs to the pod network.
remove_node_files() {
  local path network
  network=$(pod_network cni-network)
  # The folder /etc/cni/net.d stays as long as containerd does: containerd watches that very folder, and wouldn't see
  # the next node's network in a new one of the same name.
  rm -f "$ROOT/etc/cni/net.d/$(pod_network cni-config)"
  rm -rf "$ROOT/var/lib/cni/$(pod_network cni-state)" "$ROOT/var/lib/cni/networks/$network" \
    "$ROOT/var/lib/cni/results/$network"-* "$ROOT"/var/lib/cni/results/cni-loopback-*
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
  rm -rf "$ROOT/opt/cni/bin/$(pod_network cni-plugin)" "$ROOT"/var/log/{pods,containers}/kube-*
}

# remove_if_empty FOLDER: unless the folder existed before, removes the empty folders in it, and the folder itself if
# nothing is left.
remove_if_empty() {
  if [[ -d $ROOT$1 ]] && was_absent "$1"; then find "$ROOT$1" -depth -type d -empty -delete; fi
}

# remove_unfinished_files FOLDER: removes the files that interrupted calls of put_file left there.
remove_unfinished_files() { find "$ROOT$1" -xdev -type f -name '.kubeadm-ipvs.*' -delete; }

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
    if [[ -e $ROOT$path ]] && was_absent "$path"; then rm -rf --one-file-system "$ROOT$path"; fi
  done
  # A folder with files in it is in use.
  for path in "${CERTIFICATE_FOLDERS[@]}"; do
    if was_absent "$path"; then rmdir "$ROOT$path" 2>/dev/null || :; fi
  done
  # Restores folders that a package removed together with its files.
  tar --numeric-owner --skip-old-files -xpf "$RECORD/files.tar" -C "$ROOT/" -T "$RECORD/copied"
  systemctl daemon-reload
  systemctl reset-failed kubelet 2>/dev/null || :
}
