"""The last runs' events, kept for `make timeline`: what was done to which resource, and when.

A record is a file of JSON lines in the form of the engine's own event log, cut down to names, kinds and
times: nothing that a resource holds, and no message, so no secret. Times are those of an event's arrival,
since the engine's own are whole seconds. One more line holds the resources' dependencies.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from common import paths

KEPT = 10  # records of a stack
_MOMENTS = ("resourcePreEvent", "resOutputsEvent", "resOpFailedEvent")

Dependencies = dict[str, list[str]]


def folder(stack: str) -> Path:
    """Where a stack's records are, by name in the order of time. It may not be there."""
    return paths.state_dir() / "runs" / stack


class Record:
    """Takes a run's events."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.empty = True  # as long as no resource has been changed

    def take(self, event: Mapping[str, Any]) -> None:
        """Write down what is to be kept of an event that has just arrived."""
        for moment in _MOMENTS:
            step = event.get(moment, {}).get("metadata")
            if step is None or event[moment].get("planning", False):
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
            self.write({"timestamp": round(time.time(), 3), moment: {"metadata": kept}})

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line, at once: the run may be killed."""
        self._stream.write(json.dumps(line) + "\n")


@contextmanager
def recorded(stack: str, command: str, environment: Mapping[str, str], project: Path) -> Iterator[Record]:
    """Keep a run's record, however the run ends. One that changed nothing leaves none.

    :param command: `up` or `destroy`, which leaves no dependencies in the state to ask for afterwards.
    :param environment: Pulumi's.
    :param project: the folder of Pulumi.yaml.
    """
    place = folder(stack)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = place / f"{time.time_ns()}-{command}.jsonl"
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
    for old in sorted(place.iterdir())[:-KEPT]:
        old.unlink(missing_ok=True)


def dependencies(stack: str, project: Path, environment: Mapping[str, str] | None = None) -> Dependencies:
    """What each resource in the stack's state depends on, provider included, by URN; {} if it can't be read.

    :param project: the folder of Pulumi.yaml.
    :param environment: Pulumi's; this process's own if none is given.
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
    """The same out of an exported state."""
    found: Dependencies = {}
    for resource in json.loads(export)["deployment"].get("resources") or []:
        # `URN::ID` of the provider.
        provider = str(resource.get("provider", "")).rpartition("::")[0]
        needed = {*(resource.get("dependencies") or []), *([provider] if provider else [])}
        found[resource["urn"]] = sorted(needed | set(found.get(resource["urn"], [])))
    return found
