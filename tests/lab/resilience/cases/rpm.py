"""Hosts of the rpm family, with dnf, a signed repository and SELinux in enforcing mode."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from common.progress import Progress
from lab.status import HostStatus
from model.steps import PREPARATION
from tests.lab.cluster import Cluster, command, differences, drift, install_user_workload, workload_process
from tests.lab.kills import deliver, kill_at_every_line, only
from tests.lab.resilience.plain import PlainLab, preparation_texts
from tests.lab.resilience.results import Record

LAB = "rpm"
KUBERNETES = ("kubeadm", "kubectl", "kubelet")
ZONE = "internal"


@pytest.fixture(scope="module")
def plain(plain_lab: PlainLab) -> Iterator[Cluster]:
    """Plain rpm hosts, in a lab that is removed at the end. Each case restores them."""

    def install(cluster: Cluster) -> None:
        install_user_workload(cluster, in_force=cluster.hosts[:1])
        put_into_zone(cluster, cluster.lab.status().hosts[-1])

    with plain_lab(LAB, "rpm", install) as cluster:
        yield cluster


def put_into_zone(cluster: Cluster, host: HostStatus) -> None:
    """Move the LAN interface into firewalld's zone ZONE, as a user might."""
    interface = cluster.run(host.name, f"ip -o -4 address show to {host.address}").split()[1]
    for scope in ("--permanent", ""):
        cluster.run(host.name, f"firewall-cmd --quiet {scope} --zone={ZONE} --change-interface={interface}")


def enforcing(cluster: Cluster) -> set[str]:
    """SELinux's current and configured modes on all hosts."""
    command_line = "getenforce; sed -n 's/^SELINUX=//p' /etc/selinux/config"
    return {word.lower() for host in cluster.hosts for word in cluster.run(host, command_line).split()}


def test_rpm_hosts_become_a_cluster_and_are_restored(
    plain: Cluster, progress: Progress, record: Record
) -> None:
    """Hosts with dnf and SELinux become a cluster, survive a reboot and are restored"""
    hosts = plain.hosts
    assert enforcing(plain) == {"enforcing"}
    for host in hosts:
        assert "kube" not in plain.run(host, "rpm -qa")
        assert plain.run(host, "command -v containerd ipvsadm conntrack || :") == ""

    began = time.monotonic()
    plain.up_output = command(progress, "tools", "up", "--lab", LAB)
    record(f"{len(hosts)} hosts, from plain to verification: {time.monotonic() - began:.0f} s")
    for url in plain.lab.status().node_ports:
        assert f"{url}  200 OK" in plain.up_output

    for host in hosts:
        versions = plain.run(
            host, f"rpm -q --qf '%{{VERSION}} %{{DSAHEADER:pgpsig}}\\n' {' '.join(KUBERNETES)}"
        )
        for line in versions.splitlines():
            assert line.startswith("1.37.2 EdDSA/SHA512"), "the configured version, signed"
        # Held: dnf offers no version at all.
        held = f"dnf list --available {' '.join(KUBERNETES)} 2>&1 || :"
        assert "No matching Packages" in plain.run(host, held)
        assert "containerd" in plain.run(host, "rpm -q containerd ipvsadm conntrack-tools")
    assert enforcing(plain) == {"permissive"}
    for zone in (ZONE, "public"):
        rules = plain.run(hosts[-1], f"firewall-cmd --permanent --zone={zone} --list-rich-rules")
        assert 'port="10250"' in rules
    assert drift(plain) == {host: set() for host in hosts}

    plain.run(hosts[-1], "setenforce 1")
    assert drift(plain)[hosts[-1]] == {"SELinux"}
    began = time.monotonic()
    plain.lab.reboot(hosts[-1])
    plain.wait_for_node_ports(1200)
    record(f"{hosts[-1]} answers again {time.monotonic() - began:.0f} s after the start of its reboot")
    assert enforcing(plain) == {"permissive"}
    assert drift(plain) == {host: set() for host in hosts}
    plain.workload[hosts[-1]] = workload_process(plain, hosts[-1])

    began = time.monotonic()
    done = plain.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout + done.stderr
    record(f"restored in {time.monotonic() - began:.0f} s")
    assert enforcing(plain) == {"enforcing"}
    assert differences(plain.before, plain.state()) == ""
    assert {host: workload_process(plain, host) for host in hosts} == plain.workload


def test_steps_on_rpm_hosts_survive_kills(plain: Cluster, record: Record) -> None:
    """The steps on a host with dnf and SELinux are killed at every line, and the host is restored"""
    host = plain.hosts[-1]
    texts = preparation_texts(plain, host)
    deliver(plain, host)
    for script in PREPARATION.scripts:
        text = only(texts[f"{host}-preparation"], script)
        kill_at_every_line(plain, host, "create", script.name, text, record)
    kill_at_every_line(plain, host, "delete", "claim", texts[f"{host}-claim"], record)
    assert enforcing(plain) == {"enforcing"}
    assert differences({host: plain.before[host]}, plain.state_of([host])) == ""
