# shellcheck shell=bash
# Applies changed settings to one host's kube-proxy, and removes the previous mode's rules. In a new cluster kube-proxy
# has the right settings from the start.
#
# The new mode's rules are in place before the old ones are removed, so services are never without rules: connections
# that the old mode balanced may break, but new ones succeed. Only a change to nftables has a gap, because kube-proxy
# itself removes the other modes' rules before it starts.
#
# Values: PROXY (KubeProxyConfiguration), MODE, SCHEDULER, SERVICE_ADDRESS (the API's: 10.96.0.1), NODE_ENDPOINT (this
# host's address:NodePort), READY_SECONDS.

source lib/step.sh
source lib/http.sh
source lib/ipvs.sh
source lib/reset/netfilter.sh

# Workers don't have the administrator's credentials, but a node may delete its own pods.
export KUBECONFIG=/etc/kubernetes/kubelet.conf
readonly METRICS=127.0.0.1:10249

create() {
  local live left
  live=$(live_mode || :)
  if cmp -s <(printf '%s\n' "$PROXY") "$HOME_DIR/proxy.yaml" && [[ -z $live || $live == "$MODE" ]]; then
    say "kube-proxy's settings are unchanged"
    return
  fi
  say "changing kube-proxy from ${live:-an unknown mode} to $MODE${SCHEDULER:+ ($SCHEDULER)}"
  restart_proxy
  wait_for "$READY_SECONDS" "kube-proxy in mode $MODE" mode_is_live ||
    fail "kube-proxy isn't in mode $MODE after $READY_SECONDS s ($(live_mode || echo "it doesn't respond"))" \
      "check kubectl -n kube-system logs -l k8s-app=kube-proxy; the remaining hosts are unchanged"
  wait_for "$READY_SECONDS" "the rules of mode $MODE" rules_exist ||
    fail "kube-proxy has programmed no rules in mode $MODE after $READY_SECONDS s" \
      "check kubectl -n kube-system logs -l k8s-app=kube-proxy"
  remove_other_modes
  left=$(other_modes)
  [[ -z $left ]] ||
    fail "rules of the previous mode still exist: $(head -n 3 <<<"$left" | xargs)" \
      "something on $HOST recreates them; remove it, then run the same command again"
  wait_for 120 "a response from $NODE_ENDPOINT" request "$NODE_ENDPOINT" ||
    fail "nginx doesn't respond at $NODE_ENDPOINT in mode $MODE" \
      "change proxy.mode back and run again: this host is changed back, and the remaining ones are unchanged"
  put_file "$HOME_DIR/proxy.yaml" 0600 <<<"$PROXY"
  say "kube-proxy runs in mode $MODE, and no rules of another mode are left"
}

live_mode() { fetch "$METRICS" /proxyMode; }

mode_is_live() { [[ $(live_mode) == "$MODE" ]]; }

# kube-proxy reads its configuration only when it starts. The DaemonSet creates a new pod.
restart_proxy() {
  local pods
  pods=$(kubectl --request-timeout=30s -n kube-system get pods -l k8s-app=kube-proxy \
    --field-selector "spec.nodeName=$HOST" -o name)
  [[ -n $pods ]] || return 0
  # shellcheck disable=SC2086 # several pods
  kubectl -n kube-system delete --timeout=180s $pods >/dev/null
}

# Whether kube-proxy has programmed the API's own service, which every cluster has.
rules_exist() {
  case $MODE in
    ipvs)
      grep -qE -- "^-A -t $SERVICE_ADDRESS:443 -s $SCHEDULER( |$)" < <(ipvsadm -Sn) &&
        grep -qE -- "^-a -t $SERVICE_ADDRESS:443 " < <(ipvsadm -Sn)
      ;;
    iptables) grep -qE -- "^-A KUBE-SERVICES -d $SERVICE_ADDRESS/32 .*-j KUBE-SVC-" < <(iptables-save -t nat) ;;
    nftables) grep -qF "$SERVICE_ADDRESS . tcp . 443" < <(nft list map ip kube-proxy service-ips) ;;
  esac
}

# Chains that only one of the two modes has, in the tables nat and filter (pkg/proxy/{iptables,ipvs}, v1.37.2).
readonly IPTABLES_NAT='KUBE-(SVC|SVL|SEP|EXT|FW)-[A-Z0-9]+|KUBE-NODEPORTS'
readonly IPTABLES_FILTER="$IPTABLES_NAT|KUBE-SERVICES|KUBE-EXTERNAL-SERVICES"
readonly IPVS_CHAINS='KUBE-NODE-PORT|KUBE-LOAD-BALANCER|KUBE-SOURCE-RANGES-FIREWALL|KUBE-IPVS-FILTER'\
'|KUBE-IPVS-OUT-FILTER'

# When kube-proxy starts with nftables, it removes the rules of iptables and IPVS itself; when it starts with one of
# those, it removes nftables'. Between iptables and IPVS it removes nothing.
remove_other_modes() {
  if [[ $MODE == ipvs ]]; then
    remove_chains "$IPTABLES_NAT" "$IPTABLES_FILTER"
  else
    remove_chains "$IPVS_CHAINS" "$IPVS_CHAINS"
    remove_ipvs_services
    remove_ipsets
    remove_link kube-ipvs0
  fi
}

other_modes() {
  if [[ $MODE == ipvs ]]; then
    chains nat "$IPTABLES_NAT"
    chains filter "$IPTABLES_FILTER"
  else
    chains nat "$IPVS_CHAINS"
    chains filter "$IPVS_CHAINS"
    if ipvs_active; then echo kube-ipvs0; fi
    ipset list -n 2>/dev/null | grep '^KUBE-' || :
  fi
  if [[ $MODE != nftables ]]; then nft list tables | grep -xE 'table ip6? kube-proxy' || :; fi
}

# chains TABLE PATTERN
chains() { iptables-save -t "$1" | sed -nE "s/^:($2) .*/\1/p"; }

# remove_chains NAT_PATTERN FILTER_PATTERN: removes those chains and the rules that lead to them, in one transaction per
# table.
remove_chains() {
  local command table pattern rules
  for command in iptables ip6tables; do
    for table in nat filter; do
      pattern=$1
      [[ $table == nat ]] || pattern=$2
      rules=$("$command-save" -t "$table" 2>/dev/null) || continue
      grep -qE "^:($pattern) " <<<"$rules" || continue
      {
        echo "*$table"
        # `:CHAIN` flushes the chain, so only rules in other chains are deleted one by one.
        sed -nE "s/^:($pattern) .*/:\1 - [0:0]/p" <<<"$rules"
        grep -E -- "^-A .* -[jg] ($pattern)( |$)" <<<"$rules" | grep -vE -- "^-A ($pattern) " | sed 's/^-A/-D/' || :
        sed -nE "s/^:($pattern) .*/-X \1/p" <<<"$rules"
        echo COMMIT
      } | "$command-restore" --noflush --wait 30 ||
        fail "can't remove the previous mode's chains from $command's table $table" \
          "check $command-save -t $table on $HOST"
    done
  done
}
