# shellcheck shell=bash
# containerd: its socket, and the registry mirrors that this program configures.

source lib/step.sh

readonly CONTAINERD=unix:///run/containerd/containerd.sock
readonly CONTAINERD_CERTS=$ROOT/etc/containerd/certs.d
# First line of each file that this program writes for containerd.
readonly OWN_MARKER='# kubeadm-ipvs'

# The host's own /etc/crictl.yaml may point to another runtime.
cri() { crictl --runtime-endpoint "$CONTAINERD" --image-endpoint "$CONTAINERD" "$@"; }

# remove_mirrors [KEPT]: removes the mirrors that this program wrote, except those of registries in KEPT, whose lines
# have the form of MIRRORS: `registry url…`.
remove_mirrors() {
  local file registry
  for file in "$CONTAINERD_CERTS"/*/hosts.toml; do
    registry=${file%/hosts.toml}
    registry=${registry##*/}
    if [[ -e $file ]] && grep -qx "$OWN_MARKER" "$file" && ! grep -q "^$registry " <<<"${1:-}"; then
      remove_file "$file"
      rmdir --ignore-fail-on-non-empty "${file%/hosts.toml}"
    fi
  done
}
