"""The current program replaces and deletes nothing in a stack created by an earlier version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.steps import ADMIN, KUBECONFIG, TOKEN, step_of
from tests.engine import exported_state, finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tests.engine.stack import replace_in
from tools import env

STATES = sorted(exported_state.FOLDER.glob("*.json.xz"))
# Other resources are built from the output of these steps, so it must stay known in a preview.
UNCHANGED = (ADMIN, KUBECONFIG, TOKEN)
# Objects whose manifests have changed since the states were exported.
CHANGED = {"DaemonSet/kube-flannel/flannel", "Deployment/default/nginx"}
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


def test_preview_updates_steps_and_changed_manifests_only(existing: Environment) -> None:
    for step in planned(existing):
        name, state = step["urn"].rpartition("::")[2], step["newState"]
        if state["type"] == "pulumi:index:Stash":
            # The digest of a step's text, or a host's login; both exist only in the state.
            assert name.endswith(("-desired", "-login")), name
        elif state["type"] != "pulumi:pulumi:Stack":
            assert step["op"] == "update", f"{step['op']} {name}"
            if name in CHANGED:
                continue
            assert state["type"] == "command:remote:Command", name
            assert step_of(state["inputs"]["create"]) not in UNCHANGED, name


def test_update_leaves_nothing_for_the_next_run(existing: Environment) -> None:
    existing.stack.up()
    assert not [call for call in existing.calls if " delete " in call]
    assert planned(existing) == []


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
