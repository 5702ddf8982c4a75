"""Failures of hosts, package sources and images: each is reported, and `up` recovers."""

from __future__ import annotations

import re
import time

from lab import services
from tests.lab.cluster import Cluster, Config, differences, drift, edited, identity, repaired, up, without
from tests.lab.prober import DNS_REQUEST, host_requests, probing
from tests.lab.resilience.checks import failing_up, leftovers
from tests.lab.resilience.faults import DEAD_HOST_SECONDS, delay_by_dead_host
from tests.lab.resilience.results import Record


def test_worker_is_removed_and_added_despite_failures(cluster: Cluster, record: Record) -> None:
    """A worker loses power during its removal, and joins again despite a full disk, a missing package source
    and another power cut"""
    host = cluster.hosts[-1]
    others = [name for name in cluster.hosts if name != host]
    old_kubeconfig, _ = identity(cluster)
    with edited(cluster, without(host)):
        run = cluster.start("up")
        assert run.wait_until_started(f"delete {host}-claim"), run.diagnostics
        cluster.lab.power_off(host)
        assert run.wait() != 0
        assert f"{host}-claim" in run.diagnostics
        record("power cut during reset: the error names the claim")
        cluster.lab.up()
        cluster.kubectl(f"wait --for=create node/{host} --timeout=280s")
        record("its kubelet registers the node again")
        began = time.monotonic()
        up(cluster)
        record(f"restored by the next up in {time.monotonic() - began:.0f} s")
    assert leftovers(cluster, host) == ""
    assert host not in cluster.kubectl("get nodes -o name")

    cluster.run(host, "fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 2000000)) /fill; sync")
    output = failing_up(cluster)
    cluster.run(host, "rm /fill")
    assert f"{host}-" in output
    assert re.search(r"[Nn]o space left|free space", output), output
    record("full disk: reported")

    services.stop(cluster.lab.folder, "packages")
    output = failing_up(cluster)
    cluster.lab.up()
    assert f"{host}: packages: FAILED" in output
    record("package source down: reported")

    run = cluster.start("up")
    assert run.wait_until_started(f"create {host}-join"), run.diagnostics
    cluster.lab.power_off(host)
    assert run.wait() != 0
    assert f"{host}-join" in run.diagnostics
    cluster.lab.up()
    run = cluster.start("up")
    assert run.wait() == 0, run.diagnostics
    touched = {step.split()[1] for step in run.started}
    # The expected services are read again for the new host's verification.
    unrelated = [
        name
        for name in touched
        if any(name.startswith(f"{other}-") for other in others) and "verification" not in name
    ]
    assert not unrelated, unrelated
    record("power cut during join: joined by the next up, other hosts untouched")
    assert identity(cluster)[0] == old_kubeconfig
    assert f"node/{host}" in cluster.kubectl("get nodes -o name")


def test_repair_joins_a_manually_reset_worker(cluster: Cluster, record: Record) -> None:
    """`kubeadm reset` by hand on a worker: `repair` joins it to the same cluster again"""
    host = cluster.hosts[-1]
    old_kubeconfig, _ = identity(cluster)
    cluster.run(host, "kubeadm reset --force >/dev/null 2>&1; rm -rf /etc/cni/net.d")
    with edited(cluster, repaired(host)):
        began = time.monotonic()
        up(cluster)
        record(f"joined again in {time.monotonic() - began:.0f} s")
        assert identity(cluster)[0] == old_kubeconfig
        assert not any(drift(cluster).values())
    up(cluster)


def test_missing_image_is_reported_before_the_rollout(cluster: Cluster, record: Record) -> None:
    """An image that no source has: the affected hosts report it, nginx keeps serving, and the next `up`
    recovers"""
    old_identity = identity(cluster)
    image = "docker.io/library/nginx:does-not-exist"

    def absent(config: Config) -> None:
        config["nginx"] = {**config.get("nginx", {}), "image": image}

    with edited(cluster, absent):
        began = time.monotonic()
        output = failing_up(cluster)
        record(f"reported after {time.monotonic() - began:.0f} s")
    for host in cluster.hosts[1:]:
        assert f"{host}: runtime: FAILED: the image {image} can't be pulled" in output
    cluster.wait_for_node_ports(300)
    up(cluster)
    assert identity(cluster) == old_identity
    assert image not in cluster.kubectl("get deployment nginx -o yaml")


def test_disruption_budget_blocks_a_drain_until_overridden(cluster: Cluster, record: Record) -> None:
    """A disruption budget blocks a drain: `up` fails and the worker stays in service, until
    `drain.disableEviction` is set"""
    host = cluster.hosts[-1]

    def short_drain(config: Config) -> None:
        config["stepTimeouts"] = {**config.get("stepTimeouts", {}), "drain": 60}

    def override(config: Config) -> None:
        config["drain"] = {"disableEviction": True}

    cluster.kubectl("create pdb all --selector=app.kubernetes.io/name=nginx --min-available=2")
    try:
        with edited(cluster, short_drain):
            up(cluster)
            with edited(cluster, without(host)):
                began = time.monotonic()
                output = failing_up(cluster)
                record(f"failed after {time.monotonic() - began:.0f} s")
                assert f"{host} can't be drained within 60 s; it is back in service" in output
                assert "disruption budget" in output
                node = cluster.kubectl(f"get node {host} -o jsonpath='{{.spec.unschedulable}}'")
                assert node == ""
                cluster.wait_for_node_ports(300)
                with edited(cluster, override):
                    began = time.monotonic()
                    up(cluster)
                    record(f"overridden and restored in {time.monotonic() - began:.0f} s")
        assert host not in cluster.kubectl("get nodes -o name")
        assert leftovers(cluster, host) == ""
    finally:
        cluster.kubectl("delete pdb all")


