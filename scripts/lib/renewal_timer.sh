# shellcheck shell=bash
# The systemd timer on the control plane that renews certificates. It runs the script `renewal` daily.
# Values: RENEWAL_TIMER (true, or empty for no timer), CERTIFICATE_DAYS.

source lib/step.sh

readonly RENEWAL_UNIT=kubeadm-ipvs-certificates
readonly RENEWAL_FILE=$ROOT/etc/systemd/system/$RENEWAL_UNIT
readonly RENEWAL_STEP=$HOME_DIR/renewal.sh

converge_renewal_timer() {
  if [[ -z $RENEWAL_TIMER ]]; then
    remove_renewal_timer
    return
  fi
  put_file "$RENEWAL_STEP" 0600 <<EOF
CERTIFICATE_DAYS=$CERTIFICATE_DAYS
STEP=\$2 HOST=\$3
. $HOME_DIR/scripts/renewal.sh
run_step "\$1"
EOF
  # At a random time of the day, but always the same on a host: several control planes don't restart together.
  put_file "$RENEWAL_FILE.timer" 0644 <<EOF
[Unit]
Description=Daily check whether the Kubernetes certificates expire soon

[Timer]
OnCalendar=daily
RandomizedDelaySec=1d
FixedRandomDelay=yes

[Install]
WantedBy=timers.target
EOF
  # An earlier step may hold the host's lock for half of that time limit.
  put_file "$RENEWAL_FILE.service" 0644 <<EOF
[Unit]
Description=Renewal of the Kubernetes certificates that expire soon

[Service]
Type=oneshot
ExecStart=/bin/bash $RENEWAL_STEP create renewal $HOST
# The step's messages go to its standard error.
StandardOutput=null
TimeoutStartSec=30min
EOF
  systemctl daemon-reload
  systemctl enable --quiet "$RENEWAL_UNIT.timer"
  # An active timer keeps the schedule that it started with.
  systemctl restart "$RENEWAL_UNIT.timer"
}

remove_renewal_timer() {
  [[ -e $RENEWAL_FILE.timer || -e $RENEWAL_FILE.service || -e $RENEWAL_STEP ]] || return 0
  if [[ -e $RENEWAL_FILE.timer ]]; then systemctl disable --quiet --now "$RENEWAL_UNIT.timer"; fi
  # This step holds the lock, so a renewal that was started in the meantime is still waiting for it.
  if [[ -e $RENEWAL_FILE.service ]]; then systemctl stop "$RENEWAL_UNIT.service"; fi
  systemctl reset-failed "$RENEWAL_UNIT.service" 2>/dev/null || :
  remove_file "$RENEWAL_FILE.service"
  remove_file "$RENEWAL_FILE.timer"
  rm -f "$RENEWAL_STEP"
  systemctl daemon-reload
}
