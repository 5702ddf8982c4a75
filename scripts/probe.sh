# shellcheck shell=bash
# Shows that the login runs commands as root, and tells the host's clock and which scripts it has.

# The scripts that loader.sh would find, or `none` if they are incomplete or damaged.
found=none
for folder in "${KUBEADM_IPVS_ROOT:-}/run/kubeadm-ipvs" "${KUBEADM_IPVS_ROOT:-}/var/lib/kubeadm-ipvs"; do
  [[ -e $folder/scripts ]] || continue
  if (cd "$folder/scripts" && sha256sum --check --status --strict SHA256SUMS) 2>/dev/null; then
    found=$(readlink "$folder/scripts")
  fi
  break
done
# Arithmetic, so that a host that only returns its input doesn't pass.
echo "kubeadm-ipvs probe $((6 * 7)) at $(date +%s), user $(id -u), scripts ${found#scripts.}"
