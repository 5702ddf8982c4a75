"""Where the time of a run went: its bars, the critical path, the chart, and what is kept of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.fast import past_run
from tools import critical, runs, timeline
from tools.critical import Bar
from tools.watch import Urn


def urn(name: str, kind: str = "kubernetes:core/v1:Service", parent: str = "") -> str:
    return f"urn:pulumi:dev::kubeadm-ipvs::{parent}{kind}::{name}"


def event(moment: str, name: str, op: str, at: float, **more: Any) -> dict[str, Any]:
    state = {"custom": True, "parent": ""}
    metadata = {"op": op, "urn": urn(name), "type": "kubernetes:core/v1:Service", "new": state, "old": state}
    return {"timestamp": at, moment: {"metadata": metadata, **more}}


def names(run: critical.Timeline) -> list[str]:
    return [Urn.parse(step.bar.urn).name for step in run.path]


def bars(*times: tuple[str, str, float, float]) -> list[Bar]:
    return [Bar(urn(name), op, began, ended) for name, op, began, ended in times]


@pytest.mark.parametrize("slow", ["master-packages", "node1-packages", "DaemonSet/kube-flannel/flannel"])
def test_the_critical_path_is_what_the_program_waited_for(tmp_path: Path, slow: str) -> None:
    lines, path = past_run.up(tmp_path, {slow: 400})
    run = critical.read(past_run.text(lines), "dev")
    assert names(run) == path
    assert slow in path
    assert run.by_dependencies and run.exact
    # Work and waiting together are the whole run.
    assert sum(step.bar.took + step.waited for step in run.path) == pytest.approx(run.seconds)


def test_bars_are_grouped_by_host_and_what_is_on_no_host_comes_last(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    groups = run.groups()
    assert list(groups) == ["master", "node1", "node2", "cluster"]
    first = ["deregister", "claim", "kernel", "firewall", "packages", "runtime"]
    assert [bar.name for bar in groups["node1"]][:6] == first
    assert "expected-services" in [bar.name for bar in groups["cluster"]]


def test_the_hosts_are_known_without_dependencies_and_the_longer_name_wins(tmp_path: Path) -> None:
    kind, parent = "command:remote:Command", "kubeadm-ipvs:index:PreparedHost$"
    found = [Bar(urn(f"{host}-claim", kind, parent), "create", 0, 1) for host in ("node", "node-b")]
    grouped = critical._grouped([*found, Bar(urn("node-b-join", kind), "create", 0, 1)], {})
    assert [bar.group for bar in grouped] == ["node", "node-b", "node-b"]


def test_a_deletion_waits_for_those_of_what_depends_on_it() -> None:
    needs = {urn("b"): [urn("a")], urn("c"): [urn("a")]}
    some = bars(("b", "delete", 0, 9), ("c", "delete", 0, 4), ("a", "delete", 10, 12))
    path = critical.critical_path(some, needs)
    assert [(Urn.parse(step.bar.urn).name, step.waited) for step in path] == [("b", 0), ("a", 1)]


def test_a_replacement_waits_for_its_own_deletion_and_that_for_its_dependents() -> None:
    needs = {urn("join"): [urn("init")]}
    some = bars(
        ("join", "delete-replaced", 0, 5),
        ("init", "delete-replaced", 5, 7),
        ("init", "create-replacement", 7, 20),
        ("join", "create-replacement", 20, 30),
    )
    assert [step.bar for step in critical.critical_path(some, needs)] == some


def test_a_dependency_goes_through_what_was_not_worked_on() -> None:
    needs = {urn("object"): [urn("provider")], urn("provider"): [urn("init")], urn("init"): []}
    some = bars(("init", "create", 0, 5), ("other", "create", 0, 6), ("object", "create", 6, 8))
    path = critical.critical_path(some, needs)
    assert [Urn.parse(step.bar.urn).name for step in path] == ["init", "object"]
    assert path[1].waited == 1


def test_a_circle_of_dependencies_ends() -> None:
    some = bars(("a", "create", 0, 5), ("b", "create", 5, 6))
    assert len(critical.critical_path(some, {urn("a"): [urn("b")], urn("b"): [urn("a")]})) == 2


def test_without_dependencies_the_path_goes_by_times_and_says_so() -> None:
    log = [
        event("resourcePreEvent", "b", "delete", 100),
        event("resOutputsEvent", "b", "delete", 109),
        event("resourcePreEvent", "a", "delete", 109),
        event("resOutputsEvent", "a", "delete", 112),
    ]
    run = critical.read(past_run.text(log), "dev", {})
    assert (run.command, names(run)) == ("destroy", ["b", "a"])
    assert any("by times alone" in said for said in critical.caveats(run))
    assert any("whole seconds" in said for said in critical.caveats(run))
    assert "9 s" in timeline.chart(run, 100) and "9.0 s" not in timeline.chart(run, 100)


def test_a_preview_components_and_unchanged_resources_have_no_bars() -> None:
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


def test_what_failed_or_was_cut_off_is_told() -> None:
    log = [
        event("resourcePreEvent", "a", "create", 1.5),
        event("resourcePreEvent", "b", "create", 2.0),
        event("resOpFailedEvent", "a", "create", 4.0),
    ]
    run = critical.read(past_run.text(log) + '{"timestamp": 5, "resOutp', "dev")
    assert [bar.outcome for bar in run.bars] == ["failed", "cut off"]
    drawn = timeline.chart(run, 100)
    assert "2.5 s failed" in drawn and "2.0 s cut off" in drawn and "2 failed or cut off" in drawn


def test_a_log_without_a_change_is_refused_with_the_next_move() -> None:
    for text in ("", "Previewing update (dev)\n", '{"steps": []}\n', "[1]\n"):
        with pytest.raises(UserError, match="--event-log"):
            critical.read(text, "dev")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_chart_keeps_to_the_terminals_width_and_marks_the_critical_path(
    tmp_path: Path, width: int
) -> None:
    lines, path = past_run.up(tmp_path)
    drawn = timeline.chart(critical.read(past_run.text(lines), "dev"), width).split("critical path: what")[0]
    rows = drawn.splitlines()[1:]
    assert max(len(row) for row in rows) <= max(width, 66)
    assert sum(row.startswith("* ") and "#" in row for row in rows) == len(path)
    assert not any("#" in row for row in rows if row.startswith("  "))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.5, [0]), (4, [0, 1, 2, 3, 4]), (47, [0, 10, 20, 30, 40]), (465, [0, 120, 240, 360]), (5000, 4)],
)
def test_an_axis_has_a_few_round_times(seconds: float, expected: list[float] | int) -> None:
    found = critical.ticks(seconds)
    assert found == expected if isinstance(expected, list) else len(found) <= 6
    assert found[-1] <= seconds


# What is kept of a run


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, and a `pulumi` that exports what is put beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    program = tmp_path / "pulumi"
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/export\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    resources = [
        {"urn": urn("object"), "dependencies": [urn("a")], "provider": f"{urn('provider')}::some-id"},
        {"urn": urn("object"), "dependencies": [urn("b")], "delete": True, "outputs": {"key": "s3cret"}},
    ]
    (tmp_path / "export").write_text(json.dumps({"deployment": {"resources": resources}}))
    return tmp_path


def record(stack: str, command: str, *events: dict[str, Any]) -> None:
    with runs.recorded(stack, command, {"PATH": os.environ["PATH"]}, Path.cwd()) as kept:
        for one in events:
            kept.take(one)


def test_a_record_holds_no_value_of_a_resource_and_is_its_owners_alone(state: Path) -> None:
    begun = event("resourcePreEvent", "object", "create", 1)
    begun["resourcePreEvent"]["metadata"]["new"] |= {
        "inputs": {"stdin": "s3cret"},
        "outputs": {},
        "id": "s3cret",
    }
    begun["resourcePreEvent"]["metadata"]["detailedDiff"] = {"s3cret": {}}
    said = {"timestamp": 1, "diagnosticEvent": {"message": "token s3cret"}}
    record("dev", "up", begun, said, event("resOutputsEvent", "object", "create", 2))
    [file] = runs.folder("dev").iterdir()
    text = file.read_text()
    assert "s3cret" not in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert runs.folder("dev").stat().st_mode & 0o777 == 0o700
    needed = sorted([urn("a"), urn("b"), urn("provider")])
    assert json.loads(text.splitlines()[-1]) == {"dependencies": {urn("object"): needed}}
    assert timeline.last("dev").command == "up"


def test_only_the_last_runs_are_kept_and_those_that_changed_nothing_are_not(state: Path) -> None:
    for number in range(runs.KEPT + 3):
        record("dev", "up", event("resourcePreEvent", f"r{number}", "create", 1))
    record("dev", "up", event("resourcePreEvent", "r", "same", 1))
    record("dev", "up", event("resourcePreEvent", "r", "create", 1, planning=True))
    assert len(list(runs.folder("dev").iterdir())) == runs.KEPT
    assert [bar.name for bar in timeline.last("dev").bars] == [f"r{runs.KEPT + 2}"]


def test_a_run_that_fails_is_kept_as_far_as_it_came(state: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.recorded("dev", "destroy", {}, Path.cwd()) as kept:
        kept.take(event("resourcePreEvent", "a", "delete", 1))
        raise KeyboardInterrupt
    assert [bar.outcome for bar in timeline.last("dev").bars] == ["cut off"]


def test_a_destroys_dependencies_are_asked_for_before_they_are_gone(state: Path) -> None:
    with runs.recorded("dev", "destroy", {"PATH": os.environ["PATH"]}, Path.cwd()) as kept:
        (state / "export").write_text('{"deployment": {}}')
        kept.take(event("resourcePreEvent", "object", "delete", 1))
        kept.take(event("resOutputsEvent", "object", "delete", 2))
    assert timeline.last("dev").by_dependencies


def test_a_state_that_can_not_be_read_is_no_obstacle_to_a_run(state: Path) -> None:
    (state / "pulumi").write_text("#!/bin/sh\nexit 1\n")
    record("dev", "up", event("resourcePreEvent", "a", "create", 1))
    assert not timeline.last("dev").by_dependencies


def test_the_command_shows_the_last_run_or_a_given_log(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert timeline.main(["--stack", "dev"]) == 1
    assert "`make up` and `make down` keep theirs" in capsys.readouterr().err
    log = tmp_path / "events.json"
    log.write_text(past_run.text(past_run.up(tmp_path)[0]))
    assert timeline.main(["--stack", "dev", "--log", str(log)]) == 0
    assert "* init" in capsys.readouterr().out
    assert timeline.main(["--stack", "dev", "--log", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert timeline.main(["--stack", "dev", "--log", str(log), "--html", str(page / "deeper")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert timeline.main(["--stack", "dev", "--log", str(log), "--html", str(page)]) == 0
    assert "pulumi up: dev" in page.read_text()
