"""A lab's checks before it builds anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from lab import provision, record
from lab.lab import Lab
from tests.fast.saved_lab import QUIET, saved_lab


@pytest.fixture(autouse=True)
def _full_disk(temporary_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "_DISK_NEEDED", 1 << 60)
    monkeypatch.setattr("lab.requirements.check", lambda family: None)
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)


def test_full_disk_is_reported_before_building() -> None:
    with pytest.raises(UserError, match="free some disk space"):
        Lab.load("blue", QUIET).up()


def test_complete_lab_restarts_on_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("lab.artefacts.ensure_mirror", reached)
    monkeypatch.setattr(provision, "ensure_base", lambda *_: pytest.fail("no base system is needed"))
    (tmp_path / "www").mkdir()
    lab = saved_lab("blue", mirror_root=str(tmp_path / "www"), image="an-image")
    (lab.folder / "base").mkdir()
    (lab.folder / "base/complete").write_text("an-image")
    with pytest.raises(Reached):
        provision.provide(lab.folder, record.load("blue"), "auto", QUIET)
