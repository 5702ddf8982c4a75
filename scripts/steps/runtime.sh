# shellcheck shell=bash
# Configures containerd for kubelet: systemd's cgroups, kubeadm's sandbox image, the CNI plugins of Kubernetes'
# packages, and the registry mirrors. Then pulls images.
# Values: SANDBOX_IMAGE, MIRRORS (lines `registry url url…`), IMAGES (one per line), POD_NETWORK.

source lib/step.sh
source lib/containerd.sh
source lib/pod_network.sh

readonly CONTAINERD_CONFIG=$ROOT/etc/containerd/config.toml
readonly BOOT_FILE=$ROOT/etc/tmpfiles.d/kubeadm-ipvs.conf
readonly CRICTL_CONFIG=$ROOT/etc/crictl.yaml
# Exists from before containerd's configuration is changed until containerd is restarted, so that a run after an
# interrupted one restarts it.
readonly RESTART=$HOME_DIR/containerd.restart

create() {
  need_record
  local config
  write_mirrors
  config=$(runtime_config) || exit 1
  cmp -s "$CONTAINERD_CONFIG" <(printf '%s\n' "$config") || : >"$RESTART"
  # containerd may still run with another configuration, or watch a folder of CNI networks that was removed.
  if repair_requested; then : >"$RESTART"; fi
  printf '%s\n' "$config" | put_file "$CONTAINERD_CONFIG" 0644 || :
  put_crictl_config || :
  remove_pod_networks_at_boot
  systemctl enable --quiet containerd
  if [[ -e $RESTART ]] || ! unit_active containerd; then
    systemctl restart containerd
    rm -f "$RESTART"
  fi
  wait_for 180 "containerd" ctr version ||
    fail "containerd doesn't respond" "check journalctl -u containerd on $HOST"
  wait_for 60 "containerd's CRI plugin" cri version ||
    fail "containerd's CRI plugin isn't ready" "check journalctl -u containerd on $HOST"
  pull_images
  store_repair
  say "containerd is ready"
}

runtime_config() {
  local major
  major=$(containerd --version | sed -nE 's/.* v?([0-9]+)\.[0-9]+\.[0-9]+.*/\1/p')
  echo "$OWN_MARKER"
  case $major in
    1)
      cat <<TOML
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$SANDBOX_IMAGE"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
TOML
      ;;
    2)
      cat <<TOML
version = 3

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$SANDBOX_IMAGE"

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = true
TOML
      ;;
    *) fail "unsupported version of containerd: $(containerd --version)" "install containerd 1.7 or 2" ;;
  esac
}

# containerd reads these files at each pull, so it needs no restart.
write_mirrors() {
  local registry server urls url
  remove_mirrors "$MIRRORS"
  while read -r registry urls; do
    [[ -n $registry ]] || continue
    server=https://$registry
    [[ $registry != docker.io ]] || server=https://registry-1.docker.io
    {
      echo "$OWN_MARKER"
      echo "server = \"$server\""
      for url in $urls; do printf '\n[host."%s"]\n  capabilities = ["pull", "resolve"]\n' "$url"; done
    } | put_file "$CONTAINERD_CERTS/$registry/hosts.toml" 0644 || :
  done <<<"$MIRRORS"
}

put_crictl_config() {
  [[ ! -e $CRICTL_CONFIG ]] || return 0
  printf '# kubeadm-ipvs\nruntime-endpoint: %s\nimage-endpoint: %s\ntimeout: 60\n' "$CONTAINERD" "$CONTAINERD" |
    put_file "$CRICTL_CONFIG" 0644
}

# No pod's network survives a boot, but the CNI plugins' files do. After a power cut one of them may be empty. flannel's
# plugin then can't delete the pod's network: the pod never starts again, and its address stays allocated
# (flannel-io/flannel#1662).
remove_pod_networks_at_boot() {
  put_file "$BOOT_FILE" 0644 <<CONF || :
# kubeadm-ipvs: the CNI plugins' files about pods of the previous boot
R! /var/lib/cni/$(pod_network cni-state)
R! /var/lib/cni/networks/$(pod_network cni-network)
R! /var/lib/cni/results/$(pod_network cni-network)-*
CONF
}

# Pulls while the control plane starts, instead of when the first pod needs the image.
pull_images() {
  local image present
  present=$(ctr -n k8s.io images ls -q)
  while read -r image; do
    if [[ -z $image ]] || grep -qxF "$image" <<<"$present"; then continue; fi
    say "pulling $image"
    cri pull "$image" >"$HOME_DIR/pull.log" 2>&1 || {
      tail -n 5 "$HOME_DIR/pull.log" >&2
      fail "the image $image can't be pulled" "check runtime.mirrors, and that $HOST can reach them"
    }
  done <<<"$IMAGES"
}
