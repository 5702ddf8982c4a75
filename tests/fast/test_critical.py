"""The critical path of a run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.fast import past_run
from tests.fast.engine_events import event, urn
from tools import critical
from tools.critical import Bar
from tools.watch import Urn


def names(run: critical.Timeline) -> list[str]:
    return [Urn.parse(step.bar.urn).name for step in run.path]


def bars(*operations: tuple[str, str, float, float]) -> list[Bar]:
    return [Bar(urn(name), op, began, ended) for name, op, began, ended in operations]


@pytest.mark.parametrize(
    "slow", ["master-preparation", "node1-preparation", "DaemonSet/kube-flannel/flannel"]
)
def test_critical_path_leads_through_slow_step(tmp_path: Path, slow: str) -> None:
    lines, path = past_run.up(tmp_path, {slow: 400})
    run = critical.read(past_run.text(lines), "dev")
    assert names(run) == path
    assert slow in path
    assert run.by_dependencies and run.exact
    # Work and waiting add up to the whole run.
    assert sum(step.bar.took + step.waited for step in run.path) == pytest.approx(run.seconds)


def test_bars_are_grouped_by_host(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    groups = run.groups()
    assert list(groups) == ["master", "node1", "node2", "cluster"]
    assert [bar.name for bar in groups["node1"]][:4] == ["deregister", "claim", "preparation", "join"]
    assert {"nodes", "expected-services"} <= {bar.name for bar in groups["cluster"]}


def test_steps_of_several_scripts_have_parts(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    parts = {Urn.parse(bar.urn).name: bar.parts for bar in run.bars if bar.parts}
    assert {name: [part.name for part in found] for name, found in parts.items()} == {
        **{f"{host}-preparation": PREPARATION for host in ("master", "node1", "node2")},
        **{f"{host}-join": ["join", "proxy"] for host in ("node1", "node2")},
        "master-init": ["init", "proxy"],
    }
    for bar in run.bars:
        if bar.parts:
            assert (bar.parts[0].began, bar.parts[-1].ended) == (bar.began, bar.ended)
            assert all(earlier.ended == later.began for earlier, later in pairwise(bar.parts))
            assert all(part.took > 0 for part in bar.parts)


PREPARATION = ["claim", "kernel", "firewall", "packages", "runtime"]


def reported(name: str, text: str, at: float, urn_: str | None = None) -> dict[str, Any]:
    """A message of a step."""
    return {"timestamp": at, "diagnosticEvent": {"urn": urn(name) if urn_ is None else urn_, "message": text}}


def test_parts_end_with_their_last_message() -> None:
    log = [
        event("resourcePreEvent", "a", "create", 1),
        reported("a", "node1: claim: - a problem\n", 2),
        reported("a", "<{%reset%}>node1: claim: claimed", 3),
        reported("b", "node1: runtime: of another step", 4),
        reported("", "node1: runtime: of no step", 4, ""),
        reported("a", "say: something else", 4),
        reported("a", "node1: packages: installing kubelet", 5),
        reported("a", "node1: packages: they are installed", 8),
        # An error repeats all that was printed.
        reported("a", "running ...:\nnode1: claim: claimed\nnode1: runtime: FAILED: no containerd", 9),
        event("resOpFailedEvent", "a", "create", 10),
    ]
    [bar] = critical.read(past_run.text(log), "dev").bars
    assert bar.outcome == "failed"
    assert [(part.name, part.began, part.ended) for part in bar.parts] == [
        ("claim", 0, 2),
        ("packages", 2, 7),
        ("runtime", 7, 9),
    ]


def test_step_of_one_script_has_no_parts() -> None:
    log = [
        event("resourcePreEvent", "a", "create", 1),
        reported("a", "node1: verification: the tables match", 2),
        event("resOutputsEvent", "a", "create", 3),
        event("resourcePreEvent", "a", "update", 4),
        reported("a", "node1: claim: claimed", 5),
        event("resOutputsEvent", "a", "update", 6),
    ]
    assert [bar.parts for bar in critical.read(past_run.text(log), "dev").bars] == [(), ()]


def test_longest_matching_host_name_wins() -> None:
    kind, parent = "command:remote:Command", "kubeadm-ipvs:index:PreparedHost$"
    claims = [Bar(urn(f"{host}-claim", kind, parent), "create", 0, 1) for host in ("node", "node-b")]
    grouped = critical._grouped([*claims, Bar(urn("node-b-join", kind), "create", 0, 1)], {})
    assert [bar.group for bar in grouped] == ["node", "node-b", "node-b"]


def test_deletion_waits_for_dependents() -> None:
    dependencies = {urn("b"): [urn("a")], urn("c"): [urn("a")]}
    some = bars(("b", "delete", 0, 9), ("c", "delete", 0, 4), ("a", "delete", 10, 12))
    path = critical.critical_path(some, dependencies)
    assert [(Urn.parse(step.bar.urn).name, step.waited) for step in path] == [("b", 0), ("a", 1)]


def test_replacement_waits_for_its_own_deletion() -> None:
    dependencies = {urn("join"): [urn("init")]}
    some = bars(
        ("join", "delete-replaced", 0, 5),
        ("init", "delete-replaced", 5, 7),
        ("init", "create-replacement", 7, 20),
        ("join", "create-replacement", 20, 30),
    )
    assert [step.bar for step in critical.critical_path(some, dependencies)] == some


def test_path_leads_through_unchanged_resources() -> None:
    dependencies = {urn("object"): [urn("provider")], urn("provider"): [urn("init")], urn("init"): []}
    some = bars(("init", "create", 0, 5), ("other", "create", 0, 6), ("object", "create", 6, 8))
    path = critical.critical_path(some, dependencies)
    assert [Urn.parse(step.bar.urn).name for step in path] == ["init", "object"]
    assert path[1].waited == 1


def test_dependency_cycle_ends() -> None:
    some = bars(("a", "create", 0, 5), ("b", "create", 5, 6))
    assert len(critical.critical_path(some, {urn("a"): [urn("b")], urn("b"): [urn("a")]})) == 2


def test_path_without_dependencies_is_based_on_times() -> None:
    log = [
        event("resourcePreEvent", "b", "delete", 100),
        event("resOutputsEvent", "b", "delete", 109),
        event("resourcePreEvent", "a", "delete", 109),
        event("resOutputsEvent", "a", "delete", 112),
    ]
    run = critical.read(past_run.text(log), "dev", {})
    assert (run.command, names(run)) == ("destroy", ["b", "a"])
    assert any("times alone" in caveat for caveat in critical.caveats(run))
    assert any("whole seconds" in caveat for caveat in critical.caveats(run))


def test_only_changes_have_bars() -> None:
    component = event("resourcePreEvent", "part", "create", 2)
    component["resourcePreEvent"]["metadata"]["new"]["custom"] = False
    log = [
        event("resourcePreEvent", "a", "create", 1, planning=True),
        component,
        event("resourcePreEvent", "b", "same", 3),
        event("resourcePreEvent", "c", "update", 4),
        event("resOutputsEvent", "c", "update", 6),
    ]
    run = critical.read(past_run.text(log), "dev")
    assert [(bar.name, bar.began, bar.ended) for bar in run.bars] == [("c", 0, 2)]


def test_file_without_events_is_refused() -> None:
    for text in ("", "Previewing update (dev)\n", '{"steps": []}\n', "[1]\n"):
        with pytest.raises(UserError, match="--event-log"):
            critical.read(text, "dev")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.5, [0]),
        (4, [0, 1, 2, 3, 4]),
        (47, [0, 10, 20, 30, 40]),
        (465, [0, 120, 240, 360]),
        (5000, [0, 900, 1800, 2700, 3600, 4500]),
    ],
)
def test_axis_has_few_round_times(seconds: float, expected: list[float]) -> None:
    assert critical.ticks(seconds) == expected
