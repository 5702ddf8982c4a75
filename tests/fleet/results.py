"""The results of the simulated fleet, kept on this computer and in docs/fleet.json.

A result stays until the same thing is measured again, each with its date, environment and commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import paths
from common.files import write_atomic

JSON_FILE = paths.project_dir() / "docs" / "fleet.json"

NOW = "now"
"""The series of the current program. Other series, such as `before`, are kept for comparison."""


@dataclass(frozen=True)
class Origin:
    """Where a measurement comes from.

    Attributes:
        series: `NOW`, or the name of an earlier state of the program.
        hosts: The number of hosts at the start.
        date: The day, in UTC.
        commit: The last commit of the program.
        code: The program's digest (`tests.lab.resilience.results.code`).
        where: The computer, the versions of engine and plugins, and special options.
    """

    series: str
    hosts: int
    date: str
    commit: str
    code: str
    where: str


@dataclass(frozen=True)
class Run:
    """One engine run.

    Attributes:
        phase: The phase's name.
        origin: Where it was measured.
        failed: Whether the run failed.
        seconds: Its duration.
        other_load: The share of the computer's cores that other processes used meanwhile, from 0 to 1.
        cpu_seconds: CPU time by role (`processes.ROLES`).
        peak_bytes: The largest resident set by role.
        written_bytes: What the engine wrote to the disk, mostly checkpoints; 0 if the disk isn't a real one.
        logins: SSH logins on all hosts.
        control_plane_logins: SSH logins on the control plane.
        most_logins: The most SSH logins on one worker.
        hosts_reached: The number of hosts with a login.
        operations: The number of resources by operation, in the engine's words.
        commands: The number of remote commands by verb and step, such as `create join`.
        resources: The number of resources in the state.
        state_bytes: The size of the state file.
    """

    phase: str
    origin: Origin
    failed: bool
    seconds: float
    other_load: float
    cpu_seconds: dict[str, float]
    peak_bytes: dict[str, int]
    written_bytes: int
    logins: int
    control_plane_logins: int
    most_logins: int
    hosts_reached: int
    operations: dict[str, int]
    commands: dict[str, int]
    resources: int
    state_bytes: int

    @property
    def key(self) -> tuple[str, int, str]:
        """What a newer measurement of the same thing replaces."""
        return self.origin.series, self.origin.hosts, self.phase


@dataclass(frozen=True)
class Preview:
    """The cost of the program alone in a preview (`program.Cost`)."""

    origin: Origin
    cpu_seconds: float
    peak_bytes: int
    resources: int
    commands: int

    @property
    def key(self) -> tuple[str, int]:
        """What a newer measurement of the same thing replaces."""
        return self.origin.series, self.origin.hosts


@dataclass
class Results:
    """All results, each the last one of its kind."""

    runs: dict[tuple[str, int, str], Run] = field(default_factory=dict)
    previews: dict[tuple[str, int], Preview] = field(default_factory=dict)

    def add(self, *found: Run | Preview) -> None:
        """Add results in place of earlier ones of their kind."""
        for result in found:
            if isinstance(result, Run):
                self.runs[result.key] = result
            else:
                self.previews[result.key] = result

    @property
    def series(self) -> list[str]:
        """The names of the series, the current program's last."""
        names = {key[0] for key in self.runs} | {key[0] for key in self.previews}
        return sorted(names, key=lambda name: (name == NOW, name))

    @property
    def sizes(self) -> list[int]:
        """The numbers of hosts of the engine runs."""
        return sorted({hosts for _, hosts, _ in self.runs})

    def run(self, series: str, hosts: int, phase: str) -> Run | None:
        """A run's result; None if it wasn't measured."""
        return self.runs.get((series, hosts, phase))


def here() -> Path:
    """The file with the local results."""
    return paths.state_dir() / "fleet.json"


def read(place: Path) -> Results:
    """Read results; none if there is no such file."""
    found = Results()
    if place.exists():
        stored = json.loads(place.read_text())
        found.add(*(Run(**_parsed(values)) for values in stored["runs"]))
        found.add(*(Preview(**_parsed(values)) for values in stored["previews"]))
    return found


def write(place: Path, kept: Results) -> None:
    """Write results, in an order that keeps differences small."""
    stored = {
        "runs": [asdict(run) for _, run in sorted(kept.runs.items())],
        "previews": [asdict(preview) for _, preview in sorted(kept.previews.items())],
    }
    write_atomic(place, json.dumps(stored, indent=1) + "\n")


def save(result: Run | Preview) -> None:
    """Add a result to the local ones."""
    kept = read(here())
    kept.add(result)
    write(here(), kept)


def _parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "origin": Origin(**values["origin"])}
