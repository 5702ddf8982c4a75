# shellcheck shell=bash
# Checks the host for settings of an earlier kubelet that would stop the new one. The check_* functions add to the array
# `problems`.
# Values: HOST, ROLE, VERSION, MANAGE, IGNORED_CHECKS.

source lib/step.sh
source lib/claim/preflight.sh

# Flags that kubelet 1.34 no longer has; it doesn't start with one that it doesn't know.
readonly REMOVED_FLAGS='add-dir-header|allow-privileged|alsologtostderr|azure-container-registry-config|'\
'bootstrap-checkpoint-path|cadvisor-port|chaos-chance|cloud-config|cni-bin-dir|cni-cache-dir|cni-conf-dir|'\
'container-runtime|containerized|docker|docker-endpoint|docker-root|dynamic-config-dir|'\
'enable-cadvisor-json-endpoints|'\
'experimental-bootstrap-kubeconfig|experimental-check-node-capabilities-before-mount|'\
'experimental-dockershim-root-directory|experimental-kernel-memcg-notification|image-pull-progress-deadline|'\
'iptables-drop-bit|iptables-masquerade-bit|keep-terminated-pod-volumes|log-backtrace-at|log-dir|log-file|'\
'log-file-max-size|logtostderr|master-service-namespace|network-plugin|network-plugin-mtu|non-masquerade-cidr|'\
'one-output|really-crash-for-testing|redirect-container-streaming|register-schedulable|require-kubeconfig|'\
'seccomp-profile-root|skip-headers|skip-log-headers|stderrthreshold'
# cmd/kubelet/app/options and CHANGELOG-1.37.md
readonly REMOVED_FLAGS_35='pod-infra-container-image'
readonly REMOVED_FLAGS_37='application-metrics-count-limit|boot-id-file|container-hints|containerd|'\
'containerd-namespace|enable-load-reader|event-storage-age-limit|event-storage-event-limit|'\
'global-housekeeping-interval|log-cadvisor-usage|machine-id-file|storage-driver-buffer-duration|'\
'storage-driver-db|storage-driver-host|'\
'storage-driver-password|storage-driver-secure|storage-driver-table|storage-driver-user'

# kubeadm's own, in the packages' 10-kubeadm.conf.
# shellcheck disable=SC2016
readonly KUBELET_ARGS='$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS'

# The user's files that can change kubelet's command line.
kubelet_files() {
  local file
  for file in "$ROOT"/etc/{default,sysconfig}/kubelet "$ROOT/etc/systemd/system/kubelet.service" \
    "$ROOT"/{etc,run,usr/local/lib}/systemd/system/kubelet.service.d/*.conf; do
    if [[ -f $file ]]; then echo "$file"; fi
  done
}

check_kubelet_files() {
  [[ ! -e $HOME_DIR/node.started ]] || return 0
  local file line flags=$REMOVED_FLAGS minor=${VERSION#*.}
  minor=${minor%%.*}
  ((minor < 35)) || flags+="|$REMOVED_FLAGS_35"
  ((minor < 37)) || flags+="|$REMOVED_FLAGS_37"
  while IFS= read -r file; do
    while IFS= read -r line; do
      # kubelet takes underscores for hyphens.
      if [[ ${line//_/-} =~ (^|[^A-Za-z0-9-])--($flags)([^A-Za-z0-9-]|$) ]]; then
        problems+=("$file: kubelet $VERSION has no flag --${BASH_REMATCH[2]} and wouldn't start; remove it from this \
line: $line")
      elif [[ $line =~ --cgroup[-_]driver[=\ ]\"?cgroupfs ]]; then
        problems+=("$file: kubelet must use systemd's cgroups, as containerd does; remove --cgroup-driver from this \
line: $line")
      elif [[ $MANAGE == true && $line =~ ^ExecStart= && $line != ExecStart= &&
        $line != ExecStart=/usr/bin/kubelet && $line != "ExecStart=/usr/bin/kubelet $KUBELET_ARGS" ]]; then
        problems+=("$file: kubelet wouldn't start with kubeadm's command; remove this file, or from it the line: $line")
      fi
    done < <(sed -E 's/^[[:space:]]+//; s/[[:space:]]+$//; /^[#;]/d' "$file")
  done < <(kubelet_files)
}

# kubeadm refuses a data folder that isn't empty. etcd only warns of other files in it.
check_etcd_folder() {
  [[ $ROLE != worker && ! -e $HOME_DIR/node.started ]] && ! ignored DirAvailable--var-lib-etcd || return 0
  local found
  mapfile -t found < <(ls -A "$ROOT/var/lib/etcd" 2>/dev/null || :)
  ((${#found[@]} == 0)) || problems+=("/var/lib/etcd isn't empty (${found[*]:0:3}), and kubeadm refuses that; move the \
files away. If it is a disk of its own with lost+found, add DirAvailable--var-lib-etcd to preflight.ignore instead")
}
