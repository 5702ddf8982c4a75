"""Plain-text tables, laid out by Rich.

The output is the same in a terminal and in a file, so tests and documentation can quote it: no colours,
borders or trailing spaces, nothing wrapped or truncated.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNLIMITED = 100_000  # columns; Rich fits tables to the width of its console


def lines(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: int = 0) -> list[str]:
    """Align rows of cells in columns and return one line for each row.

    Headings are rows too. Columns are two spaces apart and as wide as their longest cell.

    Args:
        rows: Cells of one line each. All rows have the same number of cells.
        right: Indexes of the right-aligned columns, such as numbers.
        indent: Spaces before each line.
    """
    if not rows:
        return []
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(len(rows[0])):
        table.add_column(justify="right" if column in right else "left", no_wrap=True)
    for row in rows:
        # In a plain string, Rich would interpret brackets as markup.
        table.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    console = Console(file=stream, width=_UNLIMITED, color_system=None, force_terminal=False)
    console.print(table)
    return [f"{' ' * indent}{line}".rstrip() for line in stream.getvalue().splitlines()]


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: int = 0
) -> str:
    """A table with a heading line, without a trailing newline. See `lines`."""
    return "\n".join(lines([headings, *rows], right=right, indent=indent))


def shortened(text: str, width: int) -> str:
    """The text, truncated to `width` characters with `...` at the end if it is longer."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
