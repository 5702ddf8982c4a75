"""Runs Pulumi and reports its events as progress lines and as a table of where the time went.

Pulumi's own display either redraws a terminal or, in a log, says little until a resource is done. Its events
report everything as it happens. They arrive as JSON (`EngineEvent` in sdk/go/common/apitype/events.go,
version 3.259) over gRPC, as in the Automation API. A log file isn't reliable: Pulumi truncates it between a
run's preview and its update, so a reader that falls behind misses the end of the preview.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import events_pb2_grpc

from common import tables
from common.errors import UserError
from common.progress import Progress
from report.plan import COMMAND, STASH
from report.policy_findings import finding_in
from tools.runs import Record

_POLL_SECONDS: Final = 0.2  # how often to check whether Pulumi has ended while no events arrive
_GRACE_SECONDS: Final = 10.0  # for the last events after Pulumi has ended
_MAX_EVENT_BYTES: Final = 64 << 20  # an event holds a resource's inputs and outputs
_REMIND_SECONDS: Final = 30.0
_NAME_WIDTH: Final = 72  # a step's name may list everything that it compiles

# Operations and how their end is reported. Others (same, replace) do no work of their own.
DONE: Final = {
    "create": "created",
    "create-replacement": "replaced",
    "update": "updated",
    "delete": "deleted",
    "delete-replaced": "deleted for replacement",
    "read": "read",
    "refresh": "refreshed",
    "import": "imported",
}
# The second half of a replacement counts, the first doesn't.
_COUNTED: Final = frozenset(DONE) - {"delete-replaced"}

# The phases that components' children belong to, and those of single resources. A manifest's phase is its
# name.
_PHASES: Final = {
    "kubeadm-ipvs:index:PreparedHost": "prepare hosts",
    "kubeadm-ipvs:index:ControlPlane": "init",
    "kubeadm-ipvs:index:Workers": "join",
    "kubeadm-ipvs:index:Verification": "verification",
}
_OWN_PHASES: Final = {"nodes": "nodes ready"}
_MANIFEST: Final = "kubeadm-ipvs:index:Manifest"


@dataclass(frozen=True)
class Span:
    """A phase, in seconds since Pulumi was started. Phases may overlap."""

    name: str
    began: float
    ended: float

    @property
    def took(self) -> float:
        """Seconds from the beginning of its first step to the end of its last."""
        return self.ended - self.began


@dataclass(frozen=True)
class Row:
    """A row of the time table, in seconds. `began` is None if it isn't known."""

    name: str
    began: float | None
    took: float


@dataclass(frozen=True)
class Urn:
    """The parts of a resource's URN that are shown. The type doesn't include the parents' types."""

    type: str
    name: str

    @staticmethod
    def parse(urn: str) -> Urn:
        """Parse `urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME`; the empty URN has an empty name."""
        parts = urn.split("::", 3)
        if len(parts) < 4:
            return Urn("", "")
        return Urn(parts[2].rpartition("$")[2], parts[3])


