"""Fixtures for the long cases: a cluster that persists between runs, and a record of each case's result.

`make resilience` creates the lab `resilience` with its cluster if necessary, runs the cases that haven't
passed since the program last changed, and saves each result at once, so that an interrupted run can continue.
`python -m tests.lab.resilience.results` writes the table in the docs.

Each case leaves a working cluster behind. After a failed case, the `pulumi up` before the next one must
repair the cluster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.progress import Progress
from lab.lab import Lab
from lab.status import LabStatus
from tests.lab.cluster import Cluster, command, install_user_workload, workload_process
from tests.lab.resilience import results
from tests.lab.resilience.plain import PlainLab, plain_hosts
from tools import env

LAB = "resilience"
_measurements: pytest.StashKey[list[str]] = pytest.StashKey()
_where: pytest.StashKey[str] = pytest.StashKey()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passed = results.passed(results.read(results.here()), results.code())
    run_all = os.environ.get("KUBEADM_IPVS_RESILIENCE_ALL") == "1"
    folder = Path(__file__).parent
    done = [item for item in items if folder in item.path.parents and item.name in passed and not run_all]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in done]


def _title(item: pytest.Item) -> str:
    docstring = (item.function.__doc__ or "") if isinstance(item, pytest.Function) else ""
    # One line, for a row of the table.
    return " ".join(docstring.split()) or item.name.removeprefix("test_").replace("_", " ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        results.add(
            results.Result(
                case=item.name,
                what=_title(item),
                outcome=report.outcome,
                seconds=round(report.duration),
                date=time.strftime("%Y-%m-%d", time.gmtime()),
                code=results.code(),
                where=item.config.stash.get(_where, "no lab"),
                figures=item.stash.get(_measurements, []),
            )
        )
    return report


@pytest.fixture
def record(request: pytest.FixtureRequest, progress: Progress) -> results.Record:
    """A function that prints a case's measurement and keeps it for the table."""
    kept: list[str] = []
    request.node.stash[_measurements] = kept

    def keep(text: str) -> None:
        progress.say(text)
        kept.append(text)

    return keep


@pytest.fixture(scope="session")
def runs_on(request: pytest.FixtureRequest) -> Callable[[LabStatus], None]:
    """A function that records the environment of the following cases."""

    def keep(status: LabStatus) -> None:
        request.config.stash[_where] = results.where(status)

    return keep


@pytest.fixture(scope="session")
def plain_lab(
    failure_logs: dict[str, Callable[[Path], Any]], progress: Progress, runs_on: Callable[[LabStatus], None]
) -> PlainLab:
    """A function that creates plain hosts for a module's cases."""
    return partial(plain_hosts, failure_logs=failure_logs, progress=progress, runs_on=runs_on)


@pytest.fixture(scope="session")
def lasting_cluster(
    failure_logs: dict[str, Callable[[Path], Any]], progress: Progress, runs_on: Callable[[LabStatus], None]
) -> Cluster:
    """The cluster of the long cases. Its lab stays."""
    lab = Lab.load(LAB, progress)
    count = int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "3"))
    status = lab.up(count=None if lab.exists else count)
    runs_on(status)
    failure_logs["lab"] = lab.collect_logs
    cluster = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
    before = lab.folder / "before.txt"
    if not before.exists():
        install_user_workload(cluster, in_force=())
        results.write_state(before, cluster.state())
    cluster.before = results.read_state(before)
    cluster.workload = {host: workload_process(cluster, host) for host in cluster.hosts}
    return cluster


@pytest.fixture
def cluster(lasting_cluster: Cluster, progress: Progress) -> Cluster:
    """The cluster after an `up`, which repairs anything that the previous case left behind."""
    command(progress, "tools", "up", "--lab", LAB)
    return lasting_cluster
