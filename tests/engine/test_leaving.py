"""In which order hosts leave a cluster, and what a dead one holds up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tools import env

# A destroy stops at the first failure unless told otherwise.
GO_ON = "--continue-on-error"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    """A finished cluster of three hosts."""
    variables = env.environment(toolbox)
    variables.pop("SSH_AUTH_SOCK", None)
    folder = tmp_path_factory.mktemp("leaving")
    with (
        finished.environment(folder / "made", variables, cluster) as there,
        cluster.pods_ready("kube-flannel"),
        cluster.pods_ready("default"),
    ):
        there.stack.up()
        yield there


@pytest.fixture
def living(made: Environment, tmp_path: Path) -> Iterator[Environment]:
    """It once more, to be changed; nothing was asked of its hosts so far, and all of them live."""
    made.asked.clear()
    made.dead.clear()
    yield made.copy(tmp_path / "copy")
    made.dead.clear()


def remove(there: Environment, host: str) -> None:
    hosts = [entry for entry in there.settings["hosts"] if entry["name"] != host]
    there.write({**there.settings, "hosts": hosts})


def deletes(there: Environment) -> list[str]:
    return [line for line in there.asked if ": delete " in line]


def left(there: Environment) -> set[str]:
    """The steps that are still in the state, without what they were asked."""
    return {
        entry["urn"].rpartition("::")[2]
        for entry in there.stack.state()
        if entry["type"] == "command:remote:Command"
    }


def test_a_worker_is_drained_then_given_back_then_struck_off_the_list_of_nodes(living: Environment) -> None:
    remove(living, "node2")
    living.stack.up()
    assert deletes(living) == [
        "master: delete member master",
        "node2: delete claim node2",
        "master: delete registration master",
    ]
    assert not [name for name in left(living) if name.startswith("node2-")]


def test_a_dead_worker_that_comes_back_is_given_back_and_struck_off_again(living: Environment) -> None:
    living.dead.add("node2")
    remove(living, "node2")
    living.stack.up(fails=True)
    assert deletes(living) == ["master: delete member master"]
    living.dead.clear()
    living.asked.clear()
    living.stack.up()
    assert deletes(living) == ["node2: delete claim node2", "master: delete registration master"]


def test_a_destroy_asks_each_host_once_to_give_itself_back(living: Environment) -> None:
    living.stack.destroy()
    assert sorted(deletes(living)) == [
        f"{host}: delete claim {host}" for host in ("master", "node1", "node2")
    ]
    assert left(living) == set()


def test_a_dead_worker_holds_up_no_other_hosts_giving_back(living: Environment) -> None:
    living.dead.add("node2")
    living.stack.destroy(GO_ON, fails=True)
    assert sorted(deletes(living)) == [f"{host}: delete claim {host}" for host in ("master", "node1")]
    assert left(living) == {"node2-claim", "node2-registration"}
    living.dead.clear()
    living.asked.clear()
    living.stack.destroy()
    assert deletes(living) == ["node2: delete claim node2"], "the cluster, and its list of nodes, is gone"
