"""Existing workers change kubelet and kube-proxy in lanes (`proxy.maxUnavailable`); new ones join at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tools import env

WORKERS = ("node1", "node2", "node3")


@pytest.fixture(scope="module")
def finished_cluster(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    """A finished cluster of four hosts, whose workers change one after the other."""
    folder = tmp_path_factory.mktemp("lanes")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as environment:
        environment.settings["hosts"] = [*environment.settings["hosts"], environment.spare]
        environment.settings["proxy"] = {"maxUnavailable": 1}
        environment.write(environment.settings)
        # Succeeds only if all of them join at the same time.
        barrier = threading.Barrier(len(WORKERS))
        environment.barriers.update({f"{host}: create join {host}": barrier for host in WORKERS})
        environment.stack.up()
        environment.barriers.clear()
        yield environment


@pytest.fixture
def copy(finished_cluster: Environment, tmp_path: Path) -> Environment:
    """A copy to change, with working hosts and no calls yet."""
    finished_cluster.calls.clear()
    finished_cluster.failing.clear()
    finished_cluster.barriers.clear()
    return finished_cluster.copy(tmp_path / "copy")


def change(environment: Environment, unavailable: int | str = 1) -> None:
    """Change kube-proxy's scheduler."""
    environment.write({**environment.settings, "proxy": {"maxUnavailable": unavailable, "scheduler": "wrr"}})


def changes(environment: Environment) -> list[str]:
    """The hosts whose kubelet and kube-proxy changed, in order."""
    return [call.partition(":")[0] for call in environment.calls if " update join " in call]


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the joins that run at the same time; each takes long enough for others to start.

    Yields:
        The number at the start of each.
    """
    lock, running, found = threading.Lock(), [0], list[int]()
    answer = finished.answer

    def slow(command: str, cluster: ApiServer) -> str:
        if " update join " not in command:
            return answer(command, cluster)
        with lock:
            running[0] += 1
            found.append(running[0])
        time.sleep(1)
        with lock:
            running[0] -= 1
        return answer(command, cluster)

    with patch.context() as inside:
        inside.setattr(finished, "answer", slow)
        yield found


def test_existing_workers_change_one_after_another(
    copy: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy)
    with counted(monkeypatch) as found:
        copy.stack.up()
    assert changes(copy) == list(WORKERS)
    assert found == [1, 1, 1]
    first = copy.calls.index("node1: update join node1")
    assert copy.calls.index("master: update init master") < first, "the control plane changes first"
    prepared = {copy.calls.index(f"{host}: update preparation {host}") for host in WORKERS}
    verified = {copy.calls.index(f"{host}: update verification {host}") for host in WORKERS}
    assert max(prepared) < copy.calls.index("node3: update join node3") < min(verified)
    copy.stack.up("--expect-no-changes")


def test_more_workers_change_at_a_time_if_allowed(copy: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    # 67% of three workers, rounded down.
    change(copy, "67%")
    barrier = threading.Barrier(2)
    copy.barriers.update({f"{host}: update join {host}": barrier for host in ("node1", "node2")})
    with counted(monkeypatch) as found:
        copy.stack.up()
    assert set(changes(copy)) == set(WORKERS)
    assert changes(copy)[-1] == "node3"
    assert max(found) == 2


def test_higher_limit_alone_changes_nothing(copy: Environment) -> None:
    copy.write({**copy.settings, "proxy": {"maxUnavailable": "50%"}})
    copy.stack.up("--expect-no-changes")
    assert copy.calls == []


def test_failure_stops_the_lanes_and_the_next_run_resumes(copy: Environment) -> None:
    change(copy)
    copy.failing.add("node2: update join node2")
    failed = copy.stack.up(fails=True)
    assert changes(copy) == ["node1"], "node3 serves requests with its previous kube-proxy"
    assert "bash -s -- update join node2" in failed.text
    assert "Traceback" not in failed.text
    assert not [call for call in copy.calls if call.startswith("node3: ") and " verification " in call]
    copy.failing.clear()
    copy.calls.clear()
    copy.stack.up()
    assert changes(copy) == ["node2", "node3"]
    copy.stack.up("--expect-no-changes")


def test_reverted_change_runs_on_changed_workers_only(copy: Environment) -> None:
    change(copy)
    copy.failing.add("node2: update join node2")
    copy.stack.up(fails=True)
    copy.failing.clear()
    copy.calls.clear()
    copy.write(copy.settings)
    copy.stack.up()
    assert changes(copy) == ["node1", "node2"]
    copy.stack.up("--expect-no-changes")


def test_unprepared_worker_stops_the_lanes(copy: Environment) -> None:
    change(copy)
    copy.failing.add("node2: update preparation node2")
    failed = copy.stack.up(fails=True)
    # node1 may have been first.
    before = changes(copy)
    assert before in ([], ["node1"])
    assert "Traceback" not in failed.text
    copy.failing.clear()
    copy.calls.clear()
    copy.stack.up()
    assert before + changes(copy) == list(WORKERS)


def test_new_worker_doesnt_wait_for_existing_ones(copy: Environment) -> None:
    without = {**copy.settings, "hosts": copy.settings["hosts"][:3]}
    copy.write(without)
    copy.stack.up()
    copy.calls.clear()
    barrier = threading.Barrier(2)
    copy.barriers.update(dict.fromkeys(("node1: update join node1", "node3: create join node3"), barrier))
    change(copy)
    copy.stack.up()
    assert changes(copy) == ["node1", "node2"]


def test_destroy_isnt_ordered_by_lanes(copy: Environment) -> None:
    change(copy)
    copy.stack.up()
    barrier = threading.Barrier(len(WORKERS))
    copy.barriers.update({f"{host}: delete claim {host}": barrier for host in WORKERS})
    copy.stack.destroy()
    assert copy.stack.state() == []
