"""The page docs/fleet.md, from the template page.md.j2, and results as text for the command line.

`python -m tests.fleet.page` adds the local results to docs/fleet.json, and writes the page and its picture.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import paths, tables
from tests.fleet import picture, results
from tests.fleet.goals import GOALS, Goal
from tests.fleet.phases import PHASES
from tests.fleet.processes import API_SERVER, ENGINE, HOSTS, PLUGINS, PROGRAM
from tests.fleet.results import Origin, Preview, Results, Run

PAGE = paths.project_dir() / "docs" / "fleet.md"
PICTURE = PAGE.parent / "images" / "fleet.svg"

COST_HEADINGS = (
    "time",
    "other load",
    "CPU: program",
    "engine",
    "plugins",
    "API server",
    "hosts",
    "memory: program",
    "engine",
    "written",
)
REACHED_HEADINGS = (
    "logins",
    "on the control plane",
    "on a worker, at most",
    "hosts reached",
    "commands",
    "resources",
    "state",
)
PREVIEW_HEADINGS = ("hosts", "version", "CPU", "growth", "memory", "resources", "commands")

_CPU_ROLES = (PROGRAM, ENGINE, PLUGINS, API_SERVER, HOSTS)
_NONE = "-"


def seconds(value: float) -> str:
    """A duration, such as `0.52 s` or `47 s`."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def size(count: float) -> str:
    """A number of bytes, such as `2.4 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            scaled = count / factor
            return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{count:.0f} B"


def counts(numbers: Mapping[str, int]) -> str:
    """Counts by name, such as `84 created, 3 updated`."""
    return ", ".join(f"{number} {name}" for name, number in numbers.items()) or "nothing"


def cost_cells(run: Run) -> list[str]:
    """A run's time and memory, below `COST_HEADINGS`."""
    return [
        seconds(run.seconds) + (" (fails)" if run.failed else ""),
        f"{run.other_load:.0%}",
        *(seconds(run.cpu_seconds[role]) if run.cpu_seconds.get(role) else _NONE for role in _CPU_ROLES),
        *(size(run.peak_bytes[role]) if run.peak_bytes.get(role) else _NONE for role in (PROGRAM, ENGINE)),
        size(run.written_bytes) if run.written_bytes else _NONE,
    ]


def reached_cells(run: Run) -> list[str]:
    """What a run reached and left behind, below `REACHED_HEADINGS`."""
    return [
        str(run.logins),
        str(run.control_plane_logins),
        str(run.most_logins),
        str(run.hosts_reached),
        str(sum(run.commands.values())),
        str(run.resources),
        size(run.state_bytes),
    ]


def _detail_cells(run: Run) -> list[str]:
    return [counts(run.operations), counts(run.commands)]


def run_line(run: Run) -> str:
    """A run's most important figures on one line."""
    return (
        f"{run.phase}: {seconds(run.seconds)}, {run.logins} logins on {run.hosts_reached} hosts, "
        f"resources: {counts(run.operations)}; commands: {counts(run.commands)}"
    )


def preview_line(preview: Preview) -> str:
    """The cost of the program alone on one line."""
    return (
        f"the program alone: {seconds(preview.cpu_seconds)} of CPU, {size(preview.peak_bytes)}, "
        f"{preview.resources} resources"
    )


