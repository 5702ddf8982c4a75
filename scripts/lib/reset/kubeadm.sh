# shellcheck shell=bash
# Removes a node from its host, with everything that `kubeadm reset` leaves behind. Every function checks what exists
# before it acts, so all of this can be interrupted and run again.

source lib/step.sh
source lib/containerd.sh
source lib/renewal_timer.sh
source lib/reset/netfilter.sh
source lib/reset/files.sh

# Must neither wait for a cluster that is gone nor fail because something is gone already.
reset_node() {
  if [[ ! -e $HOME_DIR/node.started ]]; then
    say "this program didn't set up a node here"
    return
  fi
  remove_renewal_timer
  if [[ -e $ROOT/etc/kubernetes/kubelet.conf || -e $ROOT/etc/kubernetes/manifests ||
    -e $ROOT/var/lib/kubelet/config.yaml ]]; then
    run_kubeadm_reset
  fi
  systemctl stop kubelet 2>/dev/null || :
  remove_pods
  unmount_below /var/lib/kubelet
  # Mounts of pods that containerd couldn't stop in time for kubeadm. They outlive the pods' processes.
  unmount_below /run/containerd/io.containerd.grpc.v1.cri/sandboxes
  unmount_below /run/containerd/io.containerd.runtime.v2.task/k8s.io
  systemctl stop kubepods.slice 2>/dev/null || :
  remove_ipvs_services
  remove_iptables_rules
  remove_ipsets
  remove_links
  remove_node_files
  rm -f "$HOME_DIR/node.started" "$HOME_DIR/node.done" "$HOME_DIR/kubeadm.yaml"
  say "the node is removed"
}

run_kubeadm_reset() {
  have kubeadm || return 0
  unit_active containerd || systemctl start containerd || :
  say "kubeadm reset"
  # --skip-phases: etcd's data is removed with its folder. There is no other etcd member to notify, and a request to a
  # dead API server takes minutes to time out.
  # --foreground: kubeadm stays in the step's process group and ends with the step.
  # --cri-socket: required if the host has several runtimes.
  timeout --foreground 300 kubeadm reset --force --cri-socket "$CONTAINERD" --cleanup-tmp-dir \
    --skip-phases=remove-etcd-member >"$HOME_DIR/reset.log" 2>&1 ||
    say "kubeadm reset failed (log: $HOME_DIR/reset.log); removing the rest without it"
}

# Removes only the containers in Kubernetes' namespace. One call of ctr removes all tasks, because each call takes
# seconds on an emulated host; each task that is left gets a call of its own.
remove_pods() {
  unit_active containerd && have ctr || return 0
  local tasks containers task
  mapfile -t tasks < <(ctr -n k8s.io tasks ls -q)
  if ((${#tasks[@]})); then
    timeout 120 ctr -n k8s.io tasks delete --force "${tasks[@]}" >/dev/null 2>&1 || :
    while read -r task; do
      [[ -n $task ]] || continue
      timeout 60 ctr -n k8s.io tasks kill --signal SIGKILL --all "$task" >/dev/null 2>&1 || :
      timeout 60 ctr -n k8s.io tasks delete --force "$task" >/dev/null 2>&1 || :
    done < <(ctr -n k8s.io tasks ls -q)
  fi
  mapfile -t containers < <(ctr -n k8s.io containers ls -q)
  if ((${#containers[@]})); then
    timeout 120 ctr -n k8s.io containers delete "${containers[@]}" >/dev/null 2>&1 || :
  fi
}

unmount_below() {
  local mount
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" || :
  done < <(awk -v folder="$1/" 'index($2, folder) == 1 {print $2}' "$ROOT/proc/mounts" | sort -r)
}