@dataclass
class Watcher:
    """Reports events as they arrive, and keeps times, failures and counts.

    Attributes:
        progress: Where events are reported.
        record: Where events are kept for `make timeline`.
        planned: URNs that the preview wants to change.
        done: URNs that were changed.
        failed: Names of the resources that failed.
        errors: Error messages.
        changes: Number of resources by operation, from the engine's summary.
        running: URNs that are being changed, and since when.
    """

    progress: Progress
    record: Record | None = None
    planned: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    _spans: dict[str, Span] = field(default_factory=dict)
    _last_messages: dict[str, str] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)
    _stashes: Counter[str] = field(default_factory=Counter)

    @property
    def spans(self) -> list[Span]:
        """The phases, in the order in which they began."""
        return sorted(self._spans.values(), key=lambda span: span.began)

    def take(self, event: Mapping[str, Any], now: float) -> None:
        """Process one event that arrived `now` seconds after the start."""
        if self.record:
            self.record.take(event)
        for kind, take in (
            ("resourcePreEvent", self._begin),
            ("resOutputsEvent", self._end),
            ("resOpFailedEvent", self._fail),
            ("diagnosticEvent", self._report_diagnostic),
            ("summaryEvent", self._summarize),
        ):
            if kind in event:
                take(event[kind], now)
        self._report_finding(event)

    def remind(self, now: float) -> None:
        """Report the operations that are still running, longest first."""
        if self.running:
            oldest = sorted(self.running.items(), key=lambda item: item[1])
            shown = ", ".join(f"{Urn.parse(urn).name} {now - began:.0f}s" for urn, began in oldest[:6])
            more = f" and {len(oldest) - 6} more" if len(oldest) > 6 else ""
            self.progress.say(f"running: {shown}{more}")

    def _begin(self, event: Mapping[str, Any], now: float) -> None:
        step = event["metadata"]
        if not is_custom(step) or step["op"] not in DONE:
            return
        if event.get("planning", False):
            self.planned.add(step["urn"])
            return
        self.running[step["urn"]] = now

    def _end(self, event: Mapping[str, Any], now: float) -> None:
        step = event["metadata"]
        if event.get("planning", False) or step["op"] not in DONE:
            return
        if step["type"] == STASH and step["op"] in _COUNTED:
            self._stashes["replace" if step["op"] == "create-replacement" else step["op"]] += 1
        if not is_custom(step):
            return
        began = self._close(step, now)
        if step["op"] in _COUNTED:
            self.done.add(step["urn"])
        count = f"{len(self.done)}/{len(self.planned)} " if self.done <= self.planned else ""
        self.progress.say(f"{count}{Urn.parse(step['urn']).name} {DONE[step['op']]} ({now - began:.1f}s)")

    def _fail(self, event: Mapping[str, Any], now: float) -> None:
        step = event["metadata"]
        began = self._close(step, now)
        name = Urn.parse(step["urn"]).name
        self.failed.append(name)
        self.progress.say(f"{name} FAILED ({now - began:.1f}s)")

    def _close(self, step: Mapping[str, Any], now: float) -> float:
        """End an operation and extend its phase; returns when the operation began."""
        began = self.running.pop(step["urn"], now)
        if not _runs_something(step):
            return began
        phase = phase_of(step)
        before = self._spans.get(phase)
        if before is None:
            self._spans[phase] = Span(phase, began, now)
        else:
            self._spans[phase] = Span(phase, min(before.began, began), max(before.ended, now))
        return began

    def _report_diagnostic(self, event: Mapping[str, Any], _: float) -> None:
        severity, urn = event.get("severity", ""), event.get("urn", "")
        text = str(event.get("message", "")).strip()
        # The engine may repeat a status line as a permanent one, and the preview's warnings during the
        # update.
        if not text or severity == "debug" or self._last_messages.get(urn) == text or text in self._warned:
            return
        self._last_messages[urn] = text
        if severity == "warning":
            self._warned.add(text)
        if severity == "error":
            self.errors.append(text)
        mark = {"error": "ERROR: ", "warning": "warning: "}.get(severity, "")
        self.progress.say(f"{mark}{text}")

    def _report_finding(self, event: Mapping[str, Any]) -> None:
        finding = finding_in(event)
        # The update repeats the preview's findings.
        if finding is None or str(finding) in self._warned:
            return
        self._warned.add(str(finding))
        if finding.mandatory:
            self.errors.append(str(finding))
        self.progress.say(f"{'ERROR' if finding.mandatory else 'warning'}: {finding}")

    def _summarize(self, event: Mapping[str, Any], _: float) -> None:
        if not event.get("isPreview", False):
            # Stashes only hold data for later runs (components/remote.py).
            counts = Counter(event["resourceChanges"]) - self._stashes
            self.changes = {kind: count for kind, count in counts.items() if kind != "same"}
        elif not self.errors:  # a preview that failed is incomplete
            count = len(self.planned)
            noun = "resource" if count == 1 else "resources"
            self.progress.say(f"plan: {count} {noun} to change" if count else "plan: nothing to change")


def phase_of(step: Mapping[str, Any]) -> str:
    """The phase of an operation, from the component that contains its resource."""
    parent = Urn.parse((step.get("new") or step.get("old") or {}).get("parent", ""))
    if parent.type == _MANIFEST:
        return parent.name
    if parent.type not in _PHASES:
        return "other"
    return _OWN_PHASES.get(Urn.parse(step["urn"]).name, _PHASES[parent.type])


