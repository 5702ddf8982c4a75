"""Draws how the figures grow with the number of hosts, as an SVG picture with logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tests.fleet.goals import GOALS, Goal
from tests.fleet.results import NOW, Results

HOSTS = (3, 10, 30, 100, 300, 500)
"""The labelled numbers of hosts."""

WIDTH, HEIGHT = 420, 280  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 40, 44  # around a panel's drawing
COLUMNS = 2
LEGEND = 34

_COLOURS = ("#b45309", "#7c3aed", "#0f766e")  # of earlier versions; they differ in brightness too
_NOW = "#1d4ed8"
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600}"
    ".grid{stroke:#e5e7eb}.goal{stroke:#6b7280;stroke-dasharray:5 4}"
)


@dataclass(frozen=True)
class Panel:
    """One diagram, of the value that a goal limits."""

    title: str
    unit: Callable[[float], str]
    goal: Goal


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _megabytes(value: float) -> str:
    return f"{value:g} MB"


def _number(value: float) -> str:
    return f"{value:g}"


def _goal(title: str) -> Goal:
    return next(goal for goal in GOALS if goal.title == title)


PANELS = (
    Panel(
        "CPU time of the program in a preview",
        _seconds,
        _goal("the program's own CPU time in a preview"),
    ),
    Panel("Preview that finds no change", _seconds, _goal("preview that finds no change")),
    Panel("State after the first up", _megabytes, _goal("whole state after the first `up`")),
    Panel(
        "Logins on the control plane in the first up",
        _number,
        _goal("logins on the control plane in the first `up`"),
    ),
)


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)


def decades(values: Sequence[float]) -> list[float]:
    """The powers of ten around some positive values, at least two."""
    first = math.floor(math.log10(min(values)))
    last = max(math.ceil(math.log10(max(values))), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def points(panel: Panel, kept: Results, series: str) -> list[tuple[int, float]]:
    """A panel's values by number of hosts. A logarithmic axis has no place for 0."""
    sizes = sorted({hosts for _, hosts, _ in kept.runs} | {hosts for _, hosts in kept.previews})
    values = ((hosts, panel.goal.measure(kept, series, hosts)) for hosts in sizes)
    return [(hosts, value) for hosts, value in values if value]


def svg(kept: Results) -> str:
    """The picture."""
    rows = -(-len(PANELS) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>Growth with the number of hosts</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(kept.series),
    ]
    for number, panel in enumerate(PANELS):
        x, y = number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT + LEGEND
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, kept), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _colour(series: Sequence[str], name: str) -> str:
    return _NOW if name == NOW else _COLOURS[list(series).index(name) % len(_COLOURS)]


def _legend(series: Sequence[str]) -> list[str]:
    parts: list[str] = []
    x = LEFT
    for name in series:
        parts += [_marker(x, 20, _colour(series, name), name), _text(x + 10, 24, name)]
        x += 30 + 8 * len(name)
    return [*parts, f'<path class="goal" d="M{x} 20h26"/>', _text(x + 32, 24, "goal")]


def _panel(panel: Panel, kept: Results) -> list[str]:
    parts = [_text(LEFT, 24, panel.title, "start", "title")]
    drawn = {name: points(panel, kept, name) for name in kept.series}
    values = [value for found in drawn.values() for _, value in found]
    if not values:
        return [*parts, _text(LEFT, TOP + 20, "not measured yet")]
    limits = [(hosts, panel.goal.limit(hosts)) for hosts in HOSTS]
    across = Scale(HOSTS[0] / 1.2, HOSTS[-1] * 1.2, LEFT, WIDTH - RIGHT)
    ticks = decades([*values, *(limit for _, limit in limits)])
    up = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    for tick in ticks:
        y = up.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, panel.unit(tick), "end"))
    parts += [_text(across.place(hosts), HEIGHT - BOTTOM + 18, str(hosts), "middle") for hosts in HOSTS]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, "hosts", "end"))
    parts.append(f'<path class="goal" fill="none" d="{_path(limits, across, up)}"/>')
    for name, found in drawn.items():
        if found:
            colour = _colour(kept.series, name)
            line = _path(found, across, up)
            parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2" d="{line}"/>')
            parts += [_marker(across.place(hosts), up.place(value), colour, name) for hosts, value in found]
    return parts


def _path(found: Sequence[tuple[int, float]], across: Scale, up: Scale) -> str:
    return "M" + "L".join(f"{across.place(hosts)} {up.place(value)}" for hosts, value in found)


def _marker(x: float, y: float, colour: str, series: str) -> str:
    """A circle for the current program, a square for others."""
    if series == NOW:
        return f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
    return f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{named}>{escape(text)}</text>'
