"""A real Pulumi run that a test can disturb while it is in progress."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Engine:
    """A Pulumi run whose events a test can follow, to interfere at a chosen moment.

    Attributes:
        lines: The output so far.
        started: The steps that have started, in order, each as `op name`.
        finished: The steps that have finished, likewise.
    """

    def __init__(self, *arguments: str, stack: str, folder: Path, environment: dict[str, str]) -> None:
        """Start `pulumi ARGUMENTS` for a stack of the project in a folder."""
        self._process = subprocess.Popen(
            ["pulumi", *arguments, "--yes", "--skip-preview", "--json", "--stack", stack],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.started: list[str] = []
        self.finished: list[str] = []

    def events(self) -> Iterator[str]:
        """Follow the run; yield `started` or `finished` for every step of a changed resource.

        Pulumi's own resources are left out, because their steps take no time.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            for kind, steps, word in (
                ("resourcePreEvent", self.started, "started"),
                ("resOutputsEvent", self.finished, "finished"),
            ):
                metadata = event[kind]["metadata"] if kind in event else {"op": "same"}
                internal = metadata.get("type", "").startswith("pulumi:")
                if not internal and metadata["op"] not in ("same", "read", "refresh"):
                    steps.append(f"{metadata['op']} {metadata['urn'].rpartition('::')[2]}")
                    yield word

    def wait_until_started(self, step: str) -> bool:
        """Wait for a step to start; False if the run ends first."""
        return any(word == "started" and self.started[-1] == step for word in self.events())

    def kill(self) -> None:
        """Kill the engine but not its plugins, which may keep working for a while."""
        self._process.kill()
        self._process.wait()

    def kill_plugins(self) -> None:
        """Stop the plugins of a killed engine; some never notice and run forever (pulumi-command 1.2.1)."""
        subprocess.run(["pkill", "--session", str(self._process.pid)], check=False, timeout=60)

    def wait(self) -> int:
        """Wait for the run to end and return its exit status."""
        for _ in self.events():
            pass
        return self._process.wait(timeout=60)

    @property
    def output(self) -> str:
        """The output so far."""
        return "".join(self.lines)

    @property
    def diagnostics(self) -> str:
        """The diagnostics so far, each with its resource, and output that isn't JSON."""
        events = [json.loads(line) for line in self.lines if line.startswith("{")]
        diagnostics = [event["diagnosticEvent"] for event in events if "diagnosticEvent" in event]
        messages = [
            f"{about.get('urn', '').rpartition('::')[2]}: {about['message']}"
            for about in diagnostics
            if about["severity"] != "debug"  # debug messages mention every resource
        ]
        plain = [line for line in self.lines if not line.startswith("{")]
        return "".join([*messages, *plain])
