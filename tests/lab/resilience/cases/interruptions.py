"""Interrupted runs: the same command continues where a run was killed or lost its SSH connection."""

from __future__ import annotations

from tests.lab.cluster import (
    Cluster,
    assert_balances,
    differences,
    drift,
    edited,
    identity,
    proxy,
    repaired,
    up,
    without,
)
from tests.lab.resilience.checks import assert_no_secret_leaked, leftovers, sampled_processes
from tests.lab.resilience.faults import cut_connections, cut_power_in_init, kill_repeatedly
from tests.lab.resilience.results import Record
from tests.live_engine import Engine


def test_killed_destroy_and_up_runs_can_be_resumed(cluster: Cluster, record: Record) -> None:
    """The engine is killed (SIGKILL) at 20 or more points of a destroy and an up, and the control plane
    loses power during init: repeating the command completes each run"""
    printed: list[str] = []
    points: list[str] = []

    def record_point(text: str) -> None:
        points.append(text)
        record(text)

    def assert_success(run: Engine) -> None:
        assert run.wait() == 0, run.diagnostics
        printed.append(run.output)
        record(f"{len(run.finished)} steps ended, success")

    init = f"create {cluster.hosts[0]}-init"
    with sampled_processes(cluster) as commands:
        assert_success(kill_repeatedly(cluster, "destroy", 3, printed, record_point))
        assert differences(cluster.before, cluster.state()) == ""
        run = kill_repeatedly(cluster, "up", 3, printed, record_point, until=init)
        assert init in run.started, run.diagnostics
        cut_power_in_init(cluster, run)
        printed.append(run.output)
        record(f"up: {len(run.finished)} steps ended, power cut during init reported")
        assert_success(kill_repeatedly(cluster, "up", 2, printed, record_point))
    assert len(points) >= 20
    assert_no_secret_leaked(cluster, [*printed, *commands])
    assert cluster.kubectl("get nodes -o name").splitlines() == sorted(
        f"node/{host}" for host in cluster.hosts
    )


def test_up_resumes_after_cut_ssh_connections(cluster: Cluster, record: Record) -> None:
    """SSH is cut during a worker's and the control plane's steps: the next `up` continues, or restores the
    old value after the change is reverted"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    old_identity = identity(cluster)
    printed: list[str] = []
    for name, steps in (
        (host, ("preparation", "join")),
        (master, ("init",)),
    ):
        with edited(cluster, repaired(name)):
            for step in steps:
                cut_connections(cluster, printed, record, {f"{name}-{step}": f"update {step} {name}"})
            up(cluster)
    with edited(cluster, proxy(scheduler="lc")):
        cut_connections(cluster, printed, record, {f"{master}-init": f"update init {master}"})
        for name in cluster.hosts[1:]:
            assert " rr" in cluster.run(name, "ipvsadm -Ln"), "the remaining hosts haven't changed"
    up(cluster)
    assert_balances(cluster, "ipvs", "rr")
    record("scheduler: reverted after the cut, and every kernel has the old one")
    assert identity(cluster) == old_identity
    assert_no_secret_leaked(cluster, printed)


def test_worker_removal_and_join_resume_after_cut_ssh(cluster: Cluster, record: Record) -> None:
    """SSH is cut during each step that removes a worker and adds it again: the next `up` continues"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    old_kubeconfig, _ = identity(cluster)
    printed: list[str] = []
    with edited(cluster, without(host)):
        cut_connections(cluster, printed, record, {f"{host}-node": f"delete node {master}"})
        cut_connections(cluster, printed, record, {f"{host}-claim": f"delete claim {host}"})
        cut_connections(cluster, printed, record, {f"{host}-deregister": f"delete deregister {master}"})
        up(cluster)
    assert leftovers(cluster, host) == ""
    assert host not in cluster.kubectl("get nodes -o name")

    for step in ("preparation", "join"):
        cut_connections(cluster, printed, record, {f"{host}-{step}": f"create {step} {host}"})
    cut_connections(cluster, printed, record, {"nodes": f"update nodes {master}"})
    cut_connections(cluster, printed, record, {"expected-services": f"update expected_services {master}"})
    cut_connections(cluster, printed, record, {f"{host}-verification": f"create verification {host}"})
    up(cluster)
    assert identity(cluster)[0] == old_kubeconfig
    assert f"node/{host}" in cluster.kubectl("get nodes -o name")
    assert not any(drift(cluster).values())
    assert_no_secret_leaked(cluster, printed)
