"""Endurance: an hour under load, twenty reboots, twenty power cuts."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.lab.cluster import Cluster, drift
from tests.lab.prober import external_requests, host_requests, probing
from tests.lab.resilience.results import Record

ROUNDS = 20
SOAK_MINUTES = float(os.environ.get("KUBEADM_IPVS_SOAK_MINUTES", "60"))
CLOCK_SECONDS = 1.0
# Scaling removes pods during requests; kube-proxy notices within its sync period.
LOST_AT_MOST = 0.02
COMEBACK_SECONDS = 900.0
KERNEL_FAULTS = r"EXT4-fs error|I/O error|BUG:|Oops|WARNING:|Call Trace|rcu: INFO|hung task|segfault"
# Uses the disk and half of a CPU of a worker, like a busy neighbour of nginx.
LOAD = (
    "systemd-run --quiet --unit=load --property=CPUQuota=50% bash -c "
    "'while :; do dd if=/dev/urandom of=/load bs=1M count=50 conv=fsync status=none; sha256sum /load; done'"
)


def spread(seconds: Sequence[float]) -> str:
    """Format minimum, median and maximum for the table."""
    return f"{min(seconds):.0f}, {statistics.median(seconds):.0f}, {max(seconds):.0f} s (min, median, max)"


def assert_no_kernel_fault(cluster: Cluster) -> None:
    for host in cluster.hosts:
        messages = cluster.run(host, "dmesg --notime")
        assert not re.findall(rf"^.*(?:{KERNEL_FAULTS}).*$", messages, re.MULTILINE), host


def clock_offset(cluster: Cluster, host: str) -> float:
    """The offset of a host's clock from the local clock, in seconds; the login's duration doesn't count."""
    before = time.time()
    there = float(cluster.run(host, "date +%s.%N"))
    return max(before - there, there - time.time(), 0.0)


def restarts(cluster: Cluster) -> int:
    """The restart count of all containers in kube-system and kube-flannel."""
    path = "jsonpath='{.items[*].status.containerStatuses[*].restartCount}'"
    counts = [cluster.kubectl(f"-n {space} get pods -o {path}") for space in ("kube-system", "kube-flannel")]
    return sum(map(int, " ".join(counts).split()))


@contextmanager
def busy(cluster: Cluster) -> Iterator[None]:
    """Load the workers during the block, and provide a deployment to scale."""
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


def test_cluster_survives_an_hour_of_load(cluster: Cluster, record: Record) -> None:
    """An hour with half-loaded workers, pods that start and stop, and requests from outside and inside"""
    before = restarts(cluster)
    address = cluster.kubectl("get service nginx -o jsonpath='{.spec.clusterIP}'")
    outside = external_requests(cluster.lab.status().node_ports)
    worker = cluster.hosts[-1]
    offsets: list[float] = []
    churned = 0
    end = time.monotonic() + SOAK_MINUTES * 60
    with (
        busy(cluster),
        host_requests(cluster, worker, address) as inside,
        probing(outside | inside) as counts,
    ):
        while time.monotonic() < end:
            for replicas in (6, 1):
                cluster.kubectl(f"scale deployment churn --replicas={replicas}")
                cluster.kubectl("rollout status deployment churn --timeout=280s")
                churned += 5
            offsets += [clock_offset(cluster, host) for host in cluster.hosts]
    record(f"{SOAK_MINUTES:.0f} minutes, {churned} pods started or stopped")
    for name, count in counts.items():
        record(f"{name}: {count}")
    record(f"clocks: {max(offsets):.2f} s off at most")
    resident = {host.name: host.resident for host in cluster.lab.status().hosts}
    record(f"resident memory: {', '.join(f'{name} {held} MiB' for name, held in resident.items())}")
    record(f"restarts of Kubernetes' containers: {restarts(cluster) - before}")
    assert_no_kernel_fault(cluster)
    assert restarts(cluster) == before
    assert max(offsets) < CLOCK_SECONDS
    for count in counts.values():
        assert count.sent > SOAK_MINUTES * 20
        assert len(count.lost) <= count.sent * LOST_AT_MOST, [str(count), *count.lost[-3:]]
    assert not any(drift(cluster).values())


def test_hosts_survive_twenty_reboots(cluster: Cluster, record: Record) -> None:
    """Twenty reboots, one host at a time: every NodePort answers after each"""
    took: list[float] = []
    for number in range(ROUNDS):
        began = time.monotonic()
        cluster.lab.reboot(cluster.hosts[number % len(cluster.hosts)])
        cluster.wait_for_node_ports(COMEBACK_SECONDS)
        took.append(time.monotonic() - began)
        assert_no_kernel_fault(cluster)
    record(f"{ROUNDS} reboots; until all NodePorts answer: {spread(took)}")
    assert not any(drift(cluster).values())


def test_hosts_survive_twenty_power_cuts(cluster: Cluster, record: Record) -> None:
    """Twenty power cuts, one host at a time: acknowledged writes survive, and every NodePort answers"""
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
        cluster.wait_for_node_ports(COMEBACK_SECONDS)
        took.append(time.monotonic() - began)
        assert cluster.run(host, "cat /cut; rm -f /cut /busy").strip() == str(number)
        assert cluster.kubectl(f"get configmap cut-{number} -o jsonpath='{{.data.host}}'") == host
        cluster.kubectl(f"delete configmap cut-{number}")
        assert_no_kernel_fault(cluster)
    record(f"{ROUNDS} power cuts; until all NodePorts answer: {spread(took)}")
    assert not any(drift(cluster).values())
