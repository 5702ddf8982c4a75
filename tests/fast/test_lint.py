"""Which files the checks look at, and what becomes of what they find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.paths import project_dir
from common.progress import Progress
from lab.artefacts import gobuild
from lab.artefacts.cache import cached
from tools import lint


@pytest.mark.parametrize(
    ("name", "text", "shell"),
    [
        ("step.sh", "", True),
        ("run", "#!/bin/bash\n", True),
        ("run", "#!/usr/bin/env bash\nset -e\n", True),
        ("run", "#!/bin/sh -e\n", True),
        ("run", "#!/usr/bin/env python3\n", False),
        ("notes.md", "#!/bin/sh\n", False),
        ("Makefile", "SHELL := /bin/bash\n", False),
        ("empty", "", False),
    ],
)
def test_shell_scripts_are_known_by_name_or_first_line(
    tmp_path: Path, name: str, text: str, shell: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert lint.is_shell(tmp_path / name) is shell


def test_new_files_are_looked_at_and_ignored_ones_are_not(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/built/\n")
    (tmp_path / "built").mkdir()
    for name in ("new.sh", "built/made.sh"):
        (tmp_path / name).touch()
    assert [path.name for path in lint.project_files(tmp_path)] == [".gitignore", "new.sh"]


def test_every_shell_file_of_the_project_is_checked() -> None:
    [check] = [check for check in lint.checks(project_dir()) if check.argv[0] == "shellcheck"]
    assert ".ci/run" in check.argv
    assert "scripts/lib.sh" in check.argv


def test_a_finding_of_one_check_does_not_hide_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("import os\n")
    both = (
        lint.Check("first", ("ruff", "check", "--select", "F", "--no-cache", "a.py")),
        lint.Check("second", ("ruff", "--version")),
    )
    monkeypatch.setattr(lint, "checks", lambda root: both[:1])
    monkeypatch.setattr(lint, "workflow_check", lambda progress: both[1])
    monkeypatch.setattr(lint, "network_check", lambda progress: both[1])
    monkeypatch.setattr(lint, "project_dir", lambda: tmp_path)
    assert lint.main() == 1
    said = capsys.readouterr().out
    assert "lint: first: FAILED" in said
    assert "F401" in said
    assert "lint: second: ok" in said


def test_without_go_what_needs_it_is_skipped_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gobuild, "present_go", lambda needed, progress: None)
    monkeypatch.setattr(lint, "checks", lambda root: (lint.Check("other", ("ruff", "--version")),))
    assert lint.main() == 0
    said = capsys.readouterr().out
    assert "lint: actionlint: skipped: there is no Go to build it with" in said
    assert "lint: go vet: skipped: Go isn't installed" in said
    assert "-> install Go" in said
    assert "lint: other: ok" in said


def test_a_built_actionlint_needs_no_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(folder: Path) -> dict[str, str]:
        (folder / "actionlint").touch()
        return {}

    quiet = Progress(quiet=True)
    folder = cached("go", gobuild.ACTIONLINT.key, quiet, make)
    monkeypatch.setattr(gobuild, "_go_commands", list)
    assert lint.workflow_check(quiet).argv[0] == str(folder / "actionlint")
