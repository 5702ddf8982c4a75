"""Hosts on which there is nothing yet, for cases that need no cluster, or make one of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from common.progress import Progress
from lab.api import Lab, LabStatus
from lab.options import Family
from tests.lab.cluster import Cluster, own_process
from tests.lab.kills import texts
from tools import down, env, stack

PlainLab = Callable[[str, Family, Callable[[Cluster], None]], AbstractContextManager[Cluster]]
"""`plain_hosts` with what is the same for all cases."""


@contextmanager
def plain_hosts(
    name: str,
    family: Family,
    own: Callable[[Cluster], None],
    *,
    failure_logs: dict[str, Callable[[Path], Any]],
    progress: Progress,
    runs_on: Callable[[LabStatus], None],
) -> Iterator[Cluster]:
    """Plain hosts in a lab of that name, which goes at the end.

    :param own: puts there what a person has on their hosts, before their state is taken down.
    """
    lab = Lab.load(name, progress)
    down.down(name, progress, force=True)
    failure_logs["lab"] = lab.collect_logs
    try:
        status = lab.up(count=int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "2")), family=family)
        runs_on(status)
        cluster = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
        own(cluster)
        cluster.own = {host: own_process(cluster, host) for host in cluster.hosts}
        cluster.before = cluster.state()
        yield cluster
    finally:
        if os.environ.get("KUBEADM_IPVS_KEEP_LAB") != "1":
            failure_logs.pop("lab", None)
            down.down(name, progress, force=True)


def prepared(cluster: Cluster, host: str) -> dict[str, str]:
    """What `up` sends to a host until it is prepared; the hosts are plain again."""
    stack.ensure(cluster.stack, env.toolbox(), Progress(quiet=True))
    run = cluster.start("up")
    last = f"create {host}-runtime"
    events = run.events()
    assert any(last in run.ended for _ in events), run.said
    # The engine tells of an end before it writes it down, and has written it down by the next.
    next(events)
    run.kill()
    cluster.unlock()
    sent = texts(cluster)
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    run.end_plugins()
    assert done.returncode == 0, done.stdout + done.stderr
    return sent
