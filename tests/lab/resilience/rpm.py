"""Hosts of the rpm family: packages by dnf from a signed repository, SELinux enforcing before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from common.progress import Progress
from lab.api import HostStatus
from tests.lab.cluster import Cluster, command, differences, drift, own_process, put_own_things
from tests.lab.kills import killed_at_each_line
from tests.lab.resilience.plain import PlainLab, prepared

LAB = "rpm"
KUBERNETES = ("kubeadm", "kubectl", "kubelet")
ZONE = "internal"


@pytest.fixture(scope="module")
def plain(plain_lab: PlainLab) -> Iterator[Cluster]:
    """Plain hosts of the family, in a lab that goes at the end. Each case leaves them as they were."""

    def own(cluster: Cluster) -> None:
        put_own_things(cluster, in_force=cluster.hosts[:1])
        put_into_zone(cluster, cluster.lab.status().hosts[-1])

    with plain_lab(LAB, "rpm", own) as cluster:
        yield cluster


def put_into_zone(cluster: Cluster, host: HostStatus) -> None:
    """Give firewalld's zone ZONE the interface by which the other hosts reach this one, as a person might."""
    interface = cluster.run(host.name, f"ip -o -4 address show to {host.address}").split()[1]
    for scope in ("--permanent", ""):
        cluster.run(host.name, f"firewall-cmd --quiet {scope} --zone={ZONE} --change-interface={interface}")


def enforcing(cluster: Cluster) -> set[str]:
    """What SELinux does and would do after a reboot, on all hosts together."""
    ask = "getenforce; sed -n 's/^SELINUX=//p' /etc/selinux/config"
    return {word.lower() for host in cluster.hosts for word in cluster.run(host, ask).split()}


def test_hosts_of_the_dnf_family_become_a_cluster_and_are_given_back(
    plain: Cluster, progress: Progress, figure: Callable[[str], None]
) -> None:
    """Hosts with dnf and SELinux become a cluster, outlive a reboot and are given back"""
    hosts = plain.hosts
    assert enforcing(plain) == {"enforcing"}
    for host in hosts:
        assert "kube" not in plain.run(host, "rpm -qa")
        assert plain.run(host, "command -v containerd ipvsadm conntrack || :") == ""

    began = time.monotonic()
    plain.made = command(progress, "tools.up", "--lab", LAB)
    figure(f"{len(hosts)} hosts, from plain to the proof: {time.monotonic() - began:.0f} s")
    for url in plain.lab.status().node_ports:
        assert f"{url}  200 OK" in plain.made

    for host in hosts:
        said = plain.run(host, f"rpm -q --qf '%{{VERSION}} %{{DSAHEADER:pgpsig}}\\n' {' '.join(KUBERNETES)}")
        for line in said.splitlines():
            assert line.startswith("1.37.2 EdDSA/SHA512"), "the version that was asked for, signed"
        # Held: dnf offers no other version, and none of the same.
        held = f"dnf list --available {' '.join(KUBERNETES)} 2>&1 || :"
        assert "No matching Packages" in plain.run(host, held)
        assert "containerd" in plain.run(host, "rpm -q containerd ipvsadm conntrack-tools")
    assert enforcing(plain) == {"permissive"}
    for zone in (ZONE, "public"):
        assert "10250/tcp" in plain.run(hosts[-1], f"firewall-cmd --permanent --zone={zone} --list-ports")
    assert drift(plain) == {host: set() for host in hosts}

    plain.run(hosts[-1], "setenforce 1")
    assert drift(plain)[hosts[-1]] == {"SELinux"}
    began = time.monotonic()
    plain.lab.reboot(hosts[-1])
    plain.wait_for_answers(1200)
    figure(f"{hosts[-1]} answers again {time.monotonic() - began:.0f} s after its reboot began")
    assert enforcing(plain) == {"permissive"}
    assert drift(plain) == {host: set() for host in hosts}
    plain.own[hosts[-1]] = own_process(plain, hosts[-1])

    began = time.monotonic()
    done = plain.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout + done.stderr
    figure(f"given back in {time.monotonic() - began:.0f} s")
    assert enforcing(plain) == {"enforcing"}
    assert differences(plain.before, plain.state()) == ""
    assert {host: own_process(plain, host) for host in hosts} == plain.own


def test_the_steps_of_the_dnf_family_are_killed_at_each_of_their_lines(
    plain: Cluster, figure: Callable[[str], None]
) -> None:
    """The steps of a host with dnf and SELinux are killed at each of their lines; the host as it was"""
    # What is the family's own in the steps: dnf, firewalld, SELinux.
    host = plain.hosts[-1]
    sent = prepared(plain, host)
    for verb, step in (
        ("create", "claim"),
        ("create", "kernel"),
        ("create", "firewall"),
        ("create", "packages"),
        ("create", "runtime"),
        ("delete", "claim"),
    ):
        killed_at_each_line(plain, host, verb, step, sent[f"{host}-{step}"], figure)
    assert enforcing(plain) == {"enforcing"}
    assert differences({host: plain.before[host]}, plain.state_of([host])) == ""
