"""Keeps the events of the last runs for `make timeline`: what was done to which resource, and when.

A record is a file of JSON lines in the format of the engine's event log, reduced to names, kinds and times.
It contains no inputs or outputs, and of the messages only which script printed one, and so no secrets. Times
are when an event arrived, since the engine's own are whole seconds. One more line contains the resources'
dependencies.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from common import paths
from model.steps import SCRIPTS_ON_HOSTS

KEPT = 10  # records for each stack
_KINDS = ("resourcePreEvent", "resOutputsEvent", "resOpFailedEvent")

# How a step's script reports something: `HOST: SCRIPT: text`. The engine may put a color's name before it.
_REPORTED = re.compile(
    rf"^(?:<[^>]*>)*[\w.-]+: ({'|'.join(script.name for script in SCRIPTS_ON_HOSTS)}): ",
    re.MULTILINE | re.ASCII,
)

Dependencies = dict[str, list[str]]


def reporting_script(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """The URN of a step and the script of it that has just reported something; None for other events."""
    diagnostic = event.get("diagnosticEvent") or {}
    # An error repeats all that the step has printed.
    scripts = _REPORTED.findall(str(diagnostic.get("message", "")))
    return (diagnostic["urn"], scripts[-1]) if scripts and diagnostic.get("urn") else None


def folder(stack: str) -> Path:
    """The folder of a stack's records, which sort by time. It may not exist."""
    return paths.state_dir() / "runs" / paths.unqualified(stack)


class Record:
    """Writes a run's events.

    Attributes:
        empty: Whether no resource has been changed so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.empty = True

    def take(self, event: Mapping[str, Any]) -> None:
        """Write the relevant parts of an event that has just arrived."""
        reported = reporting_script(event)
        if reported is not None:
            urn, script = reported
            message = {"urn": urn, "message": f"host: {script}: "}
            self.write({"timestamp": round(time.time(), 3), "diagnosticEvent": message})
        for kind in _KINDS:
            step = event.get(kind, {}).get("metadata")
            if step is None or event[kind].get("planning", False):
                continue
            if step["op"] != "same":
                self.empty = False
            state = step.get("new") or step.get("old") or {}
            kept = {
                "op": step["op"],
                "urn": step["urn"],
                "type": step["type"],
                "new": {"custom": bool(state.get("custom", False)), "parent": state.get("parent", "")},
            }
            self.write({"timestamp": round(time.time(), 3), kind: {"metadata": kept}})

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line immediately: the run may be killed."""
        self._stream.write(json.dumps(line) + "\n")


@contextmanager
def recorded(stack: str, command: str, environment: Mapping[str, str], project: Path) -> Iterator[Record]:
    """Keep a run's record, however the run ends, unless it changed nothing.

    Args:
        stack: The stack's name.
        command: `up` or `destroy`. A destroy's dependencies are read first: afterwards the state has none.
        environment: Pulumi's environment.
        project: The folder of Pulumi.yaml.
    """
    records = folder(stack)
    records.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = records / f"{time.time_ns()}-{command}.jsonl"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", buffering=1) as stream:
        record = Record(stream)
        record.write({"command": command, "stack": stack})
        if command == "destroy":
            record.write({"dependencies": dependencies(stack, project, environment)})
        try:
            yield record
        finally:
            if record.empty:
                file.unlink()
            elif command != "destroy":
                record.write({"dependencies": dependencies(stack, project, environment)})
    for old in sorted(records.iterdir())[:-KEPT]:
        old.unlink(missing_ok=True)


def dependencies(stack: str, project: Path, environment: Mapping[str, str] | None = None) -> Dependencies:
    """The dependencies of each resource in the stack's state, its provider included, by URN.

    The result is empty if the state can't be read.

    Args:
        stack: The stack's name.
        project: The folder of Pulumi.yaml.
        environment: Pulumi's environment; by default this process's own.
    """
    try:
        done = subprocess.run(
            ["pulumi", "stack", "export", "--stack", stack, "--non-interactive"],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return dependencies_in(done.stdout) if done.returncode == 0 else {}
    except FileNotFoundError:
        return {}


def dependencies_in(export: str) -> Dependencies:
    """The dependencies in an exported state."""
    found: Dependencies = {}
    for resource in json.loads(export)["deployment"].get("resources") or []:
        # The provider is written as `URN::ID`.
        provider = str(resource.get("provider", "")).rpartition("::")[0]
        needed = {*(resource.get("dependencies") or []), *([provider] if provider else [])}
        found[resource["urn"]] = sorted(needed | set(found.get(resource["urn"], [])))
    return found
