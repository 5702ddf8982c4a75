"""An hour under load, twenty reboots, twenty power cuts: the hosts, and what runs them, must bear it."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.lab.cluster import Cluster, drift
from tests.lab.prober import from_a_host, from_outside, probing

ROUNDS = 20
SOAK_MINUTES = float(os.environ.get("KUBEADM_IPVS_SOAK_MINUTES", "60"))
CLOCK_SECONDS = 1.0
# Churn takes pods away while they are asked; kube-proxy learns of it within its sync period.
LOST_AT_MOST = 0.02
COMEBACK_SECONDS = 900.0
KERNEL_FAULTS = r"EXT4-fs error|I/O error|BUG:|Oops|WARNING:|Call Trace|rcu: INFO|hung task|segfault"
# Half of a worker's CPU, and its disk: what a busy neighbour of nginx would be.
LOAD = (
    "systemd-run --quiet --unit=load --property=CPUQuota=50% bash -c "
    "'while :; do dd if=/dev/urandom of=/load bs=1M count=50 conv=fsync status=none; sha256sum /load; done'"
)


def spread(seconds: Sequence[float]) -> str:
    """Minimum, median and maximum, for the table."""
    return f"{min(seconds):.0f}, {statistics.median(seconds):.0f}, {max(seconds):.0f} s (min, median, max)"


def no_fault_of_a_kernel(cluster: Cluster) -> None:
    for host in cluster.hosts:
        told = cluster.run(host, "dmesg --notime")
        assert not re.findall(rf"^.*(?:{KERNEL_FAULTS}).*$", told, re.MULTILINE), host


def clock_offset(cluster: Cluster, host: str) -> float:
    """How far a host's clock is from this machine's, in seconds; the login's own time isn't counted."""
    before = time.time()
    there = float(cluster.run(host, "date +%s.%N"))
    return max(before - there, there - time.time(), 0.0)


def restarts(cluster: Cluster) -> int:
    """Of all containers in kube-system and kube-flannel together."""
    path = "jsonpath='{.items[*].status.containerStatuses[*].restartCount}'"
    counts = [cluster.kubectl(f"-n {space} get pods -o {path}") for space in ("kube-system", "kube-flannel")]
    return sum(map(int, " ".join(counts).split()))


@contextmanager
def busy(cluster: Cluster) -> Iterator[None]:
    """While the block runs, the workers have something to do and there is a deployment to scale."""
    image = cluster.kubectl("get deployment nginx -o jsonpath='{.spec.template.spec.containers[0].image}'")
    cluster.kubectl(f"create deployment churn --image={image}")
    try:
        for host in cluster.hosts[1:]:
            cluster.run(host, LOAD)
        yield
    finally:
        for host in cluster.hosts[1:]:
            cluster.run(host, "systemctl stop load || :; rm -f /load")
        cluster.kubectl("delete deployment churn")


def test_a_cluster_bears_an_hour_under_load(cluster: Cluster, figure: Callable[[str], None]) -> None:
    """An hour with workers half busy, pods that come and go, and requests from outside and inside"""
    before = restarts(cluster)
    address = cluster.kubectl("get service nginx -o jsonpath='{.spec.clusterIP}'")
    outside = from_outside(cluster.lab.status().node_ports)
    worker = cluster.hosts[-1]
    offsets: list[float] = []
    churned = 0
    end = time.monotonic() + SOAK_MINUTES * 60
    with (
        busy(cluster),
        from_a_host(cluster, worker, address) as inside,
        probing(outside | inside) as counts,
    ):
        while time.monotonic() < end:
            for replicas in (6, 1):
                cluster.kubectl(f"scale deployment churn --replicas={replicas}")
                cluster.kubectl("rollout status deployment churn --timeout=280s")
                churned += 5
            offsets += [clock_offset(cluster, host) for host in cluster.hosts]
    figure(f"{SOAK_MINUTES:.0f} minutes, {churned} pods started or stopped")
    for name, count in counts.items():
        figure(f"{name}: {count}")
    figure(f"clocks: {max(offsets):.2f} s off at most")
    resident = {host.name: host.resident for host in cluster.lab.status().hosts}
    figure(f"memory held: {', '.join(f'{name} {held} MiB' for name, held in resident.items())}")
    figure(f"restarts of Kubernetes' own containers: {restarts(cluster) - before}")
    no_fault_of_a_kernel(cluster)
    assert restarts(cluster) == before
    assert max(offsets) < CLOCK_SECONDS
    for count in counts.values():
        assert count.asked > SOAK_MINUTES * 20
        assert len(count.lost) <= count.asked * LOST_AT_MOST, [str(count), *count.lost[-3:]]
    assert not any(drift(cluster).values())


def test_hosts_bear_twenty_reboots(cluster: Cluster, figure: Callable[[str], None]) -> None:
    """Twenty reboots, one host after the other: every NodePort answers after each"""
    took: list[float] = []
    for number in range(ROUNDS):
        began = time.monotonic()
        cluster.lab.reboot(cluster.hosts[number % len(cluster.hosts)])
        cluster.wait_for_answers(COMEBACK_SECONDS)
        took.append(time.monotonic() - began)
        no_fault_of_a_kernel(cluster)
    figure(f"{ROUNDS} reboots; until all NodePorts answer: {spread(took)}")
    assert not any(drift(cluster).values())


def test_hosts_bear_twenty_power_cuts(cluster: Cluster, figure: Callable[[str], None]) -> None:
    """Twenty power cuts, one host after the other: what was acknowledged is there, every NodePort answers"""
    took: list[float] = []
    for number in range(ROUNDS):
        host = cluster.hosts[number % len(cluster.hosts)]
        cluster.run(
            host, f"echo {number} >/cut; sync /cut; (dd if=/dev/zero of=/busy bs=1M count=500 &) 2>/dev/null"
        )
        cluster.kubectl(f"create configmap cut-{number} --from-literal=host={host}")
        began = time.monotonic()
        cluster.lab.power_off(host)
        cluster.lab.up()
        cluster.wait_for_answers(COMEBACK_SECONDS)
        took.append(time.monotonic() - began)
        assert cluster.run(host, "cat /cut; rm -f /cut /busy").strip() == str(number)
        assert cluster.kubectl(f"get configmap cut-{number} -o jsonpath='{{.data.host}}'") == host
        cluster.kubectl(f"delete configmap cut-{number}")
        no_fault_of_a_kernel(cluster)
    figure(f"{ROUNDS} power cuts; until all NodePorts answer: {spread(took)}")
    assert not any(drift(cluster).values())
