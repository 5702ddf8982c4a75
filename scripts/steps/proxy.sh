# shellcheck shell=bash
# kube-proxy on one host: it runs with the settings that are asked for, and nothing of another mode
# is left. A new cluster's kube-proxy does from the start; a changed setting is for this step.
#
# The new mode is programmed before the old one's rules go, so that there is always one that
# answers: connections that the old one had balanced may end, new ones don't fail. Only to
# nftables there is a gap, since kube-proxy itself clears the other modes before it begins.
#
# Values: PROXY (KubeProxyConfiguration), MODE, SCHEDULER, SERVICE_ADDRESS (of the API: 10.96.0.1),
# NODE_ENDPOINT (this host's address:NodePort), READY_SECONDS.

source lib/reset.sh
source lib/http.sh

# A node may delete its own pods; no administrator's credentials are on a worker.
export KUBECONFIG=/etc/kubernetes/kubelet.conf
readonly METRICS=127.0.0.1:10249

create() {
  local live
  live=$(live_mode || :)
  if cmp -s <(printf '%s\n' "$PROXY") "$HOME_DIR/proxy.yaml" && [[ -z $live || $live == "$MODE" ]]; then
    say "kube-proxy's settings are unchanged"
    return
  fi
  say "kube-proxy: ${live:-not answering} to $MODE${SCHEDULER:+ ($SCHEDULER)}"
  restart_proxy
  wait_for "$READY_SECONDS" "kube-proxy in mode $MODE" runs_in_mode ||
    fail "kube-proxy isn't in mode $MODE after $READY_SECONDS s ($(live_mode || echo 'it does not answer'))" \
      "kubectl -n kube-system logs -l k8s-app=kube-proxy says why; the hosts after this one are as they were"
  wait_for "$READY_SECONDS" "the rules of mode $MODE" programmed ||
    fail "kube-proxy has programmed nothing in mode $MODE after $READY_SECONDS s" "kubectl -n kube-system logs -l k8s-app=kube-proxy says why"
  clear_other_modes
  local left
  left=$(left_over)
  [[ -z $left ]] || fail "of the former mode there is still: $(head -n 3 <<<"$left" | xargs)" "something else on $HOST puts it there again; remove it and run again"
  wait_for 120 "an answer of $NODE_ENDPOINT" request "$NODE_ENDPOINT" ||
    fail "nginx doesn't answer at $NODE_ENDPOINT in mode $MODE" "set proxy.mode back and run again: this host is put back, the ones after it weren't touched"
  printf '%s\n' "$PROXY" | put_file "$HOME_DIR/proxy.yaml" 0600 || :
  say "kube-proxy runs in mode $MODE, and nothing of another is left"
}

live_mode() { fetch "$METRICS" /proxyMode; }

runs_in_mode() { [[ $(live_mode) == "$MODE" ]]; }

own_pods() {
  kubectl --request-timeout=30s -n kube-system get pods -l k8s-app=kube-proxy --field-selector "spec.nodeName=$HOST" -o name
}

# A running kube-proxy doesn't read a changed configuration; the DaemonSet makes a new pod.
restart_proxy() {
  local pods
  pods=$(own_pods)
  [[ -n $pods ]] || return 0
  # shellcheck disable=SC2086 # a pod in each word
  kubectl -n kube-system delete --timeout=180s $pods >/dev/null
}

# What kube-proxy has for the API's own service, which every cluster has.
programmed() {
  case $MODE in
    ipvs) grep -qE -- "^-A -t $SERVICE_ADDRESS:443 -s $SCHEDULER( |$)" < <(ipvsadm -Sn) && grep -qE -- "^-a -t $SERVICE_ADDRESS:443 " < <(ipvsadm -Sn) ;;
    iptables) grep -qE -- "^-A KUBE-SERVICES -d $SERVICE_ADDRESS/32 .*-j KUBE-SVC-" < <(iptables-save -t nat) ;;
    nftables) grep -qF "$SERVICE_ADDRESS . tcp . 443" < <(nft list map ip kube-proxy service-ips) ;;
  esac
}

# Chains that only one of the two modes has, in the tables nat and filter (pkg/proxy/{iptables,ipvs}, v1.37.2).
readonly IPTABLES_NAT='KUBE-(SVC|SVL|SEP|EXT|FW)-[A-Z0-9]+|KUBE-NODEPORTS'
readonly IPTABLES_FILTER="$IPTABLES_NAT|KUBE-SERVICES|KUBE-EXTERNAL-SERVICES"
readonly IPVS_CHAINS='KUBE-NODE-PORT|KUBE-LOAD-BALANCER|KUBE-SOURCE-RANGES-FIREWALL|KUBE-IPVS-FILTER|KUBE-IPVS-OUT-FILTER'

clear_other_modes() {
  # kube-proxy clears iptables and IPVS itself where it starts with nftables, and nftables where it
  # starts with another; between iptables and IPVS it clears nothing.
  if [[ $MODE == ipvs ]]; then
    remove_chains "$IPTABLES_NAT" "$IPTABLES_FILTER"
  else
    remove_chains "$IPVS_CHAINS" "$IPVS_CHAINS"
    clear_ipvs
    clear_ipsets
    if [[ -e /sys/class/net/kube-ipvs0 ]] && ! grep -qx kube-ipvs0 "$RECORD/links"; then ip link delete kube-ipvs0; fi
  fi
}

left_over() {
  if [[ $MODE == ipvs ]]; then
    chains nat "$IPTABLES_NAT"
    chains filter "$IPTABLES_FILTER"
  else
    chains nat "$IPVS_CHAINS"
    chains filter "$IPVS_CHAINS"
    [[ ! -e /sys/class/net/kube-ipvs0 ]] || echo kube-ipvs0
    ipset list -n 2>/dev/null | grep '^KUBE-' || :
  fi
  if [[ $MODE != nftables ]]; then nft list tables | grep -xE 'table ip6? kube-proxy' || :; fi
}

# chains TABLE PATTERN
chains() { iptables-save -t "$1" | sed -nE "s/^:($2) .*/\1/p"; }

# remove_chains NAT_PATTERN FILTER_PATTERN: those chains, and the rules elsewhere that lead to them, in
# one step a table. All other rules stay as they are.
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
        sed -nE "s/^:($pattern) .*/:\1 - [0:0]/p" <<<"$rules"
        # With :CHAIN it is emptied: only others' rules are left to be deleted.
        grep -E -- "^-A .* -[jg] ($pattern)( |$)" <<<"$rules" | grep -vE -- "^-A ($pattern) " | sed 's/^-A/-D/' || :
        sed -nE "s/^:($pattern) .*/-X \1/p" <<<"$rules"
        echo COMMIT
      } | "$command-restore" --noflush --wait 30 || fail "the chains of the former mode can't be removed from $command's table $table" "look at $command-save -t $table on $HOST"
    done
  done
}
