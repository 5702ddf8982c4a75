"""The order in which hosts are removed from a cluster, including unreachable ones."""

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

# Without it, a destroy stops at the first failure.
CONTINUE = "--continue-on-error"


@pytest.fixture(scope="module")
def finished_cluster(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    """A finished cluster of three hosts."""
    folder = tmp_path_factory.mktemp("leaving")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as environment:
        environment.stack.up()
        yield environment


@pytest.fixture
def copy(finished_cluster: Environment, tmp_path: Path) -> Environment:
    """A copy to change, with working hosts and no calls yet."""
    finished_cluster.calls.clear()
    finished_cluster.failing.clear()
    finished_cluster.barriers.clear()
    return finished_cluster.copy(tmp_path / "copy")


def remove(environment: Environment, host: str) -> None:
    hosts = [entry for entry in environment.settings["hosts"] if entry["name"] != host]
    environment.write({**environment.settings, "hosts": hosts})


def join_spare(environment: Environment, *, fails: bool = False) -> None:
    environment.write({**environment.settings, "hosts": [*environment.settings["hosts"], environment.spare]})
    environment.stack.up(fails=fails)


def deletes(environment: Environment) -> list[str]:
    return [line for line in environment.calls if ": delete " in line]


def named(environment: Environment, kind: str) -> set[str]:
    """The names of the resources in the state whose type starts with `kind`."""
    return {
        entry["urn"].rpartition("::")[2]
        for entry in environment.stack.state()
        if entry["type"].startswith(kind)
    }


def remaining_steps(environment: Environment) -> set[str]:
    """The steps that are still in the state."""
    return named(environment, "command:remote:Command")


def objects_replaced(environment: Environment) -> set[str]:
    """The operations that replace every Kubernetes object in the state."""
    names = named(environment, "kubernetes:")
    assert len(names) > 5
    return {f"create-replacement {name}" for name in names}


def test_removed_worker_is_drained_restored_and_deregistered(copy: Environment) -> None:
    remove(copy, "node2")
    copy.stack.up()
    assert deletes(copy) == [
        "master: delete node master",
        "node2: delete claim node2",
        "master: delete deregister master",
    ]
    assert not [name for name in remaining_steps(copy) if name.startswith("node2-")]


def test_returning_worker_is_restored_and_deregistered(copy: Environment) -> None:
    copy.failing.add("node2")
    remove(copy, "node2")
    copy.stack.up(fails=True)
    assert deletes(copy) == ["master: delete node master"]
    copy.failing.clear()
    copy.calls.clear()
    copy.stack.up()
    assert deletes(copy) == ["node2: delete claim node2", "master: delete deregister master"]


def test_lost_host_can_be_removed_from_state(copy: Environment) -> None:
    copy.failing.add("node2")
    remove(copy, "node2")
    copy.stack.up(fails=True)
    claim = next(entry["urn"] for entry in copy.stack.state() if entry["urn"].endswith("::node2-claim"))
    copy.stack.forget(claim, "--target-dependents")
    copy.calls.clear()
    copy.stack.up()
    assert deletes(copy) == ["master: delete deregister master"]
    assert not [name for name in remaining_steps(copy) if name.startswith("node2")]
    copy.stack.destroy()
    assert remaining_steps(copy) == set()


def test_destroy_restores_each_host_once(copy: Environment) -> None:
    copy.stack.destroy()
    assert sorted(deletes(copy)) == [f"{host}: delete claim {host}" for host in ("master", "node1", "node2")]
    assert remaining_steps(copy) == set()


def test_unprepared_host_is_in_the_state_and_restored(copy: Environment) -> None:
    """Its preparation may have changed it before it failed."""
    copy.failing.add("node3: create preparation node3")
    join_spare(copy, fails=True)
    steps = remaining_steps(copy)
    assert "node3-claim" in steps
    assert not {"node3-preparation", "node3-join", "node3-node"} & steps
    unprepared = copy.copy(copy.stack.folder.parent.parent / "destroyed")
    unprepared.stack.destroy()
    assert "node3: delete claim node3" in deletes(copy)
    assert remaining_steps(unprepared) == set()
    copy.calls.clear()
    copy.write(copy.settings)
    copy.stack.up()
    assert deletes(copy) == ["node3: delete claim node3", "master: delete deregister master"]
    assert not [name for name in remaining_steps(copy) if name.startswith("node3-")]


def test_unprepared_control_plane_is_restored(
    tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer
) -> None:
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as made:
        made.failing.add("master: create preparation master")
        made.stack.up(fails=True)
        assert sorted(made.calls) == [f"{host}: create preparation {host}" for host in ("node1", "node2")], (
            "nothing else can start"
        )
        made.calls.clear()
        made.stack.destroy()
        assert {f"{host}: delete claim {host}" for host in ("master", "node1", "node2")} <= set(made.calls)
        assert remaining_steps(made) == set()


def test_destroy_restores_all_workers_in_parallel(copy: Environment) -> None:
    """In sequence, a destroy would take minutes for each host."""
    join_spare(copy)
    workers = ("node1", "node2", "node3")
    barrier = threading.Barrier(len(workers))
    copy.barriers.update({f"{host}: delete claim {host}": barrier for host in workers})
    copy.stack.destroy()
    assert remaining_steps(copy) == set()


def test_new_cluster_skips_draining_and_deleting_objects(copy: Environment, cluster: ApiServer) -> None:
    flannel = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/flannel"
    old_uid = cluster.call("GET", flannel)["metadata"]["uid"]
    replaced = objects_replaced(copy)
    copy.write({**copy.settings, "network": {"podSubnet": "10.200.0.0/16"}})
    run = copy.stack.up()
    created = [line for line in copy.calls if re.search(": create (init|join) ", line)]
    for verb, found in (("delete", deletes(copy)[::-1]), ("create", created)):
        assert found[0] == f"master: {verb} init master", "deleted last and created first"
        assert sorted(found[1:]) == [f"{host}: {verb} join {host}" for host in ("node1", "node2")]
    assert replaced <= set(run.ops)
    # The test's API server outlives the cluster, so a deleted object would have a new UID.
    assert cluster.call("GET", flannel)["metadata"]["uid"] == old_uid
    assert copy.stack.up().ops == []


def test_new_control_plane_address_creates_a_new_cluster(copy: Environment) -> None:
    settings = deepcopy(copy.settings)
    settings["hosts"][0]["address"] = "10.0.0.99"
    replaced = objects_replaced(copy)
    copy.write(settings)
    run = copy.stack.up()
    assert {"create-replacement master-init", "create-replacement node1-join", *replaced} <= set(run.ops)
    assert copy.calls.index("master: delete claim master") < copy.calls.index(
        "master: create preparation master"
    )
    assert copy.stack.up().ops == []


def test_new_control_plane_host_recreates_every_object(copy: Environment, cluster: ApiServer) -> None:
    # Other tests have replaced the objects, and a delete waits only for the object that the state knows.
    copy.stack.refresh()
    cluster.forget_namespace("kube-flannel")
    replaced = objects_replaced(copy)
    hosts = [{**copy.spare, "role": "control-plane"}, *copy.settings["hosts"][1:]]
    copy.write({**copy.settings, "hosts": hosts})
    run = copy.stack.up()
    assert replaced <= set(run.ops)
    assert copy.calls.index("node3: create init node3") < copy.calls.index("node1: create join node1")
    assert copy.calls[-1] == "master: delete claim master"
    assert copy.stack.up().ops == []


@pytest.mark.parametrize("unreachable", ["node1", "node3"], ids=["initial worker", "added worker"])
def test_unreachable_worker_does_not_block_other_hosts(copy: Environment, unreachable: str) -> None:
    join_spare(copy)
    copy.failing.add(unreachable)
    copy.stack.destroy(CONTINUE, fails=True)
    assert sorted(deletes(copy)) == [
        f"{host}: delete claim {host}" for host in finished.HOSTS if host != unreachable
    ]
    assert remaining_steps(copy) == {f"{unreachable}-claim", f"{unreachable}-deregister"}
    copy.failing.clear()
    copy.calls.clear()
    copy.stack.destroy()
    assert deletes(copy) == [f"{unreachable}: delete claim {unreachable}"], "the cluster is gone"