def _runs_something(step: Mapping[str, Any]) -> bool:
    """Whether an operation does more than to change the state: some commands only have a deletion.

    They are created long before the phase of their component begins.
    """
    if step["type"] != COMMAND:
        return True
    inputs = (step.get("new") or step.get("old") or {}).get("inputs") or {}
    return ("delete" if step["op"].startswith("delete") else "create") in inputs


def is_custom(step: Mapping[str, Any]) -> bool:
    """Whether an operation does work. Components and providers don't."""
    state = step.get("new") or step.get("old") or {}
    return bool(state.get("custom", False)) and not str(step["type"]).startswith("pulumi:")


class _Receiver(events_pb2_grpc.EventsServicer):
    """Receives events from the engine: one stream for the preview, another for the update."""

    def __init__(self, received: queue.SimpleQueue[Mapping[str, Any]]) -> None:
        self._received = received

    def StreamEvents(self, request_iterator: Iterator[Any], context: Any) -> empty_pb2.Empty:  # noqa: N802
        """Queue the events in order."""
        for request in request_iterator:
            self._received.put(json.loads(request.event))
        return empty_pb2.Empty()


@contextmanager
def _receiving(received: queue.SimpleQueue[Mapping[str, Any]]) -> Iterator[str]:
    """Serve the engine during the block; yields the address. Waits for open streams at the end."""
    server = grpc.server(
        ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", _MAX_EVENT_BYTES)]
    )
    events_pb2_grpc.add_EventsServicer_to_server(_Receiver(received), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        server.stop(grace=_GRACE_SECONDS).wait()


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    progress: Progress,
    record: Record | None = None,
) -> Watcher:
    """Run `pulumi ARGUMENTS` (an up, destroy, preview or refresh) and report what it does.

    Args:
        arguments: Pulumi's arguments.
        environment: Pulumi's whole environment.
        folder: The project's folder.
        progress: Where events are reported.
        record: Where events are kept for later.

    Returns:
        The results; there are no failures.

    Raises:
        UserError: Pulumi failed. The error repeats the reported failures and causes in short.
    """
    watcher = Watcher(progress, record)
    received: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    started = reminded = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with _receiving(received) as address:
            argv = ["pulumi", *arguments, "--color", "never", "--suppress-outputs", "--event-log", address]
            process = subprocess.Popen(
                argv,
                cwd=folder,
                # --event-log is a debugging option, which Pulumi hides otherwise.
                env={**environment, "PULUMI_DEBUG_COMMANDS": "true"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    try:
                        event = received.get(timeout=_POLL_SECONDS)
                    except queue.Empty:
                        if time.monotonic() - reminded >= _REMIND_SECONDS:
                            reminded = time.monotonic()
                            watcher.remind(reminded - started)
                    else:
                        watcher.take(event, time.monotonic() - started)
            except KeyboardInterrupt:
                # Pulumi has received the signal too, and needs time to save the state.
                progress.say("stopping: waiting for Pulumi to save its state")
                process.wait()
                raise
        while not received.empty():
            watcher.take(received.get(), time.monotonic() - started)
        if process.returncode != 0:
            output.seek(0)
            raise _failure(arguments, watcher, output.read().decode(errors="replace"))
    return watcher


def _failure(arguments: Sequence[str], watcher: Watcher, output: str) -> UserError:
    command = f"pulumi {' '.join(arguments)}"
    if watcher.failed:
        what = f"{command} failed at {', '.join(watcher.failed)}"
    elif watcher.errors:
        what = f"{command} failed"
    else:
        # Pulumi failed before its first event: its output is all there is.
        what = f"{command} failed:\n{output.strip()[-4000:]}"
    # The last error is the engine's "update failed"; the causes come before it.
    causes = [line for text in watcher.errors for line in text.splitlines() if line.strip()]
    return UserError(
        "\n".join([what, *causes[:20]]),
        "fix the cause above, then run the same command again: finished steps are kept",
    )


def time_table(rows: Sequence[Row]) -> str:
    """A table of where the time went, in the order of the rows."""
    cells = [
        (
            tables.shortened(row.name, _NAME_WIDTH),
            "" if row.began is None else f"{row.began:.1f}s",
            f"{row.took:.1f}s",
        )
        for row in rows
    ]
    return tables.table(("WHERE THE TIME WENT", "BEGAN", "TOOK"), cells, right=(1, 2))
