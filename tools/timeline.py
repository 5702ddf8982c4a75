"""`python -m tools timeline --stack NAME`, or `make timeline`: where the last run's time went.

Draws a bar for each resource that the last `up` or `destroy` changed, by host, and marks the critical path.
A step of several scripts also has a line for each of them.

`make up` and `make down` keep the events of their runs (`tools/runs.py`). For any other run, --log reads the
output of `pulumi up --json` or the file of `--event-log FILE`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from common import cli, tables
from common.errors import UserError
from common.paths import project_dir
from tools import runs, timeline_page
from tools.critical import Bar, Part, Timeline, caveats, format_seconds, headline, read, ticks
from tools.watch import Urn

_NAME_WIDTH = 30
_LEAST_BAR_WIDTH = 20


def chart(run: Timeline, width: int) -> str:
    """The run as text: `#` is on the critical path, `=` isn't, `.` is waiting time, `-` is a part of a step.

    Args:
        run: The run.
        width: The terminal's columns. Narrow terminals get wider lines than that.
    """
    names = {bar: tables.shortened(bar.label, _NAME_WIDTH) for bar in run.bars}
    took = {bar: format_seconds(bar.took, run.exact) for bar in run.bars}
    parts = [f"  {part.name}" for bar in run.bars for part in bar.parts]
    # Beside the bar: the mark, the name, the duration and the space between columns.
    others = 2 + max(map(len, [*names.values(), *parts])) + 2 + 2 + max(map(len, took.values()))
    room = max(width - others, _LEAST_BAR_WIDTH)
    scale = room / max(run.seconds, 0.001)
    rows = []
    for group, bars in run.groups().items():
        rows.append((group, _axis(run.seconds, room, scale), "", ""))
        for bar in bars:
            step = run.critical(bar)
            begin = int(bar.began * scale)
            wait = int(step.waited * scale) if step else 0
            drawn = " " * (begin - wait) + "." * wait + ("#" if step else "=") * _length(bar, scale)
            outcome = "" if bar.outcome == "done" else bar.outcome
            rows.append((f"{'*' if step else ' '} {names[bar]}", drawn[:room], took[bar], outcome))
            for part in bar.parts:
                drawn = " " * int(part.began * scale) + "-" * _length(part, scale)
                rows.append((f"    {part.name}", drawn[:room], format_seconds(part.took, run.exact), ""))
        rows.append(("", "", "", ""))
    steps = [
        (
            *(format_seconds(value, run.exact) for value in (step.bar.began, step.bar.took, step.waited)),
            f"{Urn.parse(step.bar.urn).name} ({step.bar.op})",
        )
        for step in run.path
    ]
    lines = [
        f"pulumi {run.command} of {run.stack}: {headline(run)}",
        "",
        *tables.lines(rows, right=(2,)),
        "critical path: the steps that determined when the run ended",
        tables.table(("BEGAN", "TOOK", "WAITED", "STEP"), steps, right=(0, 1, 2), indent=2),
    ]
    if caveats(run):
        lines += ["", *caveats(run)]
    return "\n".join(lines) + "\n"


def _length(bar: Bar | Part, scale: float) -> int:
    """How many characters a bar has: at least one."""
    return max(int(bar.ended * scale) - int(bar.began * scale), 1)


def _axis(seconds: float, room: int, scale: float) -> str:
    drawn = ""
    for tick in ticks(seconds):
        label = f"|{tick:.0f}s"
        place = int(tick * scale)
        if place >= len(drawn) and place + len(label) <= room:
            drawn = f"{drawn:{place}}{label}"
    return drawn


def last(stack: str) -> Timeline:
    """The last run of `make up` or `make down` on a stack.

    Raises:
        UserError: No run is kept.
    """
    folder = runs.folder(stack)
    for file in sorted(folder.glob("*.jsonl"), reverse=True):
        try:
            return read(file.read_text(encoding="utf-8"), stack)
        except UserError:
            continue  # killed before its first operation
    raise UserError(
        f"no run of the stack {stack} is kept in {folder}",
        "run `make up` or `make down`, which keep their runs, or pass another run's log with --log FILE",
    )


_file = click.Path(path_type=Path)


@click.command()
@cli.stack_option
@click.option("--log", type=_file, metavar="FILE", help="Read the events of another run from this file.")
@click.option("--html", type=_file, metavar="FILE", help="Write an HTML page instead of text.")
def command(stack: str, log: Path | None, html: Path | None) -> None:
    """Show where the time of the last run went."""
    if log:
        run = read(cli.read_text(log), stack, runs.dependencies(stack, project_dir()))
    else:
        run = last(stack)
    if html:
        cli.write_text(html, timeline_page.page(run))
        print(f"wrote {html}")
    else:
        print(chart(run, shutil.get_terminal_size().columns), end="")
