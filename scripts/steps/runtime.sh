# shellcheck shell=bash
# containerd as kubelet needs it: systemd's cgroups, the sandbox image that kubeadm expects,
# CNI plugins where Kubernetes' packages put them, and the registry mirrors.
# Values: SANDBOX_IMAGE, MIRRORS (lines `registry url url…`), IMAGES (to pull, one a line).

source lib/step.sh

readonly CONTAINERD_CONFIG=/etc/containerd/config.toml
readonly CERTS=/etc/containerd/certs.d
readonly BOOT_FILE=/etc/tmpfiles.d/kubeadm-ipvs.conf
# From before containerd's configuration changes until containerd has read it: a run that is killed between
# the two leaves the restart to the next.
readonly RESTART=$HOME_DIR/containerd.restart

create() {
  need_record
  local config
  write_mirrors
  config=$(runtime_config) || exit 1
  cmp -s "$CONTAINERD_CONFIG" <(printf '%s\n' "$config") || : >"$RESTART"
  # What containerd runs with can't be asked: another configuration, or a folder of networks that is gone.
  if repair_asked; then : >"$RESTART"; fi
  printf '%s\n' "$config" | put_file "$CONTAINERD_CONFIG" 0644 || :
  put_crictl_config || :
  forget_pods_at_boot
  systemctl enable --quiet containerd
  if [[ -e $RESTART ]] || ! unit_active containerd; then
    systemctl restart containerd
    rm -f "$RESTART"
  fi
  wait_for 180 "containerd" ctr version || fail "containerd doesn't answer" "look at journalctl -u containerd on $HOST"
  wait_for 60 "containerd's CRI plugin" cri version || fail "containerd's CRI plugin isn't ready" "look at journalctl -u containerd on $HOST"
  pull_images
  remember_repair
  say "containerd is ready"
}

runtime_config() {
  local major
  major=$(containerd --version | sed -nE 's/.* v?([0-9]+)\.[0-9]+\.[0-9]+.*/\1/p')
  echo "$OURS"
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
    config_path = "$CERTS"

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
  config_path = "$CERTS"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = true
TOML
      ;;
    *) fail "containerd's version is not understood: $(containerd --version)" "install containerd 1.7 or 2" ;;
  esac
}

# containerd reads these at each pull: no restart. What is ours and no longer asked for goes.
write_mirrors() {
  local registry urls url
  remove_mirrors "$CERTS" "$MIRRORS"
  while read -r registry urls; do
    [[ -n $registry ]] || continue
    {
      echo "$OURS"
      [[ $registry == docker.io ]] && echo 'server = "https://registry-1.docker.io"' || echo "server = \"https://$registry\""
      for url in $urls; do printf '\n[host."%s"]\n  capabilities = ["pull", "resolve"]\n' "$url"; done
    } | put_file "$CERTS/$registry/hosts.toml" 0644 || :
  done <<<"$MIRRORS"
}

put_crictl_config() {
  [[ ! -e /etc/crictl.yaml ]] || return 0
  printf '# kubeadm-ipvs\nruntime-endpoint: %s\nimage-endpoint: %s\ntimeout: 60\n' "$CONTAINERD" "$CONTAINERD" |
    put_file /etc/crictl.yaml 0644
}

# No pod's network outlives a boot, and what the CNI plugins noted of it does. After a loss of power such a
# note may be empty: then flannel's plugin can't take the pod's network away, and the pod never comes
# back (flannel-io/flannel#1662); and the address that it had stays taken.
forget_pods_at_boot() {
  put_file "$BOOT_FILE" 0644 <<'CONF' || :
# kubeadm-ipvs: what CNI plugins noted of the pods of the former boot
R! /var/lib/cni/flannel
R! /var/lib/cni/networks/cbr0
R! /var/lib/cni/results/cbr0-*
CONF
}

# Pulled here, beside the control plane's start, rather than when the first pod waits for them.
pull_images() {
  local image present
  present=$(ctr -n k8s.io images ls -q)
  while read -r image; do
    if [[ -z $image ]] || grep -qxF "$image" <<<"$present"; then continue; fi
    say "pulling $image"
    cri pull "$image" >"$HOME_DIR/pull.log" 2>&1 || {
      tail -n 5 "$HOME_DIR/pull.log" >&2
      fail "the image $image can't be pulled" "check registry.mirrors and that $HOST reaches them"
    }
  done <<<"$IMAGES"
}
