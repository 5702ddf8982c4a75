# shellcheck shell=bash
# kubeadm init on the first control plane.
# Values: CONFIG (kubeadm's documents), PATCHES (of what kubeadm makes: lines `file<tab>JSON`),
# CERT_SANS (extra ones of the API server, one a line), DISABLE_EVICTION (true or empty),
# CERTIFICATE_DAYS (a repair renews what ends within so many), KUBELET and PROXY (see kubeadm.sh).

source lib/kubeadm.sh

readonly ADMIN=/etc/kubernetes/admin.conf

# Of a cluster that was finished. A host that knows nothing of it was installed anew: another init there would
# be another cluster, which the workers don't know, and nobody has asked for it.
update() {
  [[ -e $HOME_DIR/node.done ]] || fail "the control plane is gone from $HOST: the host was installed anew, and what its etcd held is lost" \
    "put the host's disk back from a backup; or make a new cluster: pulumi destroy, then pulumi up"
  create
}

create() {
  remember_override
  if ! begin_node; then
    converge
    return
  fi
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.yaml" 0600 || :
  put_patches
  run_kubeadm 1 init --skip-token-print --skip-phases=show-join-command
  wait_for 300 "the API server" api_ready || fail "the API server isn't ready after kubeadm init" "look at $HOME_DIR/kubeadm.log and crictl ps -a on $HOST"
  # Everything comes next at once: joins, whose requests kubeadm gives up after 10 s, and the
  # provider, which asks for the whole schema. That is made at the first request, for which a
  # slow host needs longer than that: asked for here, it is there when they come.
  wait_for 600 "the API server's schema" schema_made || fail "the API server doesn't hand out its schema" "look at crictl ps -a on $HOST"
  give_kube_proxy_its_share
  remember_settings
  printf '%s\n' "$CERT_SANS" | put_file "$HOME_DIR/certificate-names" 0600 || :
  remember_repair
  mark node.done
  say "the control plane is up"
}

# kubeadm asks for no CPU for kube-proxy: on a busy node it then gets a hundredth of what others get, and
# no service answers there for minutes. kubeadm's patches reach it from 1.37 on only.
give_kube_proxy_its_share() {
  kubectl --kubeconfig "$ADMIN" --request-timeout=60s -n kube-system patch daemonset kube-proxy --patch \
    '{"spec": {"template": {"spec": {"containers": [{"name": "kube-proxy", "resources": {"requests": {"cpu": "100m"}}}]}}}}' >/dev/null
}

put_patches() {
  local file text
  while IFS=$'\t' read -r file text; do
    [[ -z $file ]] || printf '%s\n' "$text" | put_file "$HOME_DIR/patches/$file" 0600 || :
  done <<<"$PATCHES"
}

api_ready() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s get --raw /readyz; }

# As the provider asks for it, in the binary form: that is made of the other one, and takes longer.
schema_made() { kubectl --kubeconfig "$ADMIN" --request-timeout=300s explain namespace --output=plaintext-openapiv2; }

# For the members' delete, which runs here with the text of an earlier run.
remember_override() {
  if [[ -n $DISABLE_EVICTION ]]; then mark disable-eviction; else rm -f "$HOME_DIR/disable-eviction"; fi
}

# A finished control plane: what may change in place does, and only where it differs.
converge() {
  if repair_asked; then renew_certificates; fi
  wait_for 300 "the API server" api_ready || fail "the API server doesn't answer" "look at crictl ps -a and journalctl -u kubelet on $HOST"
  converge_config
  converge_certificate
  converge_kubelet
  remember_repair
  say "the control plane is up and as the settings say"
}

# Those that `make check` reports, and with them all the others that kubeadm makes; not the authorities.
# Before anything is asked of the API server: it may not answer because of them. Components read
# theirs at their start: the mark lets a run after a kill go on to that.
renew_certificates() {
  local name containers
  if [[ ! -e $HOME_DIR/certificates.renewing ]]; then
    certificates_end_soon || return 0
    mark certificates.renewing
  fi
  say "renewing the cluster's certificates, restarting what uses them"
  kubeadm_phase certs renew all --config "$HOME_DIR/kubeadm.yaml" ||
    fail "the cluster's certificates can't be renewed" "the lines above say why"
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
    containers=$(cri ps --quiet --name "^$name\$") ||
      fail "containerd doesn't say which container is $name's" "it goes on with its former certificate; run again, or look at crictl ps on $HOST"
    # shellcheck disable=SC2086 # an id a word
    [[ -z $containers ]] || cri stop --timeout 30 $containers >/dev/null
  done
  wait_for 300 "the API server" api_ready || fail "the API server doesn't answer with its new certificate" "look at crictl ps -a on $HOST"
  rm -f "$HOME_DIR/certificates.renewing"
}

