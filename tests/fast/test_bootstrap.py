"""What the first step of make does where something is missing, and that it does nothing else twice."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import bootstrap


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished environment: an interpreter that starts, and the stamp of this lock."""
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    monkeypatch.setattr(bootstrap, "VENV", folder)
    monkeypatch.setattr(bootstrap, "STAMP", folder / "lock.sha256")
    bootstrap.STAMP.write_text(bootstrap.fingerprint())
    # The interpreter above has no packages of its own.
    (folder / "bin/python").unlink()
    (folder / "bin/python").write_text("#!/bin/sh\nexit 0\n")
    (folder / "bin/python").chmod(0o755)
    return folder


def test_a_finished_environment_is_left_alone(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "make_environment", lambda: pytest.fail("made again"))
    bootstrap.main()


@pytest.mark.parametrize("damage", ["no stamp", "another lock", "an interpreter that doesn't start"])
def test_anything_else_is_made_again(venv: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(bootstrap, "make_environment", lambda: made.append("once"))
    match damage:
        case "no stamp":
            bootstrap.STAMP.unlink()
        case "another lock":
            bootstrap.STAMP.write_text("0123 3.11 /usr\n")
        case _:
            (venv / "bin/python").write_text("#!/bin/sh\nexit 127\n")
    bootstrap.main()
    assert made == ["once"]


@pytest.fixture
def no_ensurepip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Debian's Python without python3-venv; the commands that are run instead."""
    ran: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_without_apt_it_says_what_is_missing(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as end:
        bootstrap.ensure_ensurepip()
    assert end.value.code == 1
    assert "has no ensurepip, and apt-get isn't here" in capsys.readouterr().err
    assert no_ensurepip == []


def test_root_installs_debians_package_for_this_python(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    bootstrap.ensure_ensurepip()
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert [argv[1] for argv in no_ensurepip] == ["update", "install"]
    assert no_ensurepip[1][-1] == package


def test_without_a_terminal_sudo_may_not_ask(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    bootstrap.ensure_ensurepip()
    assert all(argv[:2] == ["sudo", "-n"] for argv in no_ensurepip)
