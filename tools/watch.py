"""Runs Pulumi and turns its events into progress lines and a table of where the time went.

Pulumi's own display either redraws a terminal or, in a log, says little until a resource is
done. Its events say everything as it happens. They come as JSON (`EngineEvent` in
sdk/go/common/apitype/events.go, version 3.259) over gRPC, as to the Automation API: the
other way, a log file, is begun anew between a run's preview and its update, and a reader
that is slow for a moment misses the end of the first.
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

from common.errors import UserError
from common.progress import Progress
from model.policy_findings import finding_in
from model.report import REMEMBERED
from tools.runs import Record

_POLL_SECONDS: Final = 0.2  # how often the end of Pulumi is looked for while it says nothing
_GRACE_SECONDS: Final = 10.0  # for the last events, when Pulumi has ended
_MOST_BYTES: Final = 64 << 20  # of one event: it holds a resource's inputs and outputs
_REMIND_SECONDS: Final = 30.0
_NAME: Final = 72  # letters of a row's name: a step that lists what it compiles would make the table as wide

# How the end of an operation is told. Others (same, replace, which only announces) aren't.
DONE: Final = {
    "create": "created",
    "create-replacement": "created anew",
    "update": "updated",
    "delete": "deleted",
    "delete-replaced": "deleted, to be made anew",
    "read": "read",
    "refresh": "refreshed",
    "import": "imported",
}
# Of a replacement, the second half counts.
_COUNTED: Final = frozenset(DONE) - {"delete-replaced"}

# What a component's children are part of, in a person's words; a manifest is called by its name.
_PHASES: Final = {
    "kubeadm-ipvs:index:PreparedHost": "prepare hosts",
    "kubeadm-ipvs:index:ControlPlane": "init",
    "kubeadm-ipvs:index:Worker": "join",
    "kubeadm-ipvs:index:Node": "nodes ready",
    "kubeadm-ipvs:index:ProxyMode": "kube-proxy",
    "kubeadm-ipvs:index:Verification": "verification",
}
_MANIFEST: Final = "kubeadm-ipvs:index:Manifest"


@dataclass(frozen=True)
class Span:
    """A phase's stretch of time, in seconds since Pulumi was started; phases overlap."""

    name: str
    began: float
    ended: float

    @property
    def took(self) -> float:
        """Seconds from its first step's start to its last step's end."""
        return self.ended - self.began


@dataclass(frozen=True)
class Row:
    """A line of the table of where the time went, in seconds."""

    name: str
    began: float | None  # since the start of it all; None where it isn't known
    took: float


@dataclass(frozen=True)
class Urn:
    """The two parts of a resource's URN that a person cares for."""

    type: str  # without the types of its parents
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
    """Takes events in their order; says what happens; keeps times, failures and counts."""

    progress: Progress
    record: Record | None = None
    planned: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    _spans: dict[str, Span] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)
    _remembered: Counter[str] = field(default_factory=Counter)

    @property
    def spans(self) -> list[Span]:
        """The phases, in the order of their beginnings."""
        return sorted(self._spans.values(), key=lambda span: span.began)

    def take(self, event: Mapping[str, Any], now: float) -> None:
        """Take one event, met `now` seconds after the start."""
        if self.record:
            self.record.take(event)
        for kind, take in (
            ("resourcePreEvent", self._begin),
            ("resOutputsEvent", self._end),
            ("resOpFailedEvent", self._fail),
            ("diagnosticEvent", self._say),
            ("summaryEvent", self._sum_up),
        ):
            if kind in event:
                take(event[kind], now)
        self._judge(event)

    def remind(self, now: float) -> None:
        """Say what is being waited for, longest first."""
        if self.running:
            waits = sorted(self.running.items(), key=lambda item: item[1])
            shown = ", ".join(f"{Urn.parse(urn).name} {now - began:.0f}s" for urn, began in waits[:6])
            more = f" and {len(waits) - 6} more" if len(waits) > 6 else ""
            self.progress.say(f"at work: {shown}{more}")

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
        if step["type"] == REMEMBERED and step["op"] in _COUNTED:
            self._remembered["replace" if step["op"] == "create-replacement" else step["op"]] += 1
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
        began = self.running.pop(step["urn"], now)
        phase = phase_of(step)
        before = self._spans.get(phase)
        if before is None:
            self._spans[phase] = Span(phase, began, now)
        else:
            self._spans[phase] = Span(phase, min(before.began, began), max(before.ended, now))
        return began

    def _say(self, event: Mapping[str, Any], _: float) -> None:
        severity, urn = event.get("severity", ""), event.get("urn", "")
        text = str(event.get("message", "")).strip()
        # A status line may be repeated as a lasting one.
        if not text or severity == "debug" or self._said.get(urn) == text or text in self._warned:
            return
        self._said[urn] = text
        if severity == "warning":
            # The preview's warnings come again with the update.
            self._warned.add(text)
        if severity == "error":
            self.errors.append(text)
        mark = {"error": "ERROR: ", "warning": "warning: "}.get(severity, "")
        self.progress.say(f"{mark}{text}")

    def _judge(self, event: Mapping[str, Any]) -> None:
        finding = finding_in(event)
        # What the preview has found, the update finds again.
        if finding is None or str(finding) in self._warned:
            return
        self._warned.add(str(finding))
        if finding.mandatory:
            self.errors.append(str(finding))
        self.progress.say(f"{'ERROR' if finding.mandatory else 'warning'}: {finding}")

    def _sum_up(self, event: Mapping[str, Any], _: float) -> None:
        if not event.get("isPreview", False):
            # Without what is only remembered (components/remote.py).
            counts = Counter(event["resourceChanges"]) - self._remembered
            self.changes = {kind: count for kind, count in counts.items() if kind != "same"}
        elif not self.errors:  # a plan that couldn't be finished says nothing
            count = len(self.planned)
            self.progress.say(f"plan: {count} resources to change" if count else "plan: nothing to change")


