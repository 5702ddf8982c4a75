"""Creating the virtual environment."""

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
    """A complete virtual environment with a current stamp."""
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(bootstrap, "VENV", folder)
    monkeypatch.setattr(bootstrap, "STAMP", folder / "lock.sha256")
    bootstrap.STAMP.write_text(bootstrap.fingerprint())
    (folder / "bin/python").write_text("#!/bin/sh\nexit 0\n")
    (folder / "bin/python").chmod(0o755)
    return folder


def test_current_environment_is_left_alone(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "make_environment", lambda: pytest.fail("created again"))
    bootstrap.main()


@pytest.mark.parametrize("damage", ["no stamp", "other lock", "broken interpreter"])
def test_outdated_or_broken_environment_is_created_again(
    venv: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(bootstrap, "make_environment", lambda: calls.append("create"))
    match damage:
        case "no stamp":
            bootstrap.STAMP.unlink()
        case "other lock":
            bootstrap.STAMP.write_text("0123 3.11 /usr\n")
        case _:
            (venv / "bin/python").write_text("#!/bin/sh\nexit 127\n")
    bootstrap.main()
    assert calls == ["create"]


@pytest.fixture
def no_ensurepip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Debian's Python without python3-venv; the value is the list of commands that ran."""
    commands: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_missing_apt_is_reported(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as exited:
        bootstrap.ensure_ensurepip()
    assert exited.value.code == 1
    assert "has no ensurepip, and there is no apt-get" in capsys.readouterr().err
    assert no_ensurepip == []


def test_root_installs_the_package_for_this_python(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    bootstrap.ensure_ensurepip()
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert [argv[1] for argv in no_ensurepip] == ["update", "install"]
    assert no_ensurepip[1][-1] == package


def test_sudo_does_not_prompt_without_terminal(
    no_ensurepip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    bootstrap.ensure_ensurepip()
    assert all(argv[:2] == ["sudo", "-n"] for argv in no_ensurepip)
