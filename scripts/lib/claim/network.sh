# shellcheck shell=bash
# Checks the host's own network against the cluster's. The check_* functions add to the array `problems`.
# Values: MODE, NETWORKS, RESOLV_CONF (cluster.kubelet.resolvConf, or empty), IGNORED_CHECKS, POD_NETWORK.

source lib/step.sh
source lib/ipvs.sh
source lib/networks.sh
source lib/claim/preflight.sh
source lib/reset/netfilter.sh

# kube-proxy deletes virtual servers that aren't its own, and nothing brings them back: in mode ipvs those on IPv4
# outside proxy.excludeCidrs (pkg/proxy/ipvs/proxier.go, cleanLegacyService, v1.37.2), in mode nftables all of them, at
# every start (cleanup.go).
check_virtual_servers() {
  [[ $MODE != iptables && -r $ROOT/proc/net/ip_vs ]] && ! proxy_runs || return 0
  local found protocol server excluded live=false networks
  mapfile -t networks < <(cluster_networks exclude)
  if [[ -e $HOME_DIR/node.started ]] && ipvs_active; then live=true; fi
  found=$(virtual_servers other)
  while read -r protocol server; do
    [[ -n $server ]] || continue
    excluded=false
    if in_network "${server%:*}" "${networks[@]}"; then excluded=true; fi
    # A kube-proxy that runs in mode ipvs has left none but those.
    [[ $live == false || $excluded == true ]] || continue
    if [[ $MODE == nftables ]]; then
      refuse_virtual_server "$protocol $server"
    elif [[ $excluded == false ]]; then
      problems+=("IPVS virtual server $protocol $server: kube-proxy would delete it; add its network to \
proxy.excludeCidrs (${server%:*}/32), or remove it (ipvsadm --delete-service)")
    fi
  done <<<"$found"
  [[ $MODE == nftables ]] || return 0
  # By firewall mark, or on IPv6.
  while read -r protocol server _; do
    refuse_virtual_server "$protocol $server"
  done < <(awk '/^FWM / || /^[A-Z]+ +\[/' "$ROOT/proc/net/ip_vs")
}

refuse_virtual_server() {
  problems+=("IPVS virtual server $1: kube-proxy in mode nftables would delete it, even in proxy.excludeCidrs; choose \
another proxy.mode, or remove it (ipvsadm --delete-service)")
}

# Finds routes to addresses that the cluster gives to pods and services, and DNS servers with such addresses: pods
# couldn't reach them, or they would catch the pods' traffic. A finished node has such routes itself.
check_routes() {
  [[ ! -e $HOME_DIR/node.started ]] && ! ignored Routes || return 0
  local kind network line
  for kind in pod service; do
    network=$(cluster_networks "$kind")
    while read -r line; do
      problems+=("route $line is inside network.${kind}Subnet $network; remove it, choose another network, or add \
Routes to preflight.ignore to accept it")
    done < <(ip -4 route show table all root "$network" | awk -v ignored=" $(cluster_links | xargs) " '
      $1 ~ /^(broadcast|multicast)$/ {next}
      {
        device = match($0, / dev [^ ]+/) ? substr($0, RSTART, RLENGTH) : ""
        # Another check finds the leftovers of a previous cluster.
        if (device && index(ignored, " " substr(device, 6) " ")) next
        # One line for each interface, with its first route.
        if (count[device]++ == 0) {
          order[++devices] = device
          first[device] = ($1 ~ /^[0-9]/ ? $1 : $1 " " $2) device
        }
      }
      END {
        for (i = 1; i <= devices; i++) {
          more = count[order[i]] - 1
          print first[order[i]] (more ? " (and " more " more)" : "")
        }
      }')
  done
}

# CoreDNS asks the servers in kubelet's resolv.conf. There is one kubelet setting for all nodes, but without it kubeadm
# chooses the file on each node (cmd/kubeadm/app/componentconfigs/kubelet_unix.go, v1.37.2).
check_dns() {
  # A change of the setting also concerns existing nodes.
  [[ -n $RESOLV_CONF || ! -e $HOME_DIR/node.started ]] || return 0
  local file=$RESOLV_CONF server servers networks
  local advice="or set cluster.kubelet.resolvConf to a file with other servers"
  if [[ -z $file ]]; then
    file=/etc/resolv.conf
    if unit_active systemd-resolved; then file=/run/systemd/resolve/resolv.conf; fi
  fi
  if [[ ! -r $ROOT$file ]]; then
    problems+=("$file doesn't exist, and kubelet reads the pods' DNS servers from it; create it, $advice")
    return
  fi
  mapfile -t servers < <(awk '$1 == "nameserver" {print $2}' "$ROOT$file")
  mapfile -t networks < <(cluster_networks pod service)
  ((${#servers[@]})) || problems+=("$file has no nameserver, and CoreDNS doesn't start without one; add one, $advice")
  for server in "${servers[@]}"; do
    if [[ $server =~ ^(127\.|0\.0\.0\.0$|::1$) ]]; then
      problems+=("$file has nameserver $server, which in a pod is the pod itself: CoreDNS would ask itself; write the \
address of a server, $advice")
    elif [[ $server =~ ^[0-9.]+$ ]] && in_network "$server" "${networks[@]}" && ! ignored Routes; then
      problems+=("$file has nameserver $server, which is inside network.podSubnet or network.serviceSubnet; choose \
another network, $advice")
    fi
  done
}

# On cloud images of Enterprise Linux it adds routing rules for each of the host's addresses, which bypass the pods'
# routes.
check_cloud_setup() {
  [[ ! -e $HOME_DIR/node.started ]] || return 0
  local unit
  for unit in nm-cloud-setup.timer nm-cloud-setup.service; do
    if unit_active "$unit"; then
      problems+=("$unit is active, and its routing rules break the pod network; run \`systemctl disable --now \
nm-cloud-setup.timer nm-cloud-setup.service\` and reboot the host")
      return
    fi
  done
}
