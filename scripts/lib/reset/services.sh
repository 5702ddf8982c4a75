# shellcheck shell=bash
# Restores a containerd that the host had before.

source lib/step.sh
source lib/record.sh
source lib/containerd.sh

restore_runtime() {
  set_aside_edited_files
  unit_recorded containerd || return 0
  if unit_active containerd && have ctr; then remove_images; fi
  # Before restore_file, which doesn't remove other files from a recorded folder.
  remove_mirrors
  restore_file /etc/containerd/config.toml
  # The folder may have files of registries that somebody has added since.
  if ! was_absent /etc/containerd/certs.d; then
    restore_file /etc/containerd/certs.d
  elif [[ -d $CONTAINERD_CERTS ]]; then
    find "$CONTAINERD_CERTS" -depth -type d -empty -delete
  fi
  restore_file /etc/crictl.yaml
  if [[ $(recorded_active containerd) == active ]]; then
    systemctl restart containerd
  else
    systemctl stop containerd
  fi
  if [[ $(recorded_enabled containerd) == disabled ]]; then systemctl disable --quiet containerd; fi
}

# Removes the images that pods pulled, and Kubernetes' namespace.
remove_images() {
  local images
  mapfile -t images < <(ctr -n k8s.io images ls -q | grep -vxFf "$RECORD/image-list" || :)
  # --sync waits until the layers are gone too: only an empty namespace can be removed.
  ((${#images[@]} == 0)) || ctr -n k8s.io images rm --sync "${images[@]}" >/dev/null
  # Records by earlier versions of this program don't have this list.
  if [[ -e $RECORD/containerd-namespaces ]] && ! grep -qx k8s.io "$RECORD/containerd-namespaces" &&
    grep -qx k8s.io < <(ctr namespaces ls -q); then
    ctr namespaces rm k8s.io >/dev/null || say "containerd's namespace k8s.io stays: ctr lists its contents above"
  fi
}