def test_dead_worker_delays_no_other_host(cluster: Cluster, record: Record) -> None:
    """A dead worker: other hosts can be changed, and it is removed within two minutes and restored once it
    is back"""
    host, other = cluster.hosts[-1], cluster.hosts[0]
    cluster.lab.power_off(host)

    def label(config: Config) -> None:
        config["hosts"][0]["labels"] = {"tried": "yes"}

    with edited(cluster, label):
        began = time.monotonic()
        up(cluster)
        record(f"another host changed in {time.monotonic() - began:.0f} s")
    assert cluster.kubectl(f"get node {other} -o jsonpath='{{.metadata.labels.tried}}'") == "yes"
    cluster.kubectl(f"wait --for=condition=Ready=Unknown --timeout=300s node/{host}")
    with edited(cluster, without(host)):
        delay = delay_by_dead_host(cluster, host, "up")
        record(
            f"removed {delay:.0f} s after the other hosts' last step, with an error that names {host}-claim"
        )
        assert host not in cluster.kubectl("get nodes -o name")
        assert delay < DEAD_HOST_SECONDS
        cluster.lab.up()
        up(cluster)
    assert leftovers(cluster, host) == ""


def test_scheduler_changes_while_a_worker_is_dead(cluster: Cluster, record: Record) -> None:
    """A dead worker: kube-proxy's scheduler changes on all other hosts, and on this one once it is back"""
    *others, host = cluster.hosts

    def weighted(config: Config) -> None:
        config["proxy"] = {**config.get("proxy", {}), "scheduler": "wrr"}

    cluster.lab.power_off(host)
    cluster.kubectl(f"wait --for=condition=Ready=Unknown --timeout=300s node/{host}")
    with edited(cluster, weighted):
        began = time.monotonic()
        output = failing_up(cluster)
        record(f"failed after {time.monotonic() - began:.0f} s")
        assert f"{host} is dead" in output
        assert f"{host}: no SSH server answers" in output
        for other in others:
            assert "10.96.0.1:443 wrr" in cluster.run(other, "ipvsadm -Ln")
        cluster.lab.up()
        began = time.monotonic()
        up(cluster)
        record(f"completed in {time.monotonic() - began:.0f} s after its return")
        assert "10.96.0.1:443 wrr" in cluster.run(host, "ipvsadm -Ln")
    up(cluster)


def test_control_plane_reboot_keeps_dns(cluster: Cluster, record: Record) -> None:
    """The control plane reboots: every DNS query from a worker is answered meanwhile"""
    master, *workers = cluster.hosts
    places = cluster.kubectl(
        "-n kube-system get pods -l k8s-app=kube-dns -o jsonpath='{.items[*].spec.nodeName}'"
    ).split()
    assert len(set(places)) == len(places) == 2
    assert set(places) <= set(workers)
    with (
        host_requests(cluster, workers[-1], "10.96.0.10", 53, DNS_REQUEST) as requests,
        probing(requests, 0.2) as counts,
    ):
        cluster.lab.reboot(master)
        cluster.wait_for_node_ports(900)
    for name, count in counts.items():
        record(f"{name}: {count}")
        assert count.sent > 50, count
        assert not count.lost, count.lost[:3]


def test_hosts_recover_from_reboots_and_power_loss(cluster: Cluster, record: Record) -> None:
    """Each host reboots, then all lose power at once: everything recovers without `up`"""
    for host in reversed(cluster.hosts):
        cluster.lab.reboot(host)
        record(f"{host} rebooted: all NodePorts answer {cluster.wait_for_node_ports(900):.0f} s later")
    pods = {host: cluster.empty_cni_state(host) for host in cluster.hosts[:2]}
    for host in cluster.hosts:
        cluster.lab.power_off(host)
    cluster.lab.up()
    record(f"all at once: all NodePorts answer {cluster.wait_for_node_ports(1200):.0f} s later")
    for host, count in pods.items():
        cluster.wait_for_pods(host, count, 600)
    for host in cluster.hosts:
        assert cluster.run(host, "sed 1d /proc/swaps") == ""
        assert " rr" in cluster.run(host, "ipvsadm -Ln")
    done = cluster.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes")
    assert done.returncode == 0, done.stdout


def test_destroy_completes_once_a_dead_worker_returns(cluster: Cluster, record: Record) -> None:
    """A dead worker doesn't block `destroy`, which reports what is left; the next `destroy` completes it"""
    host, *others = reversed(cluster.hosts)
    cluster.lab.power_off(host)
    delay = delay_by_dead_host(cluster, host, "destroy", "--continue-on-error")
    record(
        f"destroy ended {delay:.0f} s after the other hosts' last step, with an error that names {host}-claim"
    )
    now = cluster.state_of(others)
    assert differences({name: cluster.before[name] for name in others}, now) == ""
    cluster.lab.up()
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout
    assert leftovers(cluster, host) == ""
    assert delay < DEAD_HOST_SECONDS
