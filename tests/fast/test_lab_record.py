"""The saved record of a lab."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from common import paths
from common.errors import UserError
from lab.options import Options
from lab.ports import fixed
from lab.record import Record, choose_ports
from tests.fast.saved_lab import QUIET, saved_lab

pytestmark = pytest.mark.usefixtures("temporary_folders")


def test_saved_options_and_ports_can_be_read() -> None:
    lab = saved_lab(options={"count": 2})
    assert lab.options.count == 2
    assert lab.ports == fixed(2)


def test_record_of_earlier_version_can_be_read(tmp_path: Path) -> None:
    saved = asdict(
        Record(Options(name="red", family="rpm"), fixed(3), mirror="built", mirror_root="/srv/www")
    )
    saved["options"]["family"] = "dnf"
    saved |= {"site": saved.pop("mirror"), "site_root": saved.pop("mirror_root")}
    file = tmp_path / "lab.json"
    file.write_text(json.dumps(saved))
    record = Record.read(file)
    assert (record.mirror, record.mirror_root, record.options.family) == ("built", "/srv/www", "rpm")


def test_existing_lab_with_other_options_is_refused() -> None:
    lab = saved_lab(options={"count": 2})
    with pytest.raises(UserError, match="count: is 2, not 3"):
        lab.up(count=3)
    with pytest.raises(UserError, match="family: is deb, not rpm"):
        lab.up(family="rpm")


def test_ports_of_another_versions_lab_stay_reserved() -> None:
    first = choose_ports("red", 2, QUIET)
    for name, text in (
        ("newer", json.dumps({"options": {"name": "newer", "colour": "red"}, "ports": asdict(first)})),
        ("damaged", "{"),
    ):
        (paths.labs_dir() / name).mkdir()
        (paths.labs_dir() / name / "lab.json").write_text(text)
    assert not set(choose_ports("red", 2, QUIET).tcp()) & set(first.tcp())
