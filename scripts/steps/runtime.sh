# shellcheck shell=bash
# Configures containerd for kubelet: systemd's cgroups, kubeadm's sandbox image, the CNI plugins of Kubernetes'
# packages, and the registry mirrors. Then pulls images.
# Values: SANDBOX_IMAGE, MIRRORS (lines `registry mirror mirror…`, each mirror being a URL that may be followed by
# #override_path and then by #ca= with PEM certificates in base64), IMAGES (one per line), POD_NETWORK.

source lib/step.sh
source lib/containerd.sh
source lib/pod_network.sh

readonly BOOT_FILE=$ROOT/etc/tmpfiles.d/kubeadm-ipvs.conf
readonly CRICTL_CONFIG=$ROOT/etc/crictl.yaml
# Exists from before containerd's configuration is changed until containerd is restarted, so that a run after an
# interrupted one restarts it.
readonly RESTART=$HOME_DIR/containerd.restart

create() {
  need_record
  remember_contents
  write_mirrors
  # containerd may still run with another configuration, or watch a folder of CNI networks that was removed.
  if repair_requested; then mark containerd.restart; fi
  configure_containerd
  put_crictl_config
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

# Writes config.toml, unless somebody has edited it and containerd still has all settings that a node needs: then only
# the sandbox image is changed there.
configure_containerd() {
  local config candidate=$CONTAINERD_FOLDER/.kubeadm-ipvs.candidate problems='' others
  config=$(runtime_config) || exit 1
  mkdir -p "$CONTAINERD_FOLDER"
  if edited "$CONTAINERD_CONFIG"; then
    with_sandbox_image <"$CONTAINERD_CONFIG" >"$candidate"
    problems=$(config_problems "$candidate" "$config")
    if [[ -z $problems ]]; then
      say "$CONTAINERD_CONFIG was edited and stays: containerd has all settings that the node needs"
      cmp -s "$CONTAINERD_CONFIG" "$candidate" || mark containerd.restart
      put_file "$CONTAINERD_CONFIG" "$(stat -c %04a "$CONTAINERD_CONFIG")" <"$candidate"
      rm -f "$candidate"
      return
    fi
  fi
  printf '%s\n' "$config" >"$candidate"
  others=$(drop_in_problems "$candidate" "$config")
  rm -f "$candidate"
  if [[ -n $others ]]; then
    list "$others"
    fail "files in /etc/containerd/conf.d take settings from containerd that the node needs, listed above: \
$(drop_ins | xargs -n 1 basename | xargs)" "correct them, then run the same command again. In containerd before 2.1 \
such a file replaces the whole section of a plugin (docs/troubleshooting.md)"
  fi
  if [[ -n $problems ]]; then
    repair_requested || {
      list "$problems"
      fail "$CONTAINERD_CONFIG was edited, and containerd would lack settings that the node needs, listed above" \
        "restore them there, or move your own to /etc/containerd/conf.d/NAME.toml and delete config.toml; or set \
\`repair\` for $HOST: that writes a new config.toml and keeps the edited one beside it. Then run the same command again"
    }
    set_aside "$CONTAINERD_CONFIG"
  fi
  cmp -s "$CONTAINERD_CONFIG" <(printf '%s\n' "$config") || mark containerd.restart
  put_containerd_file "$CONTAINERD_CONFIG" "$config"
}

list() {
  local line
  while IFS= read -r line; do say "- $line"; done <<<"$1"
}

with_sandbox_image() {
  local quote="[\"']" blank='[[:space:]]*'
  sed -E "s|^($blank$quote?sandbox(_image)?$quote?$blank=$blank)($quote)[^\"']*$quote|\\1\\3$SANDBOX_IMAGE\\3|"
}

# containerd reads these files at each pull, so it needs no restart.
write_mirrors() {
  local registry entries entry file text number ca
  remove_mirrors "$MIRRORS"
  while read -r registry entries; do
    [[ -n $registry ]] || continue
    file=$CONTAINERD_CERTS/$registry/hosts.toml
    text=$(hosts_toml "$registry" "$entries")
    replace_others "$file" "$text"
    number=0
    for entry in $entries; do
      ((++number))
      [[ $entry == *'#ca='* ]] || continue
      ca=$(base64 -d <<<"${entry##*#ca=}")
      put_containerd_file "${file%/*}/kubeadm-ipvs-$number.pem" "$ca"
    done
    put_containerd_file "$file" "$text"
    remove_mirror_cas "$registry" "$number"
  done <<<"$MIRRORS"
}

# hosts_toml REGISTRY MIRRORS
hosts_toml() {
  local server=https://$1 mirror number=0
  [[ $1 != docker.io ]] || server=https://registry-1.docker.io
  printf '%s\nserver = "%s"\n' "$OWN_MARKER" "$server"
  for mirror in $2; do
    ((++number))
    printf '\n[host."%s"]\n  capabilities = ["pull", "resolve"]\n' "${mirror%%#*}"
    [[ $mirror != *'#override_path'* ]] || echo '  override_path = true'
    [[ $mirror != *'#ca='* ]] || echo "  ca = \"kubeadm-ipvs-$number.pem\""
  done
}

# replace_others FILE TEXT: fails if somebody else has written or edited the file, unless a repair is requested, or the
# file's original is recorded.
replace_others() {
  local registry=${1%/hosts.toml} path=${1#"$ROOT"}
  [[ -f $1 ]] && ! cmp -s "$1" <(printf '%s\n' "$2") || return 0
  if grep -qE "^[0-9a-f]{64}  $1\$" "$CHECKSUMS" 2>/dev/null; then
    edited "$1" || return 0
  elif file_recorded "$path"; then
    return 0
  fi
  if repair_requested; then
    set_aside "$1"
    return 0
  fi
  registry=${registry##*/}
  fail "$1 was edited or written by somebody else, and runtime.mirrors would replace it" "to keep it, remove $registry \
from runtime.mirrors; to replace it, set \`repair\` for $HOST: that keeps the edited file beside the new one. Then \
run the same command again"
}

put_crictl_config() {
  [[ ! -e $CRICTL_CONFIG ]] || return 0
  put_file "$CRICTL_CONFIG" 0644 <<CONF
# kubeadm-ipvs
runtime-endpoint: $CONTAINERD
image-endpoint: $CONTAINERD
timeout: 60
CONF
}

# No pod's network survives a boot, but the CNI plugins' files do. After a power cut one of them may be empty. flannel's
# plugin then can't delete the pod's network: the pod never starts again, and its address stays allocated
# (flannel-io/flannel#1662).
remove_pod_networks_at_boot() {
  put_file "$BOOT_FILE" 0644 <<CONF
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