def phase_of(step: Mapping[str, Any]) -> str:
    """The phase that an operation belongs to, by the component that its resource is a part of."""
    parent = Urn.parse((step.get("new") or step.get("old") or {}).get("parent", ""))
    if parent.type == _MANIFEST:
        return parent.name
    return _PHASES.get(parent.type, "other")


def is_custom(step: Mapping[str, Any]) -> bool:
    """Whether an operation is work: components and providers are bookkeeping and take no time."""
    state = step.get("new") or step.get("old") or {}
    return bool(state.get("custom", False)) and not str(step["type"]).startswith("pulumi:")


class _Receiver(events_pb2_grpc.EventsServicer):
    """Takes events from the engine: one stream for a preview, and one for an update."""

    def __init__(self, received: queue.SimpleQueue[Mapping[str, Any]]) -> None:
        self._received = received

    def StreamEvents(self, request_iterator: Iterator[Any], context: Any) -> empty_pb2.Empty:  # noqa: N802
        """Keep the events in their order."""
        for request in request_iterator:
            self._received.put(json.loads(request.event))
        return empty_pb2.Empty()


@contextmanager
def _receiving(received: queue.SimpleQueue[Mapping[str, Any]]) -> Iterator[str]:
    """Serve while the block runs; its end waits for streams that are still being read."""
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", _MOST_BYTES)])
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
    """Run `pulumi ARGUMENTS` (an up, destroy, preview or refresh) and say what it does.

    :param environment: the whole environment of Pulumi.
    :param folder: the project's.
    :param record: where events are written down for later.
    :returns: what was seen; it has no failures.
    :raises UserError: Pulumi failed. What failed and why has been said, and is repeated in short.
    """
    watcher = Watcher(progress, record)
    received: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    begun = reminded = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with _receiving(received) as address:
            argv = ["pulumi", *arguments, "--color", "never", "--suppress-outputs", "--event-log", address]
            process = subprocess.Popen(
                argv,
                cwd=folder,
                # The flag is only known where commands for debugging are.
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
                            watcher.remind(reminded - begun)
                    else:
                        watcher.take(event, time.monotonic() - begun)
            except KeyboardInterrupt:
                # Pulumi has had the signal too, and needs its time to write the state down.
                progress.say("stopping: waiting for Pulumi to write its state down")
                process.wait()
                raise
        while not received.empty():
            watcher.take(received.get(), time.monotonic() - begun)
        if process.returncode != 0:
            output.seek(0)
            raise _trouble(arguments, watcher, output.read().decode(errors="replace"))
    return watcher


def _trouble(arguments: Sequence[str], watcher: Watcher, output: str) -> UserError:
    command = f"pulumi {' '.join(arguments)}"
    if watcher.failed:
        what = f"{command} failed at {', '.join(watcher.failed)}"
    elif watcher.errors:
        what = f"{command} failed"
    else:
        # It didn't get as far as events: then its own words are all there is.
        what = f"{command} failed:\n{output.strip()[-4000:]}"
    # The last error is the engine's "update failed"; the causes come before it.
    causes = [line for text in watcher.errors for line in text.splitlines() if line.strip()]
    return UserError(
        "\n".join([what, *causes[:20]]),
        "mend what the lines above name, then run the same command again: finished steps are kept",
    )


def time_table(rows: Sequence[Row]) -> str:
    """A table of where the time went, in the order of the rows."""
    title = "where the time went"
    names = [row.name if len(row.name) <= _NAME else f"{row.name[: _NAME - 3]}..." for row in rows]
    width = max(map(len, [title, *names]))
    lines = [f"{title:{width}}  {'began':>8}  {'took':>8}"]
    for row, name in zip(rows, names, strict=True):
        began = "" if row.began is None else f"{row.began:.1f}s"
        lines.append(f"{name:{width}}  {began:>8}  {row.took:7.1f}s")
    return "\n".join(lines)
