"""The simulated fleet: parsing an engine's output and processes, phases, and what is measured again."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from model.steps import STEPS
from tests.fast.fleet_results import origin, preview, run
from tests.fleet import hosts, measure, phases, processes, program, results, summary
from tests.fleet.results import Results

UP = """Updating (trial):
 +  pulumi:pulumi:Stack kubeadm-ipvs-trial created (5s)
Diagnostics:
  command:remote:Command (node1-claim):
    3 hosts

Outputs:
    verified: "Resources: 3 created"

Resources:
    + 84 created
    ~ 3 updated
    +-2 replaced
    - 1 deleted
    12 unchanged

Duration: 5s
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (UP, {"created": 84, "updated": 3, "replaced": 2, "deleted": 1, "unchanged": 12}),
        ("Resources:\n    + 84 to create\n", {"to create": 84}),
        ("Resources:\n    84 unchanged\n\nDuration: 1s\n", {"unchanged": 84}),
        ("error: no stack\n", {}),
    ],
)
def test_operations_come_from_engines_summary(text: str, found: dict[str, int]) -> None:
    assert summary.operations(text) == found


def test_commands_are_counted_by_verb_and_step() -> None:
    calls = ["node1: create join node1", "node2: create join node2", "node1: update proxy node1 1234abcd"]
    assert summary.commands(calls) == {"create join": 2, "update proxy": 1}
    assert summary.steps_on("node1", calls) == ["join", "proxy"]


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("pulumi up --yes", processes.ENGINE),
        ("/opt/bin/pulumi-language-python --root /x 127.0.0.1:1", processes.OTHER),
        ("/x/.venv/bin/python -u /opt/bin/pulumi-language-python-exec --engine 1 .", processes.PROGRAM),
        ("/root/.pulumi/plugins/resource-command-v1/pulumi-resource-command 1", processes.PLUGINS),
        ("/x/.venv/bin/python -P -m standins.kubernetes 127.0.0.1:1", processes.PLUGINS),
        ("/x/.venv/bin/python -m pip list", processes.OTHER),
        ("", processes.OTHER),
    ],
)
def test_command_lines_have_roles(command: str, role: str) -> None:
    assert processes.role_of(command.split()) == role


def test_process_statistics_are_parsed_despite_odd_name() -> None:
    fields = ["S", "41", *["0"] * 9, "150", "50", *["0"] * 6, "9876", "0"]
    name, parent, began, cpu = processes.parse_stat(f"7 (a (b) c) {' '.join(fields)}\n")
    assert (name, parent, began) == ("a (b) c", 41, 9876)
    assert cpu == 200 / processes.TICKS_PER_SECOND


def test_numbers_are_read_from_process_files() -> None:
    text = "Name:\tpulumi\nVmHWM:\t  123 kB\nwrite_bytes: 4096\nGroups:\t\n"
    assert processes.parse_lines(text) == {"VmHWM": 123, "write_bytes": 4096}


def test_usage_adds_time_and_keeps_the_largest_peak() -> None:
    total = processes.Usage(1.5, 100, 10) + processes.Usage(0.5, 300, 1)
    assert total == processes.Usage(2.0, 300, 11)


def test_engine_below_this_process_is_measured(tmp_path: Path) -> None:
    engine = tmp_path / "pulumi"
    engine.symlink_to("/bin/sleep")
    with processes.measured() as found:
        subprocess.run([str(engine), "1.5"], check=True)
    assert found.of(processes.ENGINE).peak_bytes > 0
    assert found.of(processes.PROGRAM) == processes.Usage()


def test_phases_run_with_those_that_they_need() -> None:
    assert [phase.name for phase in phases.with_needed(["remove"])] == ["up", "add", "remove"]
    assert [phase.name for phase in phases.with_needed(["dead"])] == ["up", "dead", "returned"]
    assert phases.with_needed(phases.PHASES) == [*phases.PHASES.values()]
    assert phases.with_needed([]) == []


def test_large_fleet_has_valid_settings_and_distinct_addresses() -> None:
    settings = hosts.settings(600)
    assert len({host.address for host in settings.hosts}) == 600
    assert settings.control_plane.name == hosts.CONTROL_PLANE
    assert len(settings.workers) == 599


def test_program_alone_is_measured() -> None:
    small, large = program.measure(2), program.measure(4)
    assert large.resources > small.resources > small.commands > 0
    assert large.cpu_seconds > 0
    assert large.peak_bytes > 1 << 20


def test_some_step_changes_the_scheduler() -> None:
    """The phase `lane-failure` makes one of them fail."""
    assert any(step.changes and "SCHEDULER" in step.values for step in STEPS.values())


def test_only_missing_and_outdated_results_are_measured_again() -> None:
    about = origin(hosts=30)
    kept = Results()
    kept.add(
        run("up", about),
        run("add", replace(about, code="older")),
        run("remove", replace(about, where="elsewhere")),
        run("destroy", replace(about, series="before")),
        preview(about),
    )
    names = ["up", "add", "remove", "destroy", measure.PREVIEW]
    assert measure.missing(names, about, kept) == ["add", "remove", "destroy"]
    assert measure.missing(names, replace(about, hosts=31), kept) == names


def test_results_survive_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "here", lambda: tmp_path / "fleet.json")
    first, second = run("up", seconds=1), run("up", seconds=2)
    for result in (first, second, preview()):
        results.save(result)
    kept = results.read(results.here())
    assert [*kept.runs.values()] == [second]
    assert [*kept.previews.values()] == [preview()]
    assert results.read(tmp_path / "none.json") == Results()