# Within as many days as model/drift.py asks.
certificates_end_soon() {
  local limit known
  limit=$(date -u -d "+$CERTIFICATE_DAYS days" +%FT%TZ)
  known=$(kubeadm certs check-expiration --config "$HOME_DIR/kubeadm.yaml" --output json 2>"$HOME_DIR/phase.log") || {
    tail -n 5 "$HOME_DIR/phase.log" >&2
    fail "when the cluster's certificates end can't be told" "the lines above name the file: put it back, or take it away, and kubeadm makes it anew"
  }
  tr ',' '\n' <<<"$known" | awk -v limit="$limit" '
    /"certificateAuthorities"/ {authorities = 1}
    !authorities && match($0, /"expirationDate": *"[^"]*"/) {
      split(substr($0, RSTART, RLENGTH), part, "\"")
      if (part[4] < limit) found = 1
    }
    END {exit !found}'
}

# What kubeadm keeps in the cluster for every node. kube-proxy's is read when the step `proxy`
# restarts it, node by node; kubelet's by each node's own step.
converge_config() {
  printf '%s\n' "$CONFIG" | put_file "$HOME_DIR/kubeadm.new.yaml" 0600 || :
  if cmp -s "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml" && ! repair_asked; then
    rm -f "$HOME_DIR/kubeadm.new.yaml"
    return
  fi
  say "uploading the settings to the cluster"
  # The settings name their folder, which kubeadm wants to be there.
  put_patches
  kubeadm_phase init phase upload-config all --config "$HOME_DIR/kubeadm.new.yaml" ||
    fail "the changed settings can't be uploaded" "the lines above say why"
  upload_proxy_config || fail "kube-proxy's changed settings can't be uploaded" "the lines above say why"
  mv -f "$HOME_DIR/kubeadm.new.yaml" "$HOME_DIR/kubeadm.yaml"
}

# Of kubeadm's addon only the ConfigMap: with the rest, all nodes' kube-proxy would be restarted at once.
upload_proxy_config() {
  kubeadm_phase init phase addon kube-proxy --print-manifest --config "$HOME_DIR/kubeadm.new.yaml" || return 1
  awk '/^---/ {on = 0} /^kind: ConfigMap/ {on = 1} on' "$HOME_DIR/phase.log" |
    kubectl --kubeconfig "$ADMIN" --request-timeout=60s replace --filename - >/dev/null
}

# The API server reads a new certificate by itself. The old one stays aside until the new one is there.
converge_certificate() {
  local pki=/etc/kubernetes/pki name
  if [[ ! -e $HOME_DIR/certificate.old ]] && cmp -s <(printf '%s\n' "$CERT_SANS") "$HOME_DIR/certificate-names"; then return 0; fi
  say "the API server's certificate gets its names: $(xargs <<<"$CERT_SANS")"
  mkdir -p "$HOME_DIR/certificate.old"
  if [[ ! -e $HOME_DIR/certificate.old/apiserver.key ]]; then
    cp -p "$pki/apiserver.crt" "$pki/apiserver.key" "$HOME_DIR/certificate.old/"
  fi
  rm -f "$pki/apiserver.crt" "$pki/apiserver.key"
  kubeadm_phase init phase certs apiserver --config "$HOME_DIR/kubeadm.yaml" || {
    cp -p "$HOME_DIR/certificate.old/"apiserver.* "$pki/"
    fail "the API server's certificate can't be made anew; the old one is in use" "the lines above say why"
  }
  while read -r name; do
    [[ -n $name ]] || continue
    wait_for 180 "the API server to show the name $name" shows_name "$name" ||
      fail "the API server doesn't answer with a certificate for $name" "look at crictl logs of kube-apiserver on $HOST"
  done <<<"$CERT_SANS"
  printf '%s\n' "$CERT_SANS" | put_file "$HOME_DIR/certificate-names" 0600 || :
  rm -rf "$HOME_DIR/certificate.old"
}

shows_name() { kubectl --kubeconfig "$ADMIN" --request-timeout=10s --tls-server-name "$1" get --raw /readyz; }
