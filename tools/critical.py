"""Reads a Pulumi run from the engine's events: its operations with their times, and the critical path."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from common.errors import UserError
from tools.runs import Dependencies, reporting_script
from tools.watch import DONE, Urn, is_custom

CLUSTER = "cluster"  # the group of operations that belong to no host


@dataclass(frozen=True)
class Part:
    """A script of a step that runs several. It ends where it reports something for the last time."""

    name: str
    began: float
    ended: float

    @property
    def took(self) -> float:
        """Duration in seconds."""
        return self.ended - self.began


@dataclass(frozen=True)
class Bar:
    """One operation on one resource. Times are seconds since the run's first operation began.

    Attributes:
        parts: The scripts of a step, in their order; empty if it has fewer than two.
    """

    urn: str
    op: str
    began: float
    ended: float
    outcome: Literal["done", "failed", "cut off"] = "done"
    group: str = CLUSTER
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """The resource's name without its host's."""
        return Urn.parse(self.urn).name.removeprefix(f"{self.group}-")

    @property
    def label(self) -> str:
        """The name, with the operation unless it is a plain create or delete."""
        return self.name if self.op in ("create", "delete") else f"{self.name} ({self.op})"

    @property
    def took(self) -> float:
        """Duration in seconds."""
        return self.ended - self.began

    @property
    def deletes(self) -> bool:
        """Whether the operation deletes the resource."""
        return self.op in ("delete", "delete-replaced")


@dataclass(frozen=True)
class Step:
    """A bar of the critical path, and the seconds between its predecessor's end and its beginning."""

    bar: Bar
    waited: float


@dataclass(frozen=True)
class Timeline:
    """A run.

    Attributes:
        command: `up` or `destroy`.
        stack: The stack's name.
        began: When the first operation began.
        seconds: The run's duration.
        bars: All operations.
        path: The critical path, first to last.
        exact: Whether times are more precise than whole seconds.
        by_dependencies: Whether the critical path follows dependencies; otherwise only times are known.
    """

    command: str
    stack: str
    began: datetime
    seconds: float
    bars: tuple[Bar, ...]
    path: tuple[Step, ...]
    exact: bool
    by_dependencies: bool

    def groups(self) -> dict[str, list[Bar]]:
        """Bars by host, in the order in which they began; the cluster's are last."""
        found: dict[str, list[Bar]] = {}
        for bar in sorted(self.bars, key=lambda bar: (bar.group == CLUSTER, bar.group, bar.began)):
            found.setdefault(bar.group, []).append(bar)
        return found

    def critical(self, bar: Bar) -> Step | None:
        """The bar's step in the critical path, if it is part of it."""
        return next((step for step in self.path if step.bar == bar), None)


def read(text: str, stack: str, dependencies: Dependencies | None = None) -> Timeline:
    """Read a run from a record or an event log.

    Args:
        text: Events as lines of JSON; other lines are ignored.
        stack: The stack's name.
        dependencies: Used if the text doesn't contain the dependencies.

    Raises:
        UserError: The text contains no events of an `up` or `destroy`.
    """
    events, known, command = [], dependencies or {}, ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # other output of Pulumi, or an incomplete last line
        if not isinstance(event, dict):
            continue
        known = event.get("dependencies", known)
        command = event.get("command", command)
        if "timestamp" in event:
            events.append(event)
    first, bars = _bars(events)
    if not bars:
        raise UserError(
            "the log contains no operations on resources",
            "use the output of `pulumi up --yes --skip-preview --json`, or the file of --event-log FILE",
        )
    bars = _grouped(bars, known)
    by_dependencies = any(bar.urn in known for bar in bars)
    return Timeline(
        command or ("destroy" if all(bar.deletes for bar in bars) else "up"),
        stack,
        datetime.fromtimestamp(first),
        max(bar.ended for bar in bars),
        tuple(bars),
        tuple(critical_path(bars, known if by_dependencies else None)),
        any(event["timestamp"] % 1 for event in events),
        by_dependencies,
    )


def _bars(events: Sequence[Mapping[str, Any]]) -> tuple[float, list[Bar]]:
    """The time when the first operation began, and a bar for each operation."""
    first: float | None = None
    running: dict[tuple[str, str], float] = {}
    # When each script of a running step reported something last.
    reported: dict[str, dict[str, float]] = {}
    bars: list[Bar] = []
    for event in events:
        script = reporting_script(event)
        if script is not None and first is not None:
            reported.setdefault(script[0], {})[script[1]] = event["timestamp"] - first
        for kind, outcome in (
            ("resourcePreEvent", None),
            ("resOutputsEvent", "done"),
            ("resOpFailedEvent", "failed"),
        ):
            step = event.get(kind, {}).get("metadata")
            if step is None or event[kind].get("planning") or not is_custom(step) or step["op"] not in DONE:
                continue
            if first is None:
                first = event["timestamp"]
            key, now = (step["urn"], step["op"]), event["timestamp"] - first
            if outcome is None:
                running[key] = now
                reported.pop(key[0], None)
            elif key in running:
                ended: Literal["done", "failed"] = "failed" if outcome == "failed" else "done"
                began = running.pop(key)
                parts = _parts(began, now, reported.get(key[0], {}))
                bars.append(Bar(*key, began, now, ended, parts=parts))
    last = max((event["timestamp"] for event in events), default=0.0)
    bars += [Bar(*key, began, last - (first or 0), "cut off") for key, began in running.items()]
    return first or 0.0, bars


