"""Lays out a Pulumi run as an HTML page: a bar for each operation, by host, with the critical path marked.

Positions are percentages of the run's duration, so the drawing fills any width while its text keeps its size.
On a phone a bar is below its name, otherwise beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.critical import Bar, Timeline, caveats, format_seconds, headline, ticks
from tools.page import render
from tools.watch import Urn


@dataclass(frozen=True)
class Tick:
    """A label on the time axis and its grid line."""

    place: float
    label: str
    anchor: str


@dataclass(frozen=True)
class Row:
    """The bar of an operation, or of a part of it."""

    name: str
    title: str
    took: str
    begin: float
    width: float
    wait: tuple[float, float] | None
    critical: bool
    classes: str


@dataclass(frozen=True)
class Group:
    """A host's bars."""

    name: str
    rows: tuple[Row, ...]


def page(run: Timeline) -> str:
    """The page's HTML."""
    return render(
        "timeline.html.j2",
        title=f"pulumi {run.command}: {run.stack}",
        subtitle=headline(run),
        notes=caveats(run),
        ticks=[_tick(run, tick) for tick in ticks(run.seconds)],
        groups=[
            Group(name, tuple(row for bar in bars for row in [_row(run, bar), *_parts(run, bar)]))
            for name, bars in run.groups().items()
        ],
        path=[
            (
                Urn.parse(step.bar.urn).name,
                *(format_seconds(value, run.exact) for value in (step.bar.began, step.bar.took, step.waited)),
            )
            for step in run.path
        ],
    )


def percent(run: Timeline, seconds: float) -> float:
    """A time as a percentage of the drawing's width."""
    return round(100 * seconds / max(run.seconds, 0.001), 2)


def _tick(run: Timeline, seconds: float) -> Tick:
    place = percent(run, seconds)
    # A centred label at either end would stick out of the drawing.
    anchor = "start" if place < 5 else "end" if place > 95 else "middle"
    return Tick(place, f"{seconds:.0f} s", anchor)


def _row(run: Timeline, bar: Bar) -> Row:
    step = run.critical(bar)
    began, took = format_seconds(bar.began, run.exact), format_seconds(bar.took, run.exact)
    title = f"{Urn.parse(bar.urn).name}, {bar.op}: began at {began}, took {took}"
    classes = ["row"]
    wait = None
    if bar.outcome != "done":
        took, title = bar.outcome, f"{title}, {bar.outcome}"
    if step:
        classes.append("critical")
        title += f"; on the critical path, after waiting {format_seconds(step.waited, run.exact)}"
        if step.waited > 0:
            wait = (percent(run, bar.began - step.waited), percent(run, bar.began))
    if bar.outcome != "done":
        classes.append("bad")
    return Row(
        name=bar.label,
        title=title,
        took=took,
        begin=percent(run, bar.began),
        width=max(percent(run, bar.took), 0.3),
        wait=wait,
        critical=step is not None,
        classes=" ".join(classes),
    )


def _parts(run: Timeline, bar: Bar) -> Iterator[Row]:
    for part in bar.parts:
        began, took = format_seconds(part.began, run.exact), format_seconds(part.took, run.exact)
        yield Row(
            name=part.name,
            title=f"{Urn.parse(bar.urn).name}, {part.name}: began at {began}, took {took}",
            took=took,
            begin=percent(run, part.began),
            width=max(percent(run, part.took), 0.3),
            wait=None,
            critical=False,
            classes="row part",
        )
