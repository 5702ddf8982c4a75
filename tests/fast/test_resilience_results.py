"""Recording the results of the long cases."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.resilience import results


def result(case: str, where: str, outcome: str = "passed", code: str = "1") -> results.Result:
    return results.Result(case, case, outcome, 60, "2026-11-26", code, where, ["12 s", "0 lost"])


def test_results_from_other_environments_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "JSON_FILE", tmp_path / "record.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "table.md")
    for place, cases in (("old", ("reboot", "dead")), ("new", ("dead",))):
        monkeypatch.setattr(results, "here", lambda place=place: tmp_path / f"{place}.json")
        for case in cases:
            results.add(result(case, place))
        results.main()
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| dead | passed | 60 | 2026-11-26 | 1 | `1` | 12 s; 0 lost |",
        "| reboot | passed | 60 | 2026-11-26 | 2 | `1` | 12 s; 0 lost |",
    ]
    assert "1. new\n2. old\n" in (tmp_path / "table.md").read_text()


def test_many_measurements_get_their_own_table() -> None:
    many = [f"killed in step {number}" for number in range(1, 21)]
    page = results.page({"kills": replace(result("kills", "here"), figures=many)})
    row, below = page.split("## kills\n")
    assert "| `1` | below |" in row
    assert [f"| {number} | killed in step {number} |" for number in range(1, 21)] == [
        line for line in below.splitlines() if line.startswith("| ") and "step" in line
    ]


def test_only_cases_passed_with_current_program_are_skipped(tmp_path: Path) -> None:
    kept = {
        "now": result("now", "here"),
        "failed": result("failed", "here", outcome="failed"),
        "then": result("then", "here", code="0"),
    }
    assert results.passed(kept, "1") == {"now"}


def test_recorded_cases_exist_in_code() -> None:
    cases = {
        name
        for file in (Path(results.__file__).parent / "cases").glob("*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }
    assert set(results.read(results.JSON_FILE)) <= cases
