# shellcheck shell=bash
# The host's firewall: `open` the cluster's ports, `disable` it, or `leave` it alone.
# Every rule that is added is noted first, so that exactly these are taken back.
# Needs firewalld.sh before it. Values: FIREWALL, ROLE, POD_SUBNET.

create() {
  need_record
  case $FIREWALL in
    leave) say "left as it is" ;;
    disable) disable_firewall ;;
    open) open_firewall ;;
  esac
}

disable_firewall() {
  local unit
  for unit in firewalld ufw; do
    if systemctl is-enabled --quiet "$unit" 2>/dev/null || unit_active "$unit"; then
      say "stopping $unit"
      systemctl disable --quiet --now "$unit"
    fi
  done
}

open_firewall() {
  # kubelet; every NodePort; and on the control plane the API server.
  local ports=(10250/tcp 30000-32767/tcp 30000-32767/udp)
  [[ $ROLE == worker ]] || ports+=(6443/tcp)
  # Flannel's VXLAN.
  ports+=(8472/udp)
  if unit_active firewalld; then
    open_firewalld "${ports[@]}"
  elif have ufw && grep -q '^Status: active' < <(ufw status); then
    open_ufw "${ports[@]}"
  else
    say "no firewall is active"
  fi
}

# Both the rules in force and the stored ones: a reload would drop what the user has only at
# run time.
open_firewalld() {
  local zone scope port
  zone=$(busctl --system call "$FIREWALLD" "/${FIREWALLD//./\/}" "$FIREWALLD" getDefaultZone)
  zone=${zone#s \"}
  zone=${zone%\"}
  for scope in permanent runtime; do
    for port in "$@"; do firewalld_add "$scope" "$zone" Port "${port%/*}" "${port#*/}"; done
    # Pods' own traffic crosses these; what may reach a pod is for network policies to say.
    firewalld_add "$scope" trusted Interface cni0
    firewalld_add "$scope" trusted Interface flannel.1
    firewalld_add "$scope" trusted Source "$POD_SUBNET"
  done
  say "firewalld lets the cluster's ports and the pod network through"
}

# ufw writes a range with a colon.
open_ufw() {
  local port rule
  for port in "$@"; do
    rule="allow ${port/-/:}"
    if ! grep -qF "ufw $rule" < <(ufw show added); then
      note ufw "$rule"
      # shellcheck disable=SC2086 # the rule's words
      ufw $rule >/dev/null
    fi
  done
  for rule in "allow from $POD_SUBNET" "route allow from $POD_SUBNET" "route allow to $POD_SUBNET"; do
    if ! grep -qF "ufw $rule" < <(ufw show added); then
      note ufw "$rule"
      # shellcheck disable=SC2086 # the rule's words
      ufw $rule >/dev/null
    fi
  done
  say "ufw lets the cluster's ports and the pod network through"
}
