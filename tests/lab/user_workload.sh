#!/usr/bin/env bash
# Installs things that a user may have on a host and must find unchanged after the cluster is destroyed: a service, a
# file, a permanent firewall rule, a sysctl and a held package. With the argument `in-force`, also rules that a reboot
# removes: firewalld's runtime rules and an nftables table.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir -p /srv/workload
echo "user data" >/srv/workload/data
cat >/etc/systemd/system/workload.service <<'UNIT'
[Unit]
Description=A user's service
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet --now workload.service

firewall-cmd --quiet --permanent --add-port=4711/tcp
firewall-cmd --quiet --add-port=4711/tcp
if [[ ${1:-} == in-force ]]; then
  firewall-cmd --quiet --add-port=4712/udp
  firewall-cmd --quiet --zone=trusted --add-source=192.0.2.0/24
  # With firewalld's library, because the nft command may be missing.
  python3 - <<'PYTHON'
import nftables
rules = nftables.Nftables()
status, _, error = rules.cmd("""
table inet workload {
  set blocked { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 }; }
  chain incoming { type filter hook input priority 10; ip saddr @blocked drop; }
}
""")
assert status == 0, error
PYTHON
fi

echo 'vm.swappiness = 33' >/etc/sysctl.d/50-workload.conf
echo 33 >/proc/sys/vm/swappiness
if command -v dnf >/dev/null; then
  echo 'excludepkgs=workload-package' >>/etc/dnf/dnf.conf
else
  apt-mark hold bash >/dev/null
fi
