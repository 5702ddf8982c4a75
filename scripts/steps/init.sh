# shellcheck shell=bash
# kubeadm init on the control plane.
# Values: CONFIG (kubeadm's documents), PATCHES (kubeadm's, lines `file<tab>JSON`), CERT_SANS (additional names in the
# API server's certificate, one per line), DISABLE_EVICTION (true or empty), CERTIFICATE_DAYS (a repair renews
# certificates that expire within this many days), KUBELET and PROXY (see lib/kubeadm.sh).

source lib/kubeadm.sh
source lib/containerd.sh

readonly ADMIN=/etc/kubernetes/admin.conf

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
  if ! begin_node; then
    converge
    return
  fi
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
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
  printf '%s\n' "$CERT_SANS" | put_file "$HOME_DIR/certificate-names" 0600 || :
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
    [[ -z $file ]] || printf '%s\n' "$text" | put_file "$HOME_DIR/patches/$file" 0600 || :
  done <<<"$PATCHES"
}

api_ready() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s get --raw /readyz; }

# The provider requests the schema's binary form, which is built from the other one and takes longer.
schema_ready() {
  kubectl --kubeconfig "$ADMIN" --request-timeout=300s explain namespace --output=plaintext-openapiv2
}

# node.sh's delete runs on this host with the script and values of an earlier run, so it reads the setting from this
# marker file. The file has the setting's old name because states still contain such scripts.
store_disable_eviction() {
  if [[ -n $DISABLE_EVICTION ]]; then mark override-budgets; else rm -f "$HOME_DIR/override-budgets"; fi
}

# Changes a finished control plane where it differs from the settings.
converge() {
  if repair_requested; then renew_certificates; fi
  wait_for 300 "the API server" api_ready ||
    fail "the API server doesn't respond" "check crictl ps -a and journalctl -u kubelet on $HOST"
  converge_config
  converge_certificate
  converge_kubelet
  store_repair
  say "the control plane is up and matches the settings"
}

# Renews all of kubeadm's certificates except the CAs if one expires soon. Doesn't need the API server, which may be
# down because of them. The components read their certificates only when they start; after an interruption, the marker
# file makes the next run restart them.
renew_certificates() {
  local name containers
  if [[ ! -e $HOME_DIR/certificates.renewing ]]; then
    certificates_expire_soon || return 0
    mark certificates.renewing
  fi
  say "renewing the cluster's certificates and restarting the components that use them"
  kubeadm_phase certs renew all --config "$HOME_DIR/kubeadm.yaml" ||
    fail "can't renew the cluster's certificates" "fix the cause above and run the same command again"
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
    containers=$(cri ps --quiet --name "^$name\$") ||
      fail "can't find the container of $name, which still uses its old certificate" \
        "run the same command again, or check crictl ps on $HOST"
    # shellcheck disable=SC2086 # several IDs
    [[ -z $containers ]] || cri stop --timeout 30 $containers >/dev/null
  done
  wait_for 300 "the API server" api_ready ||
    fail "the API server doesn't respond with its new certificate" "check crictl ps -a on $HOST"
  rm -f "$HOME_DIR/certificates.renewing"
}

# Whether a certificate expires within CERTIFICATE_DAYS.
certificates_expire_soon() {
  local limit expiration
  limit=$(date -u -d "+$CERTIFICATE_DAYS days" +%FT%TZ)
  expiration=$(kubeadm certs check-expiration --config "$HOME_DIR/kubeadm.yaml" --output json \
    2>"$HOME_DIR/phase.log") || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    fail "can't determine when the cluster's certificates expire" \
      "the lines above name the file: restore it, or remove it so that kubeadm creates a new one"
  }
  tr ',' '\n' <<<"$expiration" | awk -v limit="$limit" '
    /"certificateAuthorities"/ {authorities = 1}
    !authorities && match($0, /"expirationDate": *"[^"]*"/) {
      split(substr($0, RSTART, RLENGTH), part, "\"")
      if (part[4] < limit) found = 1
    }
    END {exit !found}'
}

# Uploads the configuration that kubeadm keeps in the cluster. Each node's kubelet reads it in the node's own step, and
# each kube-proxy in the step `proxy`, which restarts them one by one.
converge_config() {
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.new.yaml" 0600 || :
  if cmp -s "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml" && ! repair_requested; then
    rm -f "$HOME_DIR/kubeadm.new.yaml"
    return
  fi
  say "uploading the settings to the cluster"
  # The configuration names the patches' folder, which kubeadm requires to exist.
  put_patches
  kubeadm_phase init phase upload-config all --config "$HOME_DIR/kubeadm.new.yaml" ||
    fail "can't upload the changed settings" "fix the cause above and run the same command again"
  upload_proxy_config ||
    fail "can't upload kube-proxy's changed settings" "fix the cause above and run the same command again"
  mv -f "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml"
}

# Only the ConfigMap of kubeadm's addon: the rest would restart kube-proxy on all nodes at once.
upload_proxy_config() {
  kubeadm_phase init phase addon kube-proxy --print-manifest --config "$HOME_DIR/kubeadm.new.yaml" || return 1
  awk '/^---/ {on = 0} /^kind: ConfigMap/ {on = 1} on' "$HOME_DIR/phase.log" |
    kubectl --kubeconfig "$ADMIN" --request-timeout=60s replace --filename - >/dev/null
}

# Creates a new certificate for the API server, which reloads it by itself. The old one is kept until then.
converge_certificate() {
  local pki=/etc/kubernetes/pki name old=$HOME_DIR/certificate.old
  if [[ ! -e $old ]] && cmp -s <(printf '%s\n' "$CERT_SANS") "$HOME_DIR/certificate-names"; then return 0; fi
  say "new certificate for the API server, with the names: $(xargs <<<"$CERT_SANS")"
  mkdir -p "$old"
  if [[ ! -e $old/apiserver.key ]]; then cp -p "$pki/apiserver.crt" "$pki/apiserver.key" "$old/"; fi
  rm -f "$pki/apiserver.crt" "$pki/apiserver.key"
  kubeadm_phase init phase certs apiserver --config "$HOME_DIR/kubeadm.yaml" || {
    cp -p "$old/"apiserver.* "$pki/"
    fail "can't create a new certificate for the API server; it still uses the old one" \
      "fix the cause above and run the same command again"
  }
  while read -r name; do
    [[ -n $name ]] || continue
    wait_for 180 "the API server to serve its certificate for $name" serves_name "$name" ||
      fail "the API server doesn't serve a certificate for $name" "check crictl logs of kube-apiserver on $HOST"
  done <<<"$CERT_SANS"
  printf '%s\n' "$CERT_SANS" | put_file "$HOME_DIR/certificate-names" 0600 || :
  rm -rf "$old"
}

serves_name() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s --tls-server-name "$1" get --raw /readyz; }
