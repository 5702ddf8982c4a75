"""The linters that `make lint` runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common import gobuild
from common.cache import cached
from common.paths import project_dir
from common.progress import Progress
from tools import lint
from tools.__main__ import main


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
def test_shell_scripts_are_recognized(tmp_path: Path, name: str, text: str, shell: bool) -> None:
    (tmp_path / name).write_text(text)
    assert lint.is_shell(tmp_path / name) is shell


def test_new_files_are_included_without_ignored_ones(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/built/\n")
    (tmp_path / "built").mkdir()
    for name in ("new.sh", "built/made.sh"):
        (tmp_path / name).touch()
    assert [path.name for path in lint.project_files(tmp_path)] == [".gitignore", "new.sh"]


def test_projects_shell_scripts_are_checked() -> None:
    checked = [check.argv for check in lint.checks(project_dir()) if check.argv[0] == "shellcheck"]
    scripts = [name for argv in checked for name in argv]
    assert scripts.count(".ci/run") == scripts.count("scripts/steps/verification.sh") == 1


def test_all_checks_run_even_if_one_fails(
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
    assert main(["lint"]) == 1
    output = capsys.readouterr().out
    assert "lint: first: FAILED" in output
    assert "F401" in output
    assert "lint: second: ok" in output


def test_checks_that_need_go_are_skipped_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gobuild, "present_go", lambda needed, progress: None)
    monkeypatch.setattr(lint, "checks", lambda root: (lint.Check("other", ("ruff", "--version")),))
    assert main(["lint"]) == 0
    output = capsys.readouterr().out
    assert "lint: actionlint: skipped: Go, which builds it, isn't installed" in output
    assert "lint: go vet: skipped: Go isn't installed" in output
    assert "-> install Go" in output
    assert "lint: other: ok" in output


def test_cached_actionlint_needs_no_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(folder: Path) -> dict[str, str]:
        (folder / "actionlint").touch()
        return {}

    quiet = Progress(quiet=True)
    folder = cached("go", gobuild.ACTIONLINT.key, quiet, make)
    monkeypatch.setattr(gobuild, "_go_commands", list)
    assert lint.workflow_check(quiet).argv[0] == str(folder / "actionlint")
