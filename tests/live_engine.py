"""A real Pulumi run that a test disturbs while it goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Engine:
    """A Pulumi run that is watched while it goes on, to be disturbed at a chosen moment."""

    def __init__(self, *arguments: str, stack: str, folder: Path, environment: dict[str, str]) -> None:
        """Start `pulumi ARGUMENTS` on a stack of the project in a folder."""
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
        self.begun: list[str] = []  # `op name`, in the order in which they began
        self.ended: list[str] = []

    def events(self) -> Iterator[str]:
        """`begun` or `ended`, each time a resource that isn't the same begins or has ended.

        The engine's own are left out: what is only remembered takes no time.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            for kind, seen, word in (
                ("resourcePreEvent", self.begun, "begun"),
                ("resOutputsEvent", self.ended, "ended"),
            ):
                about = event[kind]["metadata"] if kind in event else {"op": "same"}
                own = about.get("type", "").startswith("pulumi:")
                if not own and about["op"] not in ("same", "read", "refresh"):
                    seen.append(f"{about['op']} {about['urn'].rpartition('::')[2]}")
                    yield word

    def until(self, begun: str) -> bool:
        """Wait until a resource's step has begun; false if the run ended before."""
        return any(word == "begun" and self.begun[-1] == begun for word in self.events())

    def kill(self) -> None:
        """SIGKILL, to the engine alone: its plugins find out for themselves, or are at work still."""
        self._process.kill()
        self._process.wait()

    def end_plugins(self) -> None:
        """Of a killed engine: some never find out, and would stay for ever (pulumi-command 1.2.1)."""
        subprocess.run(["pkill", "--session", str(self._process.pid)], check=False, timeout=60)

    def wait(self) -> int:
        """The exit status, when it has ended."""
        for _ in self.events():
            pass
        return self._process.wait(timeout=60)

    @property
    def printed(self) -> str:
        """All that it has printed so far."""
        return "".join(self.lines)

    @property
    def said(self) -> str:
        """Its diagnostics with the resources that they are about, as a person reads them."""
        events = [json.loads(line) for line in self.lines if line.startswith("{")]
        found = [event["diagnosticEvent"] for event in events if "diagnosticEvent" in event]
        told = [
            f"{about.get('urn', '').rpartition('::')[2]}: {about['message']}"
            for about in found
            if about["severity"] != "debug"  # those name every resource, whatever became of it
        ]
        plain = [line for line in self.lines if not line.startswith("{")]
        return "".join([*told, *plain])
