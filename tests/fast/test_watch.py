"""The table of a run's times."""

from __future__ import annotations

from tools.watch import Row, time_table


def test_time_table_is_aligned() -> None:
    table = time_table([Row("lab", 0.0, 61.25), Row("  hosts: booting", None, 12.0)])
    assert table.splitlines() == [
        "WHERE THE TIME WENT  BEGAN   TOOK",
        "lab                   0.0s  61.2s",
        "  hosts: booting            12.0s",
    ]


def test_long_names_fit_a_terminal() -> None:
    table = time_table([Row("  mirror: compiling " + "bridge, " * 30, None, 12.0)])
    assert max(len(line) for line in table.splitlines()) <= 94
    assert "  mirror: compiling bridge, " in table
