"""`make timeline`: the chart of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast import past_run
from tests.fast.engine_events import event
from tools import critical, timeline
from tools.__main__ import main


@pytest.mark.parametrize("width", [60, 100, 200])
def test_chart_fits_the_terminal_and_marks_the_path(tmp_path: Path, width: int) -> None:
    lines, path = past_run.up(tmp_path)
    drawn = timeline.chart(critical.read(past_run.text(lines), "dev"), width).split(
        "critical path: the steps"
    )[0]
    rows = drawn.splitlines()[1:]
    assert max(len(row) for row in rows) <= max(width, 66)
    assert sum(row.startswith("* ") and "#" in row for row in rows) == len(path)
    assert not any("#" in row for row in rows if row.startswith("  "))


def test_chart_shows_the_parts_of_a_step(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    rows = timeline.chart(run, 120).splitlines()
    at = next(number for number, row in enumerate(rows) if row[2:].startswith("preparation"))
    parts = rows[at + 1 : at + 6]
    assert [row.split()[0] for row in parts] == ["claim", "kernel", "firewall", "packages", "runtime"]
    assert all(row.startswith("    ") and "-" in row for row in parts)
    # One below the other, in the time of the step.
    starts = [row.index("-") for row in parts]
    assert starts == sorted(starts)
    bar = rows[at].replace("=", "#")
    assert starts[0] == bar.index("#")
    assert max(row.rindex("-") for row in parts) == bar.rindex("#")
    assert max(parts, key=lambda row: row.count("-")).split()[0] == "packages"


def test_chart_shows_failed_and_interrupted_steps() -> None:
    log = [
        event("resourcePreEvent", "a", "create", 1.5),
        event("resourcePreEvent", "b", "create", 2.0),
        event("resOpFailedEvent", "a", "create", 4.0),
    ]
    run = critical.read(past_run.text(log) + '{"timestamp": 5, "resOutp', "dev")
    assert [bar.outcome for bar in run.bars] == ["failed", "cut off"]
    drawn = timeline.chart(run, 100)
    assert "2.5 s  failed" in drawn and "2.0 s  cut off" in drawn and "2 failed or cut off" in drawn


def test_chart_shows_whole_seconds_of_logs() -> None:
    log = [event("resourcePreEvent", "a", "create", 100), event("resOutputsEvent", "a", "create", 109)]
    drawn = timeline.chart(critical.read(past_run.text(log), "dev"), 100)
    assert "9 s" in drawn and "9.0 s" not in drawn


def test_command_shows_last_run_or_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["timeline", "--stack", "dev"]) == 1
    assert "no run of the stack dev is kept" in capsys.readouterr().err
    log = tmp_path / "events.json"
    log.write_text(past_run.text(past_run.up(tmp_path)[0]))
    assert main(["timeline", "--stack", "dev", "--log", str(log)]) == 0
    assert "* init" in capsys.readouterr().out
    assert main(["timeline", "--stack", "dev", "--log", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert main(["timeline", "--stack", "dev", "--log", str(log), "--html", str(page / "deeper")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["timeline", "--stack", "dev", "--log", str(log), "--html", str(page)]) == 0
    assert "pulumi up: dev" in page.read_text()
