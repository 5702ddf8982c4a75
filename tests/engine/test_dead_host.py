"""Runs while a worker is dead: everything else is done, and the run fails with that worker's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tests.engine.stack import Run
from tools import env

DEAD = "node2"


@pytest.fixture(scope="module")
def finished_cluster(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    """A finished cluster of three hosts."""
    folder = tmp_path_factory.mktemp("dead")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as environment:
        environment.settings["ssh"]["waitSeconds"] = 3
        environment.write(environment.settings)
        environment.stack.up()
        yield environment


@pytest.fixture
def copy(finished_cluster: Environment, tmp_path: Path) -> Environment:
    """A copy to change, without calls yet."""
    finished_cluster.calls.clear()
    return finished_cluster.copy(tmp_path / "copy")


def dead(environment: Environment, cluster: ApiServer) -> AbstractContextManager[None]:
    return finished.dead_host(environment, cluster, DEAD)


def of_host(environment: Environment, host: str) -> list[str]:
    """The steps that ran on a host and that concern it, in order."""
    return [call.split()[2] for call in environment.calls if call.startswith(f"{host}: ")]


def assert_dead_host_named(run: Run, resource: str) -> None:
    errors = [message for message in run.messages if "no SSH server answers" in message]
    assert len(errors) == 1, run.messages
    assert f"{DEAD}: no SSH server answers" in errors[0]
    assert "Start the host" in errors[0]
    assert resource in run.text
    [warning] = [message for message in run.messages if "is dead" in message]
    assert f"{DEAD} is dead" in warning


def assert_finished_after_return(environment: Environment, *steps: str) -> None:
    """Once the host is back, the same command completes its steps and verifies every host."""
    environment.calls.clear()
    environment.stack.up()
    assert of_host(environment, DEAD) == [*steps, "verification"]
    for call in environment.calls:
        host, _, step, _ = call.split()
        on_control_plane = step in ("nodes", "expected_services") and host == "master:"
        assert host == f"{DEAD}:" or on_control_plane or step == "verification", call
    environment.stack.up("--expect-no-changes")


def test_scheduler_changes_on_living_hosts(copy: Environment, cluster: ApiServer) -> None:
    with dead(copy, cluster):
        copy.write({**copy.settings, "proxy": {"scheduler": "wrr"}})
        assert_dead_host_named(copy.stack.up(fails=True), f"{DEAD}-preparation")
        assert of_host(copy, DEAD) == []
        assert {"init", "verification", "expected_services"} <= set(of_host(copy, "master"))
        assert of_host(copy, "node1") == ["preparation", "join", "verification"]
    assert_finished_after_return(copy, "preparation", "join")


def test_program_is_upgraded_on_living_hosts(copy: Environment, cluster: ApiServer) -> None:
    with (copy.stack.folder / "scripts/lib/step.sh").open("a") as script:
        script.write("# A newer version of the program.\n")
    with dead(copy, cluster):
        assert_dead_host_named(copy.stack.up(fails=True), f"{DEAD}-preparation")
        assert of_host(copy, DEAD) == []
        assert of_host(copy, "node1") == ["preparation", "join", "verification"]
        # Once more, which finds nothing new to do for the living hosts.
        copy.calls.clear()
        assert_dead_host_named(copy.stack.up(fails=True), f"{DEAD}-preparation")
        assert set(of_host(copy, "node1")) <= {"verification"}
    assert_finished_after_return(copy, "preparation", "join")


def test_worker_joins_while_another_is_dead(copy: Environment, cluster: ApiServer) -> None:
    with dead(copy, cluster):
        copy.write({**copy.settings, "hosts": [*copy.settings["hosts"], copy.spare]})
        copy.stack.up(fails=True)
        assert of_host(copy, DEAD) == []
        assert of_host(copy, "node3") == ["preparation", "join", "verification"]
        assert "verification" in of_host(copy, "node1")


def test_unchanged_settings_fail_while_a_worker_is_dead(copy: Environment, cluster: ApiServer) -> None:
    with dead(copy, cluster):
        assert_dead_host_named(copy.stack.up(fails=True), f"{DEAD}-verification")
        assert copy.stack.preview().status == 0, "a preview doesn't depend on the hosts"
    assert_finished_after_return(copy)


def test_other_worker_is_removed_once_the_dead_one_returns(copy: Environment, cluster: ApiServer) -> None:
    with dead(copy, cluster):
        hosts: list[dict[str, Any]] = [host for host in copy.settings["hosts"] if host["name"] != "node1"]
        copy.write({**copy.settings, "hosts": hosts})
        copy.stack.up(fails=True)
        assert of_host(copy, "node1") == []
    copy.stack.up()
    assert of_host(copy, "node1") == ["claim"]
    copy.stack.up("--expect-no-changes")


def test_host_with_a_working_login_isnt_dead(copy: Environment, cluster: ApiServer) -> None:
    """The run may be what makes its node Ready again."""
    with dead(copy, cluster):
        copy.servers[DEAD].down = False
        run = copy.stack.up("--expect-no-changes")
        assert not [message for message in run.messages if "is dead" in message]


def test_destroy_restores_living_hosts_first(copy: Environment, cluster: ApiServer) -> None:
    """The state of a run with a dead host must not make other hosts' deletions wait for it."""
    with dead(copy, cluster):
        copy.stack.up(fails=True)
        copy.stack.destroy("--continue-on-error", fails=True)
        restored = {call for call in copy.calls if ": delete claim " in call}
        assert restored == {f"{host}: delete claim {host}" for host in ("master", "node1")}
    copy.calls.clear()
    copy.stack.destroy()
    assert copy.calls == [f"{DEAD}: delete claim {DEAD}"]
