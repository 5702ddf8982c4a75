"""The cluster of the lab tests, made by `make up`'s own code, once for all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.progress import Progress
from lab.api import Lab
from tests.lab.cluster import Cluster, command, own_process, put_own_things
from tools import down, env

LAB = "test"


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, failure_logs: dict[str, Callable[[Path], object]], progress: Progress
) -> Cluster:
    """The finished cluster, made from plain hosts; its lab goes when the tests end."""
    lab = Lab.load(LAB, progress)
    down.down(LAB, progress, force=True)

    def end() -> None:
        failure_logs.pop("lab", None)
        # What a stack still says of the machines goes with them.
        down.down(LAB, progress, force=True)

    # Not by `yield`: where the making fails, the logs are collected before the lab goes.
    request.addfinalizer(end)
    count = int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "3"))
    began = time.monotonic()
    failure_logs["lab"] = lab.collect_logs
    status = lab.up(count=count)
    made = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
    put_own_things(made, in_force=made.hosts[:1])
    made.own = {host: own_process(made, host) for host in made.hosts}
    made.before = made.state()
    made.made = command(progress, "tools.up", "--lab", LAB)
    progress.say(f"from plain hosts to the proof: {time.monotonic() - began:.0f} s")
    return made
