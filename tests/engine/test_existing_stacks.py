"""The current program replaces nothing in a stack of an earlier version, and runs nothing when it deletes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.plan import COMMAND, STASH
from tests.engine import exported_state, finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tests.engine.stack import replace_in
from tools import env

STATES = sorted(exported_state.FOLDER.glob("*.json.xz"))
# Objects whose manifests have changed since the states were exported.
CHANGED = {"DaemonSet/kube-flannel/flannel", "Deployment/default/nginx"}
# Commands that earlier versions didn't have.
NEW = {"nodes"}
VERSION, NEWER = "1.37.2", "1.38.0"


@pytest.fixture(params=STATES, ids=lambda file: file.name.removesuffix(".json.xz"))
def existing(
    request: pytest.FixtureRequest, tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as made:
        exported_state.restore(request.param, made, cluster)
        yield made


def planned(made: Environment) -> list[dict[str, Any]]:
    """All changes that a preview plans, including those to providers and the stack."""
    done = made.stack.call("preview", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout[done.stdout.index("{\n") :])
    return [step for step in plan["steps"] if step["op"] not in ("same", "refresh")]


def name_of(step: dict[str, Any]) -> str:
    return str(step["urn"].rpartition("::")[2])


def is_command(step: dict[str, Any]) -> bool:
    return bool((step.get("newState") or step["oldState"])["type"] == COMMAND)


def assert_allowed(step: dict[str, Any]) -> None:
    """Fail if a planned change isn't one that a new version of the program may make."""
    name, op = name_of(step), step["op"]
    old, new = step.get("oldState") or {}, step.get("newState") or {}
    kind = (new or old)["type"]
    if kind == STASH:
        return  # it is only in the state, so its replacement runs nothing
    if op == "delete":
        component = not old.get("custom")
        assert component or kind == COMMAND, f"{op} {name}"
        assert component or "delete" not in old["inputs"], f"the deletion of {name} runs something"
    elif op == "create":
        component = not new.get("custom")
        assert component or (kind == COMMAND and name in NEW), f"{op} {name}"
    elif kind != "pulumi:pulumi:Stack":
        assert op == "update", f"{op} {name}"
        assert kind == COMMAND or kind.startswith("pulumi:providers:") or name in CHANGED, name


def test_preview_updates_steps_and_changed_manifests_only(existing: Environment) -> None:
    plan = planned(existing)
    for step in plan:
        assert_allowed(step)
    # Their old deletes drain the node and reset the host.
    operations = {name_of(step): step["op"] for step in plan if is_command(step)}
    for worker in ("node1", "node2"):
        for name in ("node", "join", "preparation"):
            assert operations[f"{worker}-{name}"] == "update"
        assert operations.get(f"{worker}-claim", "same") in ("update", "same")
        assert operations.get(f"{worker}-deregister", "same") in ("update", "same")
    assert operations["master-init"] == "update"
    assert operations.get("master-claim", "same") in ("update", "same")


def test_update_deletes_nothing_on_hosts(existing: Environment) -> None:
    existing.stack.up()
    assert not [call for call in existing.calls if ": delete " in call]
    assert planned(existing) == []
    logins = {name: len(server.logins) for name, server in existing.servers.items()}
    existing.stack.up("--expect-no-changes")
    assert {name: len(server.logins) for name, server in existing.servers.items()} == logins


def test_interrupted_update_is_completed_by_the_next(existing: Environment) -> None:
    existing.failing.add("node2: update preparation node2")
    existing.stack.up(fails=True)
    existing.failing.clear()
    for step in planned(existing):
        assert_allowed(step)
    existing.stack.up()
    assert not [call for call in existing.calls if ": delete " in call]
    assert planned(existing) == []


def test_updated_stack_removes_and_restores_hosts(existing: Environment) -> None:
    existing.stack.up()
    existing.calls.clear()
    hosts = [host for host in existing.settings["hosts"] if host["name"] != "node2"]
    existing.write({**existing.settings, "hosts": hosts})
    existing.stack.up()
    assert [call for call in existing.calls if ": delete " in call] == [
        "master: delete node master",
        "node2: delete claim node2",
        "master: delete deregister master",
    ]
    existing.calls.clear()
    existing.stack.destroy()
    assert sorted(existing.calls) == ["master: delete claim master", "node1: delete claim node1"]
    assert existing.stack.state() == []


def test_newer_default_version_changes_no_existing_stack(existing: Environment) -> None:
    """The first stack never wrote the version, and no earlier version of the program exported it."""
    before = operations(existing)
    replace_in(existing.stack.folder / "model/settings.py", f'"{VERSION}",', f'"{NEWER}",')
    assert operations(existing) == before
    existing.stack.up()
    assert existing.stack.output("kubernetesVersion") == VERSION
    assert planned(existing) == []


def operations(made: Environment) -> set[tuple[str, str]]:
    return {(step["op"], step["urn"]) for step in planned(made)}
