"""A run out of the engine's events: its operations with their times, and the critical path through them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from common.errors import UserError
from tools.runs import Dependencies
from tools.watch import DONE, Urn, is_custom

CLUSTER = "cluster"  # the group of what belongs to no host


@dataclass(frozen=True)
class Bar:
    """One operation on one resource; times in seconds since the run's first operation began."""

    urn: str
    op: str
    began: float
    ended: float
    outcome: Literal["done", "failed", "cut off"] = "done"
    group: str = CLUSTER

    @property
    def name(self) -> str:
        """The resource's, without its host's."""
        return Urn.parse(self.urn).name.removeprefix(f"{self.group}-")

    @property
    def took(self) -> float:
        """Seconds."""
        return self.ended - self.began

    @property
    def deletes(self) -> bool:
        """Whether the resource is gone afterwards."""
        return self.op in ("delete", "delete-replaced")


@dataclass(frozen=True)
class Step:
    """A bar of the critical path, and the seconds from the end of the one before it to its beginning."""

    bar: Bar
    waited: float


@dataclass(frozen=True)
class Timeline:
    """A run.

    `exact` is whether times are better than whole seconds; `by_dependencies` whether the critical path
    goes by them, or by times alone.
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
        """Bars by host in the order of their beginnings, the cluster's last."""
        found: dict[str, list[Bar]] = {}
        for bar in sorted(self.bars, key=lambda bar: (bar.group == CLUSTER, bar.group, bar.began)):
            found.setdefault(bar.group, []).append(bar)
        return found

    def critical(self, bar: Bar) -> Step | None:
        """The bar's part in the critical path."""
        return next((step for step in self.path if step.bar == bar), None)


