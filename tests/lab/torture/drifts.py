"""What was changed on a host by hand is found by the check and put right by `up`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from lab.paths import project_dir
from tests.lab.cluster import Cluster, Config, edited, identity, up

SPOIL = r"""
swapon -a 2>/dev/null || swapon /dev/vda2 2>/dev/null || swapon "$(blkid -t TYPE=swap -o device | head -n 1)"
echo 0 >/proc/sys/net/ipv4/ip_forward
apt-mark unhold kubelet >/dev/null
echo '# somebody was here' >>/etc/containerd/config.toml
sed -i 's/^maxPods.*//; $a maxPods: 17' /var/lib/kubelet/config.yaml
rm /etc/modules-load.d/kubeadm-ipvs.conf
firewall-cmd --quiet --remove-port=10250/tcp
"""


def found(cluster: Cluster) -> dict[str, set[str]]:
    """What `make check` finds, by host."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.check", "--stack", cluster.stack, "--json"],
        cwd=project_dir(),
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    assert said["notLookedAt"] == {}
    wrong = {host: {item["what"] for item in items} for host, items in said["differences"].items()}
    assert done.returncode == (2 if any(wrong.values()) else 0)
    return wrong


def test_what_was_changed_by_hand_is_found_and_put_right(
    cluster: Cluster, figure: Callable[[str], None]
) -> None:
    """Swap, sysctl, hold, files of containerd and kubelet, firewall are spoilt, found and repaired"""
    host = cluster.hosts[-1]
    same = identity(cluster)
    began = time.monotonic()
    assert found(cluster) == {name: set() for name in cluster.hosts}
    figure(f"a check of {len(cluster.hosts)} hosts takes {time.monotonic() - began:.0f} s")
    cluster.run(host, SPOIL)
    wrong = found(cluster)
    assert {
        "swap",
        "sysctl net.ipv4.ip_forward",
        "package kubelet",
        "/etc/containerd/config.toml",
        "/var/lib/kubelet/config.yaml",
        "/etc/modules-load.d/kubeadm-ipvs.conf",
        "firewalld, zone public (runtime)",
    } == wrong.pop(host)
    assert not any(wrong.values())

    def repair(config: Config) -> None:
        config["hosts"][-1]["repair"] = f"{time.time():.0f}"

    with edited(cluster, repair):
        began = time.monotonic()
        up(cluster)
        figure(f"repaired in {time.monotonic() - began:.0f} s")
    assert not any(found(cluster).values())
    assert identity(cluster) == same
