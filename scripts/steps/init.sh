# shellcheck shell=bash
# kubeadm init on the control plane.
# Values: CONFIG (kubeadm's documents), PATCHES (kubeadm's, lines `file<tab>JSON`), CERT_SANS (additional names in the
# API server's certificate, one per line), DISABLE_EVICTION (true or empty), CERTIFICATE_DAYS (a repair renews
# certificates that expire within this many days), RENEW (certificates that expire by then are renewed; may be empty),
# RENEWAL_TIMER (see lib/renewal_timer.sh), KUBELET and PROXY (see lib/kubeadm.sh).
#
# Prints `certificates expire TIME`, the first expiry, for model/certificates.py.

source lib/kubeadm.sh
source lib/certificates.sh
source lib/renewal_timer.sh

# An update means that the cluster exists. On a host that was reinstalled, another init would create a different
# cluster, which the workers don't belong to.
update() {
  [[ -e $HOME_DIR/node.done ]] ||
    fail "the control plane is gone from $HOST: the host was reinstalled, and etcd's data is lost" \
      "restore the host's disk from a backup, or create a new cluster: pulumi destroy, then pulumi up"
  create
}

create() {
  store_disable_eviction
  if node_finished; then converge; else create_cluster; fi
  converge_renewal_timer
  read_expiry
  printf 'certificates expire %s\n' "$first_expiry"
}

create_cluster() {
  begin_node
  put_file "$HOME_DIR/kubeadm.yaml" 0600 <<<"$CONFIG"
  put_patches
  run_kubeadm 1 init --skip-token-print --skip-phases=show-join-command
  wait_for 300 "the API server" api_ready ||
    fail "the API server isn't ready after kubeadm init" "check $HOME_DIR/kubeadm.log and crictl ps -a on $HOST"
  # The API server builds its schema on the first request. On a slow host that takes longer than the provider waits,
  # and longer than the 10 s that kubeadm gives the requests of a join, so this requests it before they do.
  wait_for 600 "the API server's schema" schema_ready ||
    fail "the API server doesn't return its schema" "check crictl ps -a on $HOST"
  request_proxy_cpu
  store_settings
  put_file "$HOME_DIR/certificate-names" 0600 <<<"$CERT_SANS"
  store_repair
  mark node.done
  say "the control plane is up"
}

# kubeadm requests no CPU for kube-proxy. On a busy node it then gets a hundredth of the others' share, and services are
# unreachable there for minutes. kubeadm's patches apply to kube-proxy only since 1.37.
request_proxy_cpu() {
  kubectl --kubeconfig "$ADMIN" --request-timeout=60s -n kube-system patch daemonset kube-proxy --patch '
    {"spec": {"template": {"spec": {"containers": [
      {"name": "kube-proxy", "resources": {"requests": {"cpu": "100m"}}}]}}}}' >/dev/null
}

put_patches() {
  local file text
  while IFS=$'\t' read -r file text; do
    [[ -z $file ]] || put_file "$HOME_DIR/patches/$file" 0600 <<<"$text"
  done <<<"$PATCHES"
}

# The provider requests the schema's binary form, which is built from the other one and takes longer.
schema_ready() {
  kubectl --kubeconfig "$ADMIN" --request-timeout=300s explain namespace --output=plaintext-openapiv2
}

# node.sh's delete runs on this host with the values of an earlier run, so it reads the setting from this marker file.
# The file has the setting's old name because states still contain scripts that read it.
store_disable_eviction() {
  if [[ -n $DISABLE_EVICTION ]]; then mark override-budgets; else rm -f "$HOME_DIR/override-budgets"; fi
}

# Changes a finished control plane where it differs from the settings.
converge() {
  local limit=$RENEW window
  if repair_requested; then
    window=$(soon)
    if [[ $window > $limit ]]; then limit=$window; fi
  fi
  renew_certificates "$limit"
  wait_for 300 "the API server" api_ready ||
    fail "the API server doesn't respond" "check crictl ps -a and journalctl -u kubelet on $HOST"
  converge_config
  converge_certificate
  converge_kubelet
  store_repair
  say "the control plane is up and matches the settings"
}