def read(text: str, stack: str, dependencies: Dependencies | None = None) -> Timeline:
    """The run whose events are in a record or a log.

    :param dependencies: for a log without a line of its own that says them.
    :raises UserError: there are no events of an `up` or `destroy` in it.
    """
    events, known, command = [], dependencies or {}, ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # Pulumi's own words between the events, or a last line that was cut off
        if not isinstance(event, dict):
            continue
        known = event.get("dependencies", known)
        command = event.get("command", command)
        if "timestamp" in event:
            events.append(event)
    first, bars = _bars(events)
    if not bars:
        raise UserError(
            "no resource was worked on in this log",
            "give what `pulumi up --yes --skip-preview --json` prints, or --event-log FILE writes",
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
    """The time of the first operation's beginning, and a bar for each operation."""
    first: float | None = None
    open_bars: dict[tuple[str, str], float] = {}
    bars: list[Bar] = []
    for event in events:
        for moment, outcome in (
            ("resourcePreEvent", None),
            ("resOutputsEvent", "done"),
            ("resOpFailedEvent", "failed"),
        ):
            step = event.get(moment, {}).get("metadata")
            if step is None or event[moment].get("planning") or not is_custom(step) or step["op"] not in DONE:
                continue
            if first is None:
                first = event["timestamp"]
            key, now = (step["urn"], step["op"]), event["timestamp"] - first
            if outcome is None:
                open_bars[key] = now
            elif key in open_bars:
                ended: Literal["done", "failed"] = "failed" if outcome == "failed" else "done"
                bars.append(Bar(*key, open_bars.pop(key), now, ended))
    last = max((event["timestamp"] for event in events), default=0.0)
    bars += [Bar(*key, began, last - (first or 0), "cut off") for key, began in open_bars.items()]
    return first or 0.0, bars


def _grouped(bars: Sequence[Bar], dependencies: Dependencies) -> list[Bar]:
    """The bars with their hosts: a step on a host is called `HOST-STEP`."""
    hosts = {
        # A step of its preparation, of which a host always has some: `HOST-claim`.
        Urn.parse(urn).name.rpartition("-")[0]
        for urn in (*(bar.urn for bar in bars), *dependencies)
        if "PreparedHost$command:" in urn
    }

    def group(bar: Bar) -> str:
        urn = Urn.parse(bar.urn)
        if not urn.type.startswith("command:"):
            return CLUSTER
        fitting = [host for host in hosts if urn.name.startswith(f"{host}-")]
        return max(fitting, key=len, default=CLUSTER)

    return [replace(bar, group=group(bar)) for bar in bars]


def critical_path(bars: Sequence[Bar], dependencies: Dependencies | None) -> list[Step]:
    """The chain of operations that the run's end waited for, first to last.

    From the operation that ended last, back: of all that an operation had to wait for, the one that ended
    last was what kept it. A resource is made or changed after everything that it depends on, and deleted
    before it; a replacement is made after its own deletion. What lies between and was not worked on (a
    provider, a component, an unchanged resource) only hands the dependency on. So a faster run needs a
    faster step of this path: any other had time to spare. What a step waited beyond its predecessor's end is
    the engine's: hooks, the limit on parallel operations, and that it deletes in rounds.

    :param dependencies: URNs to the URNs that they depend on; None where nobody knows, and the path goes
        by times alone: what ended last before an operation began is taken for what kept it.
    """
    step = max(bars, key=_end)
    chain = [step]
    while True:
        before = _earlier(step, bars) if dependencies is None else _before(step, bars, dependencies)
        # A bar that is in the chain already can't come again, whatever a log says.
        candidates = [bar for bar in before if bar not in chain]
        if not candidates:
            break
        step = max(candidates, key=_end)
        chain.append(step)
    chain.reverse()
    starts = [0.0, *(bar.ended for bar in chain)]
    return [Step(bar, max(bar.began - ended, 0.0)) for bar, ended in zip(chain, starts, strict=False)]


def _end(bar: Bar) -> tuple[float, str]:
    """What ended last; of several at once always the same one."""
    return bar.ended, bar.urn


def _earlier(step: Bar, bars: Iterable[Bar]) -> list[Bar]:
    return [bar for bar in bars if bar != step and bar.ended <= step.began]


def _before(step: Bar, bars: Sequence[Bar], dependencies: Dependencies) -> list[Bar]:
    """The operations that had to end before this one could begin."""
    if step.deletes:
        ways = _reversed(dependencies)
        wanted = {bar.urn: bar for bar in bars if bar.deletes}
    else:
        ways = dependencies
        wanted = {bar.urn: bar for bar in bars if not bar.deletes}
    found = [bar for bar in bars if bar.deletes and bar.urn == step.urn and not step.deletes]
    todo, seen = list(ways.get(step.urn, [])), {step.urn}
    while todo:
        urn = todo.pop()
        if urn in seen:
            continue
        seen.add(urn)
        if urn in wanted:
            found.append(wanted[urn])
        else:
            todo += ways.get(urn, [])
    return found


def _reversed(dependencies: Dependencies) -> Dependencies:
    found: Dependencies = {}
    for urn, needed in dependencies.items():
        for other in needed:
            found.setdefault(other, []).append(urn)
    return found


def ticks(seconds: float, most: int = 6) -> list[float]:
    """At most so many times from 0 on, at even distances that a person counts in."""
    steps = [size * power for power in (1, 60, 3600) for size in (1, 2, 5, 10, 15, 30)]
    step = next((step for step in steps if seconds / step < most), steps[-1])
    return [float(step * number) for number in range(int(seconds // step) + 1)]


def seconds_of(value: float, exact: bool) -> str:
    """A time as precise as it is known."""
    return f"{value:.1f} s" if exact else f"{value:.0f} s"


def headline(run: Timeline) -> str:
    """The run in a sentence."""
    working = sum(step.bar.took for step in run.path)
    failed = sum(bar.outcome != "done" for bar in run.bars)
    said = (
        f"{run.began:%F %T}, {seconds_of(run.seconds, run.exact)}, {len(run.bars)} steps; critical path: "
        f"{len(run.path)} steps, {seconds_of(working, run.exact)} of work"
    )
    return f"{said}; {failed} failed or cut off" if failed else said


def caveats(run: Timeline) -> list[str]:
    """What the reader must know about how good the figures are."""
    said = []
    if not run.exact:
        said.append("The engine's log has whole seconds only.")
    if not run.by_dependencies:
        said.append("The resources' dependencies aren't in the state any more: the path goes by times alone.")
    return said
