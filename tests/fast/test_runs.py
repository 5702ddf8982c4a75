"""Recording runs for `make timeline`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fast.engine_events import event, urn
from tests.fast.fake_programs import program
from tools import runs, timeline


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary state folder, and a fake `pulumi` that prints the file `export`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    program(tmp_path / "pulumi", f"exec cat {tmp_path}/export")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    resources = [
        {"urn": urn("object"), "dependencies": [urn("a")], "provider": f"{urn('provider')}::some-id"},
        {"urn": urn("object"), "dependencies": [urn("b")], "delete": True, "outputs": {"key": "s3cret"}},
    ]
    (tmp_path / "export").write_text(json.dumps({"deployment": {"resources": resources}}))
    return tmp_path


def record(command: str, *events: dict[str, Any]) -> None:
    with runs.recorded("dev", command, {"PATH": os.environ["PATH"]}, Path.cwd()) as kept:
        for one in events:
            kept.take(one)


def test_record_has_no_secrets_and_is_private(state: Path) -> None:
    begin = event("resourcePreEvent", "object", "create", 1)
    begin["resourcePreEvent"]["metadata"]["new"] |= {
        "inputs": {"stdin": "s3cret"},
        "outputs": {},
        "id": "s3cret",
    }
    begin["resourcePreEvent"]["metadata"]["detailedDiff"] = {"s3cret": {}}
    diagnostics = [
        {"timestamp": 1, "diagnosticEvent": {"urn": urn("object"), "message": text}}
        for text in ("token s3cret", "node1: join: s3cret", "s3cret: other: s3cret")
    ]
    record("up", begin, *diagnostics, event("resOutputsEvent", "object", "create", 2))
    [file] = runs.folder("dev").iterdir()
    text = file.read_text()
    assert "s3cret" not in text
    # Which script of the step reported something, for the step's parts.
    [reported] = [json.loads(line) for line in text.splitlines() if "diagnosticEvent" in line]
    assert reported["diagnosticEvent"] == {"urn": urn("object"), "message": "host: join: "}
    assert file.stat().st_mode & 0o777 == 0o600
    assert runs.folder("dev").stat().st_mode & 0o777 == 0o700
    dependencies = sorted([urn("a"), urn("b"), urn("provider")])
    assert json.loads(text.splitlines()[-1]) == {"dependencies": {urn("object"): dependencies}}
    assert timeline.last("dev").command == timeline.last("organization/p/dev").command == "up"


def test_only_last_runs_with_changes_are_kept(state: Path) -> None:
    for number in range(runs.KEPT + 3):
        record("up", event("resourcePreEvent", f"r{number}", "create", 1))
    record("up", event("resourcePreEvent", "r", "same", 1))
    record("up", event("resourcePreEvent", "r", "create", 1, planning=True))
    assert len(list(runs.folder("dev").iterdir())) == runs.KEPT
    assert [bar.name for bar in timeline.last("dev").bars] == [f"r{runs.KEPT + 2}"]


def test_interrupted_run_is_kept(state: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.recorded("dev", "destroy", {}, Path.cwd()) as kept:
        kept.take(event("resourcePreEvent", "a", "delete", 1))
        raise KeyboardInterrupt
    assert [bar.outcome for bar in timeline.last("dev").bars] == ["cut off"]


def test_destroy_reads_dependencies_before_it_starts(state: Path) -> None:
    with runs.recorded("dev", "destroy", {"PATH": os.environ["PATH"]}, Path.cwd()) as kept:
        (state / "export").write_text('{"deployment": {}}')
        kept.take(event("resourcePreEvent", "object", "delete", 1))
        kept.take(event("resOutputsEvent", "object", "delete", 2))
    assert timeline.last("dev").by_dependencies


def test_unreadable_state_does_not_stop_a_run(state: Path) -> None:
    program(state / "pulumi", "exit 1")
    record("up", event("resourcePreEvent", "a", "create", 1))
    assert not timeline.last("dev").by_dependencies
