"""The phases of a run, and the table of their times."""

from __future__ import annotations

import io
from typing import Any

import pytest

from common.progress import Progress
from report.plan import COMMAND
from tests.fast.engine_events import urn
from tools.watch import Row, Watcher, phase_of, time_table

PART = "kubeadm-ipvs:index:"


def operation(name: str, component: str, op: str = "create", kind: str = COMMAND, **inputs: str) -> Any:
    """An operation on a child of a component, as in the engine's events."""
    parent = urn("parent", f"{PART}{component}")
    state = {"custom": True, "parent": parent, "inputs": inputs}
    return {"op": op, "urn": urn(name, kind), "type": kind, "new": state, "old": state}


@pytest.mark.parametrize(
    ("name", "component", "phase"),
    [
        ("node1-preparation", "PreparedHost", "prepare hosts"),
        ("master-init", "ControlPlane", "init"),
        ("node1-join", "Workers", "join"),
        ("nodes", "ControlPlane", "nodes ready"),
        ("expected-services", "Verification", "verification"),
        ("node1-verification", "Verification", "verification"),
        ("something", "Cluster", "other"),
    ],
)
def test_steps_belong_to_phases(name: str, component: str, phase: str) -> None:
    assert phase_of(operation(name, component)) == phase


def test_manifests_are_phases_of_their_own() -> None:
    step = operation("Service/default/nginx", "Manifest", kind="kubernetes:core/v1:Service")
    step["new"]["parent"] = urn("nginx", f"{PART}Manifest")
    assert phase_of(step) == "nginx"


def phases(*operations: Any) -> list[tuple[str, float, float]]:
    """The phases of a run whose operations take a second each, one after the other."""
    watcher = Watcher(Progress(io.StringIO()))
    for number, step in enumerate(operations):
        watcher.take({"resourcePreEvent": {"metadata": step}}, number)
        watcher.take({"resOutputsEvent": {"metadata": step}}, number + 1)
    return [(span.name, span.began, span.ended) for span in watcher.spans]


def test_resources_that_run_nothing_begin_no_phase() -> None:
    """They are created at once, long before the control plane is prepared."""
    assert phases(
        operation("node1-deregister", "ControlPlane", delete="x"),
        operation("node1-claim", "PreparedHost", delete="x"),
        operation("node1-preparation", "PreparedHost", create="x", update="x"),
        operation("master-init", "ControlPlane", create="x", delete="x"),
        operation("node1-node", "Workers", "update", delete="x"),
        operation("node1-join", "Workers", "update", create="x", delete="x"),
        operation("nodes", "ControlPlane", create="x", update="x"),
    ) == [("prepare hosts", 2, 3), ("init", 3, 4), ("join", 5, 6), ("nodes ready", 6, 7)]


def test_deletions_begin_their_phases() -> None:
    assert phases(
        operation("node1-verification", "Verification", "delete", create="x"),
        operation("node1-node", "Workers", "delete", delete="x"),
        operation("node1-claim", "PreparedHost", "delete", delete="x"),
    ) == [("join", 1, 2), ("prepare hosts", 2, 3)]


def test_time_table_is_aligned() -> None:
    table = time_table([Row("lab", 0.0, 61.25), Row("  hosts: booting", None, 12.0)])
    assert table.splitlines() == [
        "WHERE THE TIME WENT  BEGAN   TOOK",
        "lab                   0.0s  61.2s",
        "  hosts: booting            12.0s",
    ]


def test_long_names_fit_a_terminal() -> None:
    table = time_table([Row("  mirror: compiling " + "bridge, " * 30, None, 12.0)])
    assert max(len(line) for line in table.splitlines()) <= 94
    assert "  mirror: compiling bridge, " in table
