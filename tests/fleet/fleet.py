"""A fleet of simulated hosts with a cluster, and the measurement of engine runs on it.

The engine, the program and the plugins are real, and so is the API server. The hosts are SSH servers that
answer like hosts on which each step succeeds (`tests/engine/finished.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from model.steps import Step, step_of
from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tests.fleet import hosts, processes, summary
from tests.fleet.results import Origin, Run

# Only against hangs: a run that grows with the square of the number of hosts may take an hour.
_LIMIT_SECONDS = 4 * 3600
# A dead host is found at once, because its server refuses connections.
_WAIT_SECONDS = 3
# Which part of a failed run's output is shown.
_SHOWN_CHARACTERS = 6000


@dataclass(frozen=True)
class Options:
    """How a fleet behaves.

    Attributes:
        latency_seconds: How long each command on a host takes.
        failing: The step that fails in the phase `lane-failure`, as `HOST:STEP`; empty to choose one.
        script: The script that changes in a new version of the program, below `scripts/`.
    """

    latency_seconds: float = 0.0
    failing: str = ""
    script: str = "lib/step.sh"


@dataclass
class Fleet:
    """A running fleet.

    Attributes:
        made: The checkout, the stack, and the SSH servers.
        cluster: The API server.
        options: How the hosts behave.
        origin: Where its measurements come from.
        settings: The settings of the last run. Phases change them and call `write`.
    """

    made: Environment
    cluster: ApiServer
    options: Options
    origin: Origin
    settings: dict[str, Any]

    @property
    def middle(self) -> str:
        """The name of the worker in the middle of the list of hosts."""
        names = [str(host["name"]) for host in self.settings["hosts"]]
        return names[max(1, len(names) // 2)]

    def write(self) -> None:
        """Write the settings to the stack file."""
        self.made.write(self.settings)

    def run(self, phase: str, command: str, *, fails: bool) -> Run:
        """Run the engine and measure it.

        Args:
            phase: The phase that the result belongs to.
            command: `preview`, `up` or `destroy`.
            fails: Whether the run must fail.

        Raises:
            UserError: It failed, or it succeeded although it must fail.
        """
        self.made.calls.clear()
        before = {name: len(server.logins) for name, server in self.made.servers.items()}
        options = () if command == "preview" else ("--yes", "--skip-preview")
        with processes.measured() as found:
            done = self.made.stack.call(command, *options)
        if (done.returncode != 0) != fails:
            outcome = "succeeded, but must fail" if fails else "failed"
            raise UserError(
                f"{phase}: pulumi {command} {outcome}:\n{(done.stdout + done.stderr)[-_SHOWN_CHARACTERS:]}"
            )
        logins = {name: len(server.logins) - before[name] for name, server in self.made.servers.items()}
        usage = {role: found.of(role) for role in processes.ROLES}
        resources, size = self._state()
        return Run(
            phase=phase,
            origin=self.origin,
            failed=done.returncode != 0,
            seconds=round(found.seconds, 2),
            other_load=round(found.other_load, 2),
            cpu_seconds={role: round(used.cpu_seconds, 2) for role, used in usage.items()},
            peak_bytes={role: used.peak_bytes for role, used in usage.items() if used.peak_bytes},
            written_bytes=usage[processes.ENGINE].written_bytes,
            logins=sum(logins.values()),
            control_plane_logins=logins[hosts.CONTROL_PLANE],
            most_logins=max(count for name, count in logins.items() if name != hosts.CONTROL_PLANE),
            hosts_reached=sum(count > 0 for count in logins.values()),
            operations=summary.operations(done.stdout),
            commands=summary.commands(self.made.calls),
            resources=resources,
            state_bytes=size,
        )

    def steps_on(self, host: str) -> list[Step]:
        """The steps that the last run ran on a host, in order."""
        names = summary.steps_on(host, self.made.calls)
        steps = (step_of(f"bash -s -- create {name} {host}") for name in names)
        return [step for step in steps if step is not None]

    def _state(self) -> tuple[int, int]:
        """The number of resources in the state, and the size of its file."""
        backend = self.made.stack.folder.parent / "backend" / ".pulumi" / "stacks"
        [file] = backend.rglob(f"{self.made.stack.name}.json")
        latest = json.loads(file.read_text())["checkpoint"].get("latest") or {}
        return len(latest.get("resources") or []), file.stat().st_size


@contextmanager
def fleet(variables: dict[str, str], cluster: ApiServer, options: Options, origin: Origin) -> Iterator[Fleet]:
    """Start a fleet of `origin.hosts` hosts, and one that phases can add. There is no cluster yet.

    Args:
        variables: Pulumi's environment variables.
        cluster: The API server.
        options: How the hosts behave.
        origin: Where the measurements come from.
    """
    addresses = hosts.addresses(origin.hosts + 1)
    with (
        tempfile.TemporaryDirectory(prefix="fleet-") as folder,
        finished.environment(Path(folder), variables, cluster, addresses) as made,
    ):
        made.stack.limit_seconds = _LIMIT_SECONDS
        for server in made.servers.values():
            server.latency = options.latency_seconds
        settings = {**made.settings, **hosts.SETTINGS}
        settings["ssh"] = {**settings["ssh"], "waitSeconds": _WAIT_SECONDS}
        started = Fleet(made, cluster, options, origin, settings)
        started.write()
        yield started


def engine_options() -> list[str]:
    """The variables of this process that change how the engine works, as `NAME=VALUE`."""
    found = (f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("PULUMI_"))
    hidden = ("PULUMI_BACKEND_URL", "PULUMI_CONFIG", "PULUMI_HOME", "PULUMI_ACCESS")
    return [text for text in found if not text.startswith(hidden)]
