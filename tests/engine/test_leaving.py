"""In which order hosts leave a cluster, and what a dead one holds up."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from copy import deepcopy
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
    folder = tmp_path_factory.mktemp("leaving")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as there:
        there.stack.up()
        yield there


@pytest.fixture
def living(made: Environment, tmp_path: Path) -> Environment:
    """It once more, to be changed; nothing was asked of its hosts so far, and all of them live."""
    made.asked.clear()
    made.dead.clear()
    made.meetings.clear()
    return made.copy(tmp_path / "copy")


def remove(there: Environment, host: str) -> None:
    hosts = [entry for entry in there.settings["hosts"] if entry["name"] != host]
    there.write({**there.settings, "hosts": hosts})


def join_spare(there: Environment) -> None:
    there.write({**there.settings, "hosts": [*there.settings["hosts"], there.spare]})
    there.stack.up()


def deletes(there: Environment) -> list[str]:
    return [line for line in there.asked if ": delete " in line]


def named(there: Environment, kind: str) -> set[str]:
    """What is still in the state of the types that begin so."""
    return {
        entry["urn"].rpartition("::")[2] for entry in there.stack.state() if entry["type"].startswith(kind)
    }


def left(there: Environment) -> set[str]:
    """The steps that are still in the state, without what they were asked."""
    return named(there, "command:remote:Command")


def objects_anew(there: Environment) -> set[str]:
    """What a run has to do that makes every Kubernetes object of the state anew."""
    names = named(there, "kubernetes:")
    assert len(names) > 5
    return {f"create-replacement {name}" for name in names}


def test_a_worker_is_drained_then_given_back_then_struck_off_the_list_of_nodes(living: Environment) -> None:
    remove(living, "node2")
    living.stack.up()
    assert deletes(living) == [
        "master: delete node master",
        "node2: delete claim node2",
        "master: delete deregister master",
    ]
    assert not [name for name in left(living) if name.startswith("node2-")]


def test_a_dead_worker_that_comes_back_is_given_back_and_struck_off_again(living: Environment) -> None:
    living.dead.add("node2")
    remove(living, "node2")
    living.stack.up(fails=True)
    assert deletes(living) == ["master: delete node master"]
    living.dead.clear()
    living.asked.clear()
    living.stack.up()
    assert deletes(living) == ["node2: delete claim node2", "master: delete deregister master"]


def test_a_host_that_is_gone_for_ever_is_forgotten_and_holds_nothing_up(living: Environment) -> None:
    living.dead.add("node2")
    remove(living, "node2")
    living.stack.up(fails=True)
    claim = next(entry["urn"] for entry in living.stack.state() if entry["urn"].endswith("::node2-claim"))
    living.stack.forget(claim, "--target-dependents")
    living.asked.clear()
    living.stack.up()
    assert deletes(living) == ["master: delete deregister master"]
    assert not [name for name in left(living) if name.startswith("node2")]
    living.stack.destroy()
    assert left(living) == set()


def test_a_destroy_asks_each_host_once_to_give_itself_back(living: Environment) -> None:
    living.stack.destroy()
    assert sorted(deletes(living)) == [
        f"{host}: delete claim {host}" for host in ("master", "node1", "node2")
    ]
    assert left(living) == set()


def test_workers_are_given_back_side_by_side_whenever_they_were_added(living: Environment) -> None:
    """Or a destroy would take as many times one host's minutes as there are hosts."""
    join_spare(living)
    workers = ("node1", "node2", "node3")
    meeting = threading.Barrier(len(workers))
    living.meetings.update({f"{host}: delete claim {host}": meeting for host in workers})
    living.stack.destroy()
    assert left(living) == set()


def test_a_new_cluster_is_made_without_draining_or_deleting_one_by_one_what_the_old_one_had(
    living: Environment, cluster: ApiServer
) -> None:
    flannel = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/flannel"
    former = cluster.call("GET", flannel)["metadata"]["uid"]
    anew = objects_anew(living)
    living.write({**living.settings, "network": {"podSubnet": "10.200.0.0/16"}})
    run = living.stack.up()
    made = [line for line in living.asked if re.search(": create (init|join) ", line)]
    for verb, found in (("delete", deletes(living)[::-1]), ("create", made)):
        assert found[0] == f"master: {verb} init master", "the cluster goes last, and comes first"
        assert sorted(found[1:]) == [f"{host}: {verb} join {host}" for host in ("node1", "node2")]
    assert anew <= set(run.ops)
    # Here the API server outlives the cluster: what had been deleted would be another now.
    assert cluster.call("GET", flannel)["metadata"]["uid"] == former
    assert living.stack.up().ops == []


def test_another_address_of_the_control_plane_makes_a_new_cluster(living: Environment) -> None:
    settings = deepcopy(living.settings)
    settings["hosts"][0]["address"] = "10.0.0.99"
    anew = objects_anew(living)
    living.write(settings)
    run = living.stack.up()
    assert {"create-replacement master-init", "create-replacement node1-join", *anew} <= set(run.ops)
    assert living.asked.index("master: delete claim master") < living.asked.index(
        "master: create claim master"
    )
    assert living.stack.up().ops == []


def test_another_machine_as_control_plane_makes_a_new_cluster_that_gets_every_object(
    living: Environment, cluster: ApiServer
) -> None:
    cluster.forget_namespace("kube-flannel")
    anew = objects_anew(living)
    hosts = [{**living.spare, "role": "control-plane"}, *living.settings["hosts"][1:]]
    living.write({**living.settings, "hosts": hosts})
    run = living.stack.up()
    assert anew <= set(run.ops)
    assert living.asked.index("node3: create init node3") < living.asked.index("node1: create join node1")
    assert living.asked[-1] == "master: delete claim master"
    assert living.stack.up().ops == []


@pytest.mark.parametrize("dead", ["node1", "node3"])
def test_a_dead_worker_holds_up_no_other_hosts_giving_back(living: Environment, dead: str) -> None:
    """Neither one of the first hosts nor one that was added to them."""
    join_spare(living)
    living.dead.add(dead)
    living.stack.destroy(GO_ON, fails=True)
    assert sorted(deletes(living)) == [
        f"{host}: delete claim {host}" for host in finished.HOSTS if host != dead
    ]
    assert left(living) == {f"{dead}-claim", f"{dead}-deregister"}
    living.dead.clear()
    living.asked.clear()
    living.stack.destroy()
    assert deletes(living) == [f"{dead}: delete claim {dead}"], "the cluster, and its list of nodes, is gone"
