"""The lab tests' cluster, created once by the code of `make up`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.progress import Progress
from lab.lab import Lab
from tests.lab.cluster import Cluster, command, install_user_workload, workload_process
from tools import down, env

LAB = "test"


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, failure_logs: dict[str, Callable[[Path], object]], progress: Progress
) -> Cluster:
    """A cluster created on plain hosts; its lab is removed after the tests."""
    lab = Lab.load(LAB, progress)
    down.down(LAB, progress, force=True)

    def end() -> None:
        failure_logs.pop("lab", None)
        # Also removes what is left of the stack.
        down.down(LAB, progress, force=True)

    # Not with `yield`: if the setup fails, logs are collected before the lab is removed.
    request.addfinalizer(end)
    count = int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "3"))
    began = time.monotonic()
    failure_logs["lab"] = lab.collect_logs
    status = lab.up(count=count)
    cluster = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
    install_user_workload(cluster, in_force=cluster.hosts[:1])
    cluster.workload = {host: workload_process(cluster, host) for host in cluster.hosts}
    cluster.before = cluster.state()
    cluster.up_output = command(progress, "tools", "up", "--lab", LAB)
    progress.say(f"from plain hosts to verification: {time.monotonic() - began:.0f} s")
    return cluster