# Uploads the configuration that kubeadm keeps in the cluster. Each node's kubelet reads it in the node's own step, and
# each kube-proxy when the script `proxy` restarts it.
converge_config() {
  put_file "$HOME_DIR/kubeadm.new.yaml" 0600 <<<"$CONFIG"
  if cmp -s "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml" && ! repair_requested; then
    rm -f "$HOME_DIR/kubeadm.new.yaml"
    return
  fi
  refuse_older_version
  say "uploading the settings to the cluster"
  # The configuration names the patches' folder, which kubeadm requires to exist.
  put_patches
  kubeadm_phase init phase upload-config all --config "$HOME_DIR/kubeadm.new.yaml" ||
    fail "can't upload the changed settings" "fix the cause above and run the same command again"
  upload_proxy_config ||
    fail "can't upload kube-proxy's changed settings" "fix the cause above and run the same command again"
  mv -f "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml"
}

# Somebody may have upgraded the cluster by hand. Nodes that join, and upgrades, read the version in this configuration.
refuse_older_version() {
  local wanted server stored newest
  wanted=$(sed -n 's/^kubernetesVersion: v//p' <<<"$CONFIG")
  server=$(kubectl --kubeconfig "$ADMIN" --request-timeout=60s get --raw /version)
  stored=$(kubectl --kubeconfig "$ADMIN" --request-timeout=60s -n kube-system get configmap kubeadm-config \
    --output 'jsonpath={.data.ClusterConfiguration}')
  newest=$(sed -nE 's/.*("gitVersion": *"|^kubernetesVersion: )v([0-9.]+).*/\2/p' <<<"$server"$'\n'"$stored" |
    sort -V - <(echo "$wanted") | tail -n 1)
  [[ $newest == "$wanted" ]] ||
    fail "the cluster runs Kubernetes $newest, newer than cluster.kubernetesVersion $wanted" "if somebody has upgraded \
it by hand, set cluster.kubernetesVersion to $newest and cluster.manualUpgrades to true; the settings weren't uploaded"
}

# Only the ConfigMap of kubeadm's addon: the rest would restart kube-proxy on all nodes at once.
upload_proxy_config() {
  local manifest
  # Not through a file: on a full disk it could be cut off, and kubeadm doesn't report that.
  manifest=$(kubeadm init phase addon kube-proxy --print-manifest --config "$HOME_DIR/kubeadm.new.yaml" \
    2>"$HOME_DIR/phase.log") || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    return 1
  }
  awk '/^---/ {on = 0} /^kind: ConfigMap/ {on = 1} on' <<<"$manifest" |
    kubectl --kubeconfig "$ADMIN" --request-timeout=60s replace --filename - >/dev/null
}

# Creates a new certificate for the API server, which reloads it by itself. The old one is kept until then.
converge_certificate() {
  local pki=$ROOT/etc/kubernetes/pki name old
  # Left by an interrupted run of an earlier version of this program.
  local earlier=$HOME_DIR/certificate.old
  old=$pki/.kubeadm-ipvs.old
  if [[ ! -e $old && ! -e $earlier ]] && cmp -s <(printf '%s\n' "$CERT_SANS") "$HOME_DIR/certificate-names"; then
    return 0
  fi
  say "new certificate for the API server, with the names: $(xargs <<<"$CERT_SANS")"
  # Renamed instead of copied, which also works on a full disk.
  mkdir -p "$old"
  for name in apiserver.crt apiserver.key; do
    [[ -e $old/$name || ! -e $pki/$name ]] || mv "$pki/$name" "$old/"
  done
  rm -f "$pki/apiserver.crt" "$pki/apiserver.key"
  kubeadm_phase init phase certs apiserver --config "$HOME_DIR/kubeadm.yaml" || {
    mv -f "$old/"apiserver.* "$pki/"
    rmdir "$old"
    fail "can't create a new certificate for the API server; it still uses the old one" \
      "fix the cause above and run the same command again"
  }
  while read -r name; do
    [[ -n $name ]] || continue
    wait_for 180 "the API server to serve its certificate for $name" serves_name "$name" ||
      fail "the API server doesn't serve a certificate for $name" "check crictl logs of kube-apiserver on $HOST"
  done <<<"$CERT_SANS"
  put_file "$HOME_DIR/certificate-names" 0600 <<<"$CERT_SANS"
  rm -rf "$old" "$earlier"
}

serves_name() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s --tls-server-name "$1" get --raw /readyz; }
