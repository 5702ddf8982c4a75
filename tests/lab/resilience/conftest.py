"""The long cases: a living cluster that stays between runs, and a record of what each case has shown.

`make resilience` makes the lab `resilience` with its cluster where there is none, goes on with the cases that
haven't passed since the code last changed, and writes each outcome down at once: a run that is cut off
goes on where it was. `python -m tests.lab.resilience.results` writes the table in the docs.

Each case leaves the cluster whole, for the one after it; one that fails may not: the next case
starts with a plain `pulumi up`, which must mend it.
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
from lab.api import Lab, LabStatus
from tests.lab.cluster import Cluster, command, own_process, put_own_things
from tests.lab.resilience import results
from tests.lab.resilience.plain import PlainLab, plain_hosts
from tools import env

LAB = "resilience"
_figures: pytest.StashKey[list[str]] = pytest.StashKey()
_where: pytest.StashKey[str] = pytest.StashKey()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passed = results.passed(results.read(results.here()), results.code())
    again = os.environ.get("KUBEADM_IPVS_TORTURE_AGAIN") == "1"
    mine = Path(__file__).parent
    done = [item for item in items if mine in item.path.parents and item.name in passed and not again]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in done]


def _in_words(item: pytest.Item) -> str:
    said = (item.function.__doc__ or "") if isinstance(item, pytest.Function) else ""
    # In one line, for a row of the table.
    return " ".join(said.split()) or item.name.removeprefix("test_").replace("_", " ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        results.add(
            results.Result(
                case=item.name,
                what=_in_words(item),
                outcome=report.outcome,
                seconds=round(report.duration),
                date=time.strftime("%Y-%m-%d", time.gmtime()),
                code=results.code(),
                where=item.config.stash.get(_where, "no lab"),
                figures=item.stash.get(_figures, []),
            )
        )
    return report


@pytest.fixture
def figure(request: pytest.FixtureRequest, progress: Progress) -> Callable[[str], None]:
    """Says a figure that a case has measured, and keeps it for the table."""
    kept: list[str] = []
    request.node.stash[_figures] = kept

    def keep(text: str) -> None:
        progress.say(text)
        kept.append(text)

    return keep


@pytest.fixture(scope="session")
def runs_on(request: pytest.FixtureRequest) -> Callable[[LabStatus], None]:
    """Keeps what the cases from now on run on."""

    def keep(status: LabStatus) -> None:
        request.config.stash[_where] = results.where(status)

    return keep


@pytest.fixture(scope="session")
def plain_lab(
    failure_logs: dict[str, Callable[[Path], Any]], progress: Progress, runs_on: Callable[[LabStatus], None]
) -> PlainLab:
    """Makes plain hosts for a module's cases."""
    return partial(plain_hosts, failure_logs=failure_logs, progress=progress, runs_on=runs_on)


@pytest.fixture(scope="session")
def living(
    failure_logs: dict[str, Callable[[Path], Any]], progress: Progress, runs_on: Callable[[LabStatus], None]
) -> Cluster:
    """The cluster of the long cases; its lab stays."""
    lab = Lab.load(LAB, progress)
    count = int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "3"))
    status = lab.up(count=None if lab.exists else count)
    runs_on(status)
    failure_logs["lab"] = lab.collect_logs
    cluster = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
    fresh = lab.folder / "before.txt"
    if not fresh.exists():
        put_own_things(cluster, in_force=())
        results.write_state(fresh, cluster.state())
    cluster.before = results.read_state(fresh)
    cluster.own = {host: own_process(cluster, host) for host in cluster.hosts}
    return cluster


@pytest.fixture
def cluster(living: Cluster, progress: Progress) -> Cluster:
    """The cluster, whole: what the case before may have left is mended by a plain `up`."""
    command(progress, "tools.up", "--lab", LAB)
    return living
