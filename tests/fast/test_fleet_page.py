"""The simulated fleet's page and picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fast.fleet_results import origin, preview, run
from tests.fleet import goals, page, picture, results
from tests.fleet.results import Results

SVG = "{http://www.w3.org/2000/svg}"


def sample() -> Results:
    kept = Results()
    for series, cpu in (("before", 40.0), ("now", 4.0)):
        for hosts, factor in ((3, 0.01), (100, 1.0)):
            about = origin(hosts, series)
            kept.add(run("up", about), run("dead", about), preview(about, cpu_seconds=cpu * factor))
    return kept


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its own heading."""
    below = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = below.partition("|")[1] + below.partition("|")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_page_has_a_row_per_phase_and_version() -> None:
    text = page.text(sample())
    found = rows(text, "100 hosts")
    assert [row[:3] for row in found] == [
        ["first `up`", "before", "12 s"],
        ["first `up`", "now", "12 s"],
        ["a dead host", "before", "12 s (fails)"],
        ["a dead host", "now", "12 s (fails)"],
    ]
    assert "| first `up` | now | 900 created, 1 unchanged | 99 create join |" in text


def test_page_shows_goals_of_both_versions() -> None:
    found = {(row[0], row[1]): row[2:] for row in rows(page.text(sample()), "Goals")}
    assert found["the program's own CPU time in a preview", "100"] == ["40 s (missed)", "4 s", "5 s"]
    assert found["the program's own CPU time in a preview", "500"] == ["-", "-", "30 s"]
    assert found["state per host after the first `up`", "100"] == ["29 kB", "29 kB", "30 kB"]


def test_page_shows_growth_of_the_program() -> None:
    found = rows(page.text(sample()), "The program alone")
    assert [row[:4] for row in found if row[1] == "now"] == [
        ["3", "now", "0.04 s", "-"],
        ["100", "now", "4.0 s", "N^1.3"],
    ]


def test_environments_are_listed_once() -> None:
    [before, now] = rows(page.text(sample()), "Environments")
    assert before[:5] == ["before", "3, 100", "2026-11-26", "`abc1234`", "`0123456789ab`"]
    assert now[0] == "now"


def test_page_without_results_can_be_written() -> None:
    assert "# Simulated fleet" in page.text(Results())
    ET.fromstring(picture.svg(Results()))


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (2_400, "2.4 kB"), (47_000_000, "47 MB"), (1.3e11, "130 GB")]
)
def test_sizes_are_short(count: float, text: str) -> None:
    assert page.size(count) == text


def test_report_aligns_phases_of_each_fleet() -> None:
    lines = page.report(sample(), "now", [3, 100]).splitlines()
    assert [line for line in lines if line.endswith(" hosts")] == ["3 hosts", "100 hosts"]
    assert sum(line.startswith("  dead") for line in lines) == 2


def test_picture_draws_a_line_per_version_and_goal() -> None:
    root = ET.fromstring(picture.svg(sample()))
    lines = [path for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "2"]
    # Two versions in each diagram, except for the preview without changes, which isn't measured.
    assert len(lines) == 2 * (len(picture.PANELS) - 1)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"before", "now", "goal", "not measured yet", "500"} <= set(texts)


def test_picture_places_values_within_its_panel() -> None:
    scale = picture.Scale(1, 100, 200, 0)
    assert [scale.place(value) for value in (1, 10, 100)] == [200, 100, 0]
    assert picture.decades([0.5, 30]) == [0.1, 1, 10, 100]
    assert picture.decades([10]) == [10, 100]


def test_missed_goals_are_named_with_their_limits() -> None:
    kept = Results()
    up = run("up", origin(30))
    kept.add(up, replace(run("add", origin(30)), resources=up.resources + 30))
    kept.add(run("noop-up", origin(30), logins=2))
    missed = goals.missed(kept, "now", 30)
    assert "logins when nothing changes: 2, more than 0" in missed
    assert "resources of a host that is added: 30, more than 10" in missed
    assert not [text for text in missed if text.startswith("logins on a worker")]
    assert goals.missed(Results(), "now", 30) == []


def test_command_adds_local_results_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "JSON_FILE", tmp_path / "fleet.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "docs/fleet.md")
    monkeypatch.setattr(page, "PICTURE", tmp_path / "docs/images/fleet.svg")
    (tmp_path / "docs/images").mkdir(parents=True)
    local = tmp_path / "local.json"
    monkeypatch.setattr(results, "here", lambda: local)
    results.save(run("up", origin(3, "before")))
    page.main()
    local.unlink()
    results.save(run("up", origin(3)))
    page.main()
    assert results.read(results.JSON_FILE).series == ["before", "now"]
    text = (tmp_path / "docs/fleet.md").read_text()
    assert [row[1] for row in rows(text, "3 hosts")] == ["before", "now"]
    assert (tmp_path / "docs/images/fleet.svg").read_text().startswith("<svg")


def test_committed_page_comes_from_stored_results() -> None:
    kept = results.read(results.JSON_FILE)
    assert page.PAGE.read_text() == page.text(kept)
    assert page.PICTURE.read_text() == picture.svg(kept)
