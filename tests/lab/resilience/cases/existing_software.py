"""Hosts keep the software and settings that they had before they joined the cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from common.paths import stack_file
from tests.lab.cluster import Cluster, differences, drift, edited, up, without
from tests.lab.resilience import results
from tests.lab.resilience.checks import leftovers
from tests.lab.resilience.results import Record

# The lab's hosts come with containerd. In this case the user has configured it and runs a container.
OWN_CONTAINERD = """
cp -a /etc/containerd /etc/containerd.original
mkdir -p /etc/containerd/certs.d/registry.k8s.io
printf 'version = 2\\n[debug]\\n  level = "warn"\\n' >/etc/containerd/config.toml
printf '# my mirror\\n[host."%s"]\\n' {registry} >/etc/containerd/certs.d/registry.k8s.io/hosts.toml
systemctl restart containerd
ctr -n own images pull --hosts-dir /etc/containerd/certs.d {image} >/dev/null
ctr -n own run -d {image} own </dev/null
"""
REMOVE_OWN_CONTAINERD = """
ctr -n own tasks delete --force own; ctr -n own containers delete own
ctr -n own images rm --sync {image}; ctr namespaces rm own
rm -rf /etc/containerd /opt/containerd; mv /etc/containerd.original /etc/containerd
systemctl restart containerd
"""


def test_host_keeps_its_own_packages(cluster: Cluster, record: Record) -> None:
    """A host with its own held kubectl, containerd configuration and container joins, is removed, and is
    unchanged"""
    host = cluster.hosts[-1]
    config = yaml.safe_load(stack_file(cluster.lab.name).read_text())["config"]
    packages = config["kubeadm-ipvs:packages"]
    source = packages["repository"].format(minor="1.37", format="deb")
    key = shlex.quote(Path(packages["key"]).read_text())
    registry = config["kubeadm-ipvs:runtime"]["mirrors"]["registry.k8s.io"][0]
    image = next(
        line for line in cluster.run(host, "ctr -n k8s.io images ls -q").split() if "/pause:" in line
    )
    show_container = "ctr -n own tasks ls | grep ^own; ctr -n own images ls -q"
    with edited(cluster, without(host)):
        up(cluster)
        # As in upstream's instructions: the same repository with its own key file.
        cluster.run(host, f"mkdir -p /etc/apt/keyrings; printf %s {key} >/etc/apt/keyrings/own.asc")
        line = f"deb [signed-by=/etc/apt/keyrings/own.asc] {source} /"
        add_source = f"echo '{line}' >/etc/apt/sources.list.d/own.list; apt-get update -qq"
        cluster.run(host, f"{add_source}; apt-get install -qq -y kubectl; apt-mark hold kubectl")
        cluster.run(host, f"set -e; {OWN_CONTAINERD.format(registry=registry, image=image)}", timeout=900)
        container = cluster.run(host, show_container)
        assert "RUNNING" in container
    plain = cluster.state_of([host])
    up(cluster)
    assert "kubectl" in cluster.run(host, "apt-mark showhold")
    assert cluster.run(host, show_container) == container
    record("joined; the user's container is still running")
    with edited(cluster, without(host)):
        up(cluster)
        assert differences(plain, cluster.state_of([host])) == ""
        assert cluster.run(host, show_container) == container
        record("kubectl, containerd and the container unchanged; kubelet and kubeadm removed")
        clean_up = (
            "apt-get purge -qq -y --allow-change-held-packages kubectl; "
            "rm /etc/apt/sources.list.d/own.list /etc/apt/keyrings/own.asc"
        )
        cluster.run(host, f"set -e; {clean_up}; {REMOVE_OWN_CONTAINERD.format(image=image)}", timeout=900)
        assert leftovers(cluster, host) == ""


# A user's alternatives to the lab's firewall and swap: ufw and a swap unit.
UFW_AND_SWAP = """
systemctl disable --quiet --now firewalld
apt-get install -qq -y ufw ipvsadm
ufw allow 22/tcp; ufw allow 4711/tcp; ufw --force enable
dd if=/dev/zero of=/srv/swap bs=1M count=64 status=none; chmod 600 /srv/swap; mkswap -q /srv/swap
printf '[Swap]\\nWhat=/srv/swap\\n[Install]\\nWantedBy=swap.target\\n' >/etc/systemd/system/srv-swap.swap
systemctl daemon-reload; systemctl enable --quiet --now srv-swap.swap
"""
VIRTUAL_SERVER = "ipvsadm -A -f 7 -s wlc"
REMOVE_UFW_AND_SWAP = """
ufw --force disable; apt-get purge -qq -y --autoremove ufw ipvsadm
systemctl disable --quiet --now srv-swap.swap; rm /etc/systemd/system/srv-swap.swap /srv/swap
systemctl daemon-reload
systemctl enable --quiet firewalld
"""


@contextmanager
def host_with_ufw_and_swap(cluster: Cluster, host: str) -> Iterator[None]:
    """Remove a host and give it ufw and a swap unit during the block.

    Afterwards its state is recorded as `before` again, because removed packages leave traces.
    """
    with edited(cluster, without(host)):
        up(cluster)
        cluster.run(host, f"set -e; {UFW_AND_SWAP}", timeout=900)
        cluster.lab.reboot(host)  # unloads firewalld's modules, as another reboot will before the comparison
    try:
        yield
    finally:
        with edited(cluster, without(host)):
            up(cluster)
            cluster.run(host, REMOVE_UFW_AND_SWAP, timeout=900)
            cluster.lab.reboot(host)
            cluster.before |= cluster.state_of([host])
            results.write_state(cluster.lab.folder / "before.txt", cluster.before)


def test_host_with_ufw_and_swap_unit_is_restored(cluster: Cluster, record: Record) -> None:
    """A worker with ufw, a swap unit and its own virtual server joins, reboots, and is restored"""
    host = cluster.hosts[-1]
    with host_with_ufw_and_swap(cluster, host):
        cluster.run(host, VIRTUAL_SERVER)
        plain = cluster.state_of([host])
        up(cluster)
        assert "10.244.0.0/16" in cluster.run(host, "ufw status")
        assert not drift(cluster)[host]
        cluster.lab.reboot(host)
        record(f"rebooted: all NodePorts answer {cluster.wait_for_node_ports(900):.0f} s later")
        assert cluster.run(host, "sed 1d /proc/swaps") == "", "the swap unit would have enabled it"
        cluster.run(host, f"{VIRTUAL_SERVER}; echo '# my rule' >>/etc/nftables.conf")
        with edited(cluster, without(host)):
            up(cluster)
        assert "# my rule" in cluster.run(host, "cat /etc/nftables.conf")
        # The package stays because the user has edited its configuration.
        cluster.run(host, "apt-get purge -qq -y nftables")
        assert differences(plain, cluster.state_of([host])) == ""
        record("ufw, swap and virtual server restored; nftables.conf, edited in the meantime, kept")
