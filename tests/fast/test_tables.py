"""Text tables for terminals."""

from __future__ import annotations

from common import tables


def test_columns_are_aligned_without_trailing_spaces() -> None:
    table = tables.table(("NAME", "SIZE", "NOTE"), [("a", "5 B", ""), ("longer", "120 kB", "x")], right=(1,))
    assert table.split("\n") == [
        "NAME      SIZE  NOTE",
        "a          5 B",
        "longer  120 kB  x",
    ]


def test_text_is_not_wrapped_cut_or_interpreted() -> None:
    long = "[bold]:smile: " * 100
    [line] = tables.lines([("  indented", long, "end")])
    assert line == f"  indented  {long}  end"


def test_every_row_is_one_line() -> None:
    assert tables.lines([("a", "b"), ("", ""), ("c", "d")], indent=2) == ["  a  b", "", "  c  d"]
    assert tables.lines([]) == []


def test_long_text_is_shortened_only_on_request() -> None:
    assert tables.shortened("a" * 10, 10) == "a" * 10
    assert tables.shortened("a" * 11, 10) == "aaaaaaa..."