def _parts(began: float, ended: float, reported: Mapping[str, float]) -> tuple[Part, ...]:
    """A step's scripts, from the times of their last messages: the last thing a script does is to report."""
    if len(reported) < 2:
        return ()
    names = sorted(reported, key=lambda name: reported[name])
    ends = [*(reported[name] for name in names[:-1]), ended]
    return tuple(Part(name, *times) for name, times in zip(names, pairwise([began, *ends]), strict=True))


def _grouped(bars: Sequence[Bar], dependencies: Dependencies) -> list[Bar]:
    """The bars with their hosts. A step on a host is named `HOST-STEP`."""
    hosts = {
        # Every host has preparation steps, such as `HOST-claim`.
        Urn.parse(urn).name.rpartition("-")[0]
        for urn in (*(bar.urn for bar in bars), *dependencies)
        if "PreparedHost$command:" in urn
    }

    def group(bar: Bar) -> str:
        urn = Urn.parse(bar.urn)
        if not urn.type.startswith("command:"):
            return CLUSTER
        matching = [host for host in hosts if urn.name.startswith(f"{host}-")]
        return max(matching, key=len, default=CLUSTER)

    return [replace(bar, group=group(bar)) for bar in bars]


def critical_path(bars: Sequence[Bar], dependencies: Dependencies | None) -> list[Step]:
    """The chain of operations that determined when the run ended, first to last.

    The chain starts at the operation that ended last and goes back: of all operations that a step depended
    on, the one that ended last held it up. A resource is created or updated after everything it depends on,
    and deleted before it. A replacement is created after the old resource is deleted. Dependencies also lead
    through resources without an operation: providers, components, unchanged resources.

    Only a faster step of this path makes the run faster. The time that a step waited after its predecessor's
    end is the engine's: hooks, the limit on parallel operations, deleting in rounds, and lanes of existing
    nodes (components/workers.py).

    Args:
        bars: All operations.
        dependencies: The URNs that each URN depends on. None if they are unknown: then the operation that
            ended last before a step began is assumed to have held it up.
    """
    step = max(bars, key=_end)
    chain = [step]
    while True:
        earlier = _earlier(step, bars) if dependencies is None else _prerequisites(step, bars, dependencies)
        # Never the same bar twice: a damaged log could contain a cycle.
        candidates = [bar for bar in earlier if bar not in chain]
        if not candidates:
            break
        step = max(candidates, key=_end)
        chain.append(step)
    chain.reverse()
    starts = [0.0, *(bar.ended for bar in chain)]
    return [Step(bar, max(bar.began - ended, 0.0)) for bar, ended in zip(chain, starts, strict=False)]


def _end(bar: Bar) -> tuple[float, str]:
    """Sort key: the end, then the URN, so that ties are broken the same way every time."""
    return bar.ended, bar.urn


def _earlier(step: Bar, bars: Iterable[Bar]) -> list[Bar]:
    return [bar for bar in bars if bar != step and bar.ended <= step.began]


def _prerequisites(step: Bar, bars: Sequence[Bar], dependencies: Dependencies) -> list[Bar]:
    """The operations that had to end before this one could begin."""
    if step.deletes:
        edges = _reversed(dependencies)
        wanted = {bar.urn: bar for bar in bars if bar.deletes}
    else:
        edges = dependencies
        wanted = {bar.urn: bar for bar in bars if not bar.deletes}
    found = [bar for bar in bars if bar.deletes and bar.urn == step.urn and not step.deletes]
    todo, seen = list(edges.get(step.urn, [])), {step.urn}
    while todo:
        urn = todo.pop()
        if urn in seen:
            continue
        seen.add(urn)
        if urn in wanted:
            found.append(wanted[urn])
        else:
            todo += edges.get(urn, [])
    return found


def _reversed(dependencies: Dependencies) -> Dependencies:
    found: Dependencies = {}
    for urn, needed in dependencies.items():
        for other in needed:
            found.setdefault(other, []).append(urn)
    return found


def ticks(seconds: float, most: int = 6) -> list[float]:
    """Round times at equal distances from 0 to `seconds`, at most `most` of them."""
    steps = [size * power for power in (1, 60, 3600) for size in (1, 2, 5, 10, 15, 30)]
    step = next((step for step in steps if seconds / step < most), steps[-1])
    return [float(step * number) for number in range(int(seconds // step) + 1)]


def format_seconds(value: float, exact: bool) -> str:
    """A time, as precise as it is known."""
    return f"{value:.1f} s" if exact else f"{value:.0f} s"


def headline(run: Timeline) -> str:
    """A one-line summary of the run."""
    working = sum(step.bar.took for step in run.path)
    failed = sum(bar.outcome != "done" for bar in run.bars)
    summary = (
        f"{run.began:%F %T}, {format_seconds(run.seconds, run.exact)}, {len(run.bars)} steps; critical path: "
        f"{len(run.path)} steps, {format_seconds(working, run.exact)} of work"
    )
    return f"{summary}; {failed} failed or cut off" if failed else summary


def caveats(run: Timeline) -> list[str]:
    """The limits of the figures' accuracy, as sentences."""
    found = []
    if not run.exact:
        found.append("Times in the engine's log are whole seconds.")
    if not run.by_dependencies:
        found.append("The state has no dependencies any more: the critical path is based on times alone.")
    return found