def report(kept: Results, series: str, sizes: Iterable[int]) -> str:
    """The results of a series for some numbers of hosts, as plain text."""
    parts: list[str] = []
    for hosts in sizes:
        found = ((name, kept.run(series, hosts, name)) for name in PHASES)
        rows = [[name, *cost_cells(run), *reached_cells(run)] for name, run in found if run is not None]
        preview = kept.previews.get((series, hosts))
        lines = [f"{hosts} hosts"]
        if rows:
            headings = ["phase", *COST_HEADINGS, *REACHED_HEADINGS]
            lines.append(tables.table(headings, rows, right=range(1, len(headings)), indent=2))
        if preview is not None:
            lines.append(f"  {preview_line(preview)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def growth(kept: Results, series: str, hosts: int) -> float | None:
    """The exponent with which the program's CPU time grew since the next smaller number of hosts."""
    smaller = [count for name, count in kept.previews if name == series and count < hosts]
    if not smaller:
        return None
    before, now = kept.previews[series, max(smaller)], kept.previews[series, hosts]
    return math.log(now.cpu_seconds / before.cpu_seconds) / math.log(hosts / max(smaller))


def text(kept: Results) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    origins = _origins(kept)
    return environment.get_template("page.md.j2").render(
        picture=PICTURE.relative_to(PAGE.parent).as_posix(),
        goals=table(("goal", "hosts", *kept.series, "at most"), _goal_rows(kept)),
        previews=table(PREVIEW_HEADINGS, _preview_rows(kept)),
        phases=[(f"`{phase.name}`", phase.title, f"`pulumi {phase.command}`") for phase in PHASES.values()],
        sizes=[
            (
                hosts,
                _run_table(kept, hosts, COST_HEADINGS, cost_cells),
                _run_table(kept, hosts, REACHED_HEADINGS, reached_cells),
                _run_table(kept, hosts, ("resources", "commands on hosts"), _detail_cells),
            )
            for hosts in kept.sizes
        ],
        origins=table(("version", "hosts", "date", "commit", "digest", "environment"), _origin_rows(origins)),
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a trailing newline."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _run_table(kept: Results, hosts: int, headings: Sequence[str], cells: Callable[[Run], list[str]]) -> str:
    """A table with a row for each phase and series."""
    rows = [
        [phase.title, series, *cells(run)]
        for name, phase in PHASES.items()
        for series in kept.series
        for run in [kept.run(series, hosts, name)]
        if run is not None
    ]
    return table(("phase", "version", *headings), rows)


def _preview_rows(kept: Results) -> list[list[str]]:
    rows = []
    for hosts in sorted({hosts for _, hosts in kept.previews}):
        for series in kept.series:
            preview = kept.previews.get((series, hosts))
            if preview is None:
                continue
            exponent = growth(kept, series, hosts)
            rows.append(
                [
                    str(hosts),
                    series,
                    seconds(preview.cpu_seconds),
                    _NONE if exponent is None else f"N^{exponent:.1f}",
                    size(preview.peak_bytes),
                    str(preview.resources),
                    str(preview.commands),
                ]
            )
    return rows


def _goal_rows(kept: Results) -> list[list[str]]:
    return [
        [goal.title, str(hosts), *(_goal_cell(goal, kept, series, hosts) for series in kept.series), limit]
        for goal in GOALS
        for hosts in goal.sizes
        for limit in [_amount(goal.limit(hosts), goal.unit)]
    ]


def _goal_cell(goal: Goal, kept: Results, series: str, hosts: int) -> str:
    value = goal.measure(kept, series, hosts)
    if value is None:
        return _NONE
    return _amount(value, goal.unit) + ("" if goal.is_met(value, hosts) else " (missed)")


def _amount(value: float, unit: str) -> str:
    if math.isinf(value):
        return _NONE
    number = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{number} {unit}".strip()


def _origins(kept: Results) -> list[Origin]:
    found = [run.origin for run in kept.runs.values()]
    found += [preview.origin for preview in kept.previews.values()]
    return sorted(set(found), key=lambda about: (kept.series.index(about.series), about.hosts, about.date))


def _origin_rows(origins: Iterable[Origin]) -> list[list[str]]:
    """One row for each environment, with all its numbers of hosts."""
    sizes: dict[tuple[str, ...], set[int]] = {}
    for about in origins:
        key = (about.series, about.date, f"`{about.commit}`", f"`{about.code}`", about.where)
        sizes.setdefault(key, set()).add(about.hosts)
    return [[series, ", ".join(map(str, sorted(hosts))), *rest] for (series, *rest), hosts in sizes.items()]


def main() -> int:
    """Add the local results to the JSON file, and write the page and the picture."""
    kept = results.read(results.JSON_FILE)
    local = results.read(results.here())
    kept.add(*local.runs.values(), *local.previews.values())
    results.write(results.JSON_FILE, kept)
    PAGE.write_text(text(kept))
    PICTURE.write_text(picture.svg(kept))
    subprocess.run(["git", "--no-pager", "diff", "--stat", str(PAGE.parent)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
