# shellcheck shell=bash
# Renews the cluster's certificates if they expire soon. A systemd timer on the control plane runs it
# (lib/renewal_timer.sh), if the setting cluster.certificates.renewTimer asks for that.
# Values: CERTIFICATE_DAYS.

source lib/certificates.sh

create() {
  # The step that held the lock before may have removed the node.
  if [[ -e $HOME_DIR/node.done ]]; then renew_certificates "$(soon)"; fi
}
