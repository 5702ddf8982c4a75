"""Plain hosts, for cases that need no cluster or create their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from common.progress import Progress
from lab.lab import Lab
from lab.options import Family
from lab.status import LabStatus
from tests.lab.cluster import Cluster, workload_process
from tests.lab.kills import step_texts
from tools import down, env, stack

PlainLab = Callable[[str, Family, Callable[[Cluster], None]], AbstractContextManager[Cluster]]
"""`plain_hosts` without the arguments that are the same for all cases."""


@contextmanager
def plain_hosts(
    name: str,
    family: Family,
    install: Callable[[Cluster], None],
    *,
    failure_logs: dict[str, Callable[[Path], Any]],
    progress: Progress,
    runs_on: Callable[[LabStatus], None],
) -> Iterator[Cluster]:
    """Create plain hosts in a lab, which is removed after the block.

    Args:
        name: The lab's name.
        family: The hosts' family.
        install: Installs the user's software on the hosts, before their state is recorded.
        failure_logs: Receives the lab's log collector.
        progress: Shows progress.
        runs_on: Receives the lab's status.
    """
    lab = Lab.load(name, progress)
    down.down(name, progress, force=True)
    failure_logs["lab"] = lab.collect_logs
    try:
        status = lab.up(count=int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "2")), family=family)
        runs_on(status)
        cluster = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
        install(cluster)
        cluster.workload = {host: workload_process(cluster, host) for host in cluster.hosts}
        cluster.before = cluster.state()
        yield cluster
    finally:
        if os.environ.get("KUBEADM_IPVS_KEEP_LAB") != "1":
            failure_logs.pop("lab", None)
            down.down(name, progress, force=True)


def preparation_texts(cluster: Cluster, host: str) -> dict[str, str]:
    """The texts of the steps with which `up` prepares a host. The hosts are plain again afterwards."""
    stack.ensure(cluster.stack, env.toolbox(), Progress(quiet=True))
    run = cluster.start("up")
    last = f"create {host}-preparation"
    events = run.events()
    assert any(last in run.finished for _ in events), run.diagnostics
    # The engine reports a step's end before saving it, and has saved it by the next event.
    next(events)
    run.kill()
    cluster.unlock()
    texts = step_texts(cluster)
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    run.kill_plugins()
    assert done.returncode == 0, done.stdout + done.stderr
    return texts
