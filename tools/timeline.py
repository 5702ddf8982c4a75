"""`python -m tools.timeline --stack NAME`, or `make timeline`: where the time of the last run went.

A bar for each resource that the last `up` or `destroy` worked on, by host, with the critical path marked.
`make up` and `make down` keep their runs' events (`tools/runs.py`); --log takes another run's, as
`pulumi up --json` prints them, or `--event-log FILE` writes them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.paths import project_dir
from tools import runs, timeline_page
from tools.critical import Bar, Timeline, caveats, headline, read, seconds_of, ticks
from tools.watch import Urn

_NAME_LETTERS = 30


def chart(run: Timeline, width: int) -> str:
    """The run for a terminal of so many columns: `#` is on the critical path, `=` beside it, `.` waiting."""
    names = {bar: _named(bar) for bar in run.bars}
    left = max(len(name) for name in names.values()) + 4
    room = max(width - left - 12, 20)
    scale = room / max(run.seconds, 0.001)
    lines = [f"pulumi {run.command} of {run.stack}: {headline(run)}", ""]
    for group, bars in run.groups().items():
        lines.append(f"{group:{left}}{_axis(run.seconds, room, scale)}")
        for bar in bars:
            step = run.critical(bar)
            begin, end = int(bar.began * scale), max(int(bar.ended * scale), int(bar.began * scale) + 1)
            wait = int(step.waited * scale) if step else 0
            drawn = " " * (begin - wait) + "." * wait + ("#" if step else "=") * (end - begin)
            took = seconds_of(bar.took, run.exact)
            mark = "" if bar.outcome == "done" else f" {bar.outcome}"
            lines.append(
                f"{'*' if step else ' '} {names[bar]:{left - 2}}{drawn[:room]:{room}} {took:>9}{mark}"
            )
        lines.append("")
    lines += ["critical path: what the run's end waited for", "     BEGAN       TOOK     WAITED  STEP"]
    for step in run.path:
        times = (step.bar.began, step.bar.took, step.waited)
        columns = "  ".join(f"{seconds_of(value, run.exact):>9}" for value in times)
        lines.append(f" {columns}  {Urn.parse(step.bar.urn).name} ({step.bar.op})")
    return "\n".join([*lines, *(["", *caveats(run)] if caveats(run) else [])]) + "\n"


def _named(bar: Bar) -> str:
    name = bar.name if bar.op in ("create", "delete") else f"{bar.name} ({bar.op})"
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 3]}..."


def _axis(seconds: float, room: int, scale: float) -> str:
    drawn = ""
    for tick in ticks(seconds):
        label = f"|{tick:.0f}s"
        place = int(tick * scale)
        if place >= len(drawn) and place + len(label) <= room:
            drawn = f"{drawn:{place}}{label}"
    return drawn


def last(stack: str) -> Timeline:
    """The last run that `make up` or `make down` made on a stack.

    :raises UserError: none is kept.
    """
    place = runs.folder(stack)
    for file in sorted(place.glob("*.jsonl"), reverse=True):
        try:
            return read(file.read_text(encoding="utf-8"), stack)
        except UserError:
            continue  # of a run that was killed before it began
    raise UserError(
        f"no run of the stack {stack} is kept in {place}",
        "`make up` and `make down` keep theirs; give a log of any other run with --log FILE",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.timeline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--stack", required=True, help="the stack's name, such as dev")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the events of another run")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that draws it")
    chosen = parser.parse_args(argv)
    try:
        if chosen.log:
            known = runs.dependencies(chosen.stack, project_dir())
            run = read(chosen.log.read_text(encoding="utf-8"), chosen.stack, known)
        else:
            run = last(chosen.stack)
        if chosen.html:
            chosen.html.write_text(timeline_page.page(run), encoding="utf-8")
            print(f"written: {chosen.html}")
        else:
            print(chart(run, shutil.get_terminal_size().columns), end="")
    except (UserError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
