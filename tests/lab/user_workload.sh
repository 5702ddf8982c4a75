#!/usr/bin/env bash
# What a person has on a host already, and finds there unchanged when the cluster has gone: a service,
# files, a firewall rule that is stored, sysctls, a held package; and with the argument `in-force` what
# no reboot brings back: firewalld's rules that are not stored, a rule set of nftables.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir -p /srv/own
echo "a person's data" >/srv/own/data
cat >/etc/systemd/system/own.service <<'UNIT'
[Unit]
Description=A person's own service
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet --now own.service

firewall-cmd --quiet --permanent --add-port=4711/tcp
firewall-cmd --quiet --add-port=4711/tcp
if [[ ${1:-} == in-force ]]; then
  firewall-cmd --quiet --add-port=4712/udp
  firewall-cmd --quiet --zone=trusted --add-source=192.0.2.0/24
  # firewalld's own library: the program nft may not be here.
  python3 - <<'PYTHON'
import nftables
rules = nftables.Nftables()
status, _, error = rules.cmd("""
table inet own {
  set blocked { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 }; }
  chain incoming { type filter hook input priority 10; ip saddr @blocked drop; }
}
""")
assert status == 0, error
PYTHON
fi

echo 'vm.swappiness = 33' >/etc/sysctl.d/50-own.conf
echo 33 >/proc/sys/vm/swappiness
if command -v dnf >/dev/null; then
  echo 'excludepkgs=own-package' >>/etc/dnf/dnf.conf
else
  apt-mark hold bash >/dev/null
fi
