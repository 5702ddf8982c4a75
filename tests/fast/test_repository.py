"""Files around the code: locks, the Makefile, links between pages, the bootstrap script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.stacks import PROJECT

LOCKS = ("requirements.txt", "requirements-dev.txt", "policy/requirements.txt")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    pins = PINNED.findall((PROJECT / name).read_text())
    return {package.lower().replace("_", "-"): version for package, version in pins}


def declared(requirement: str) -> tuple[str, str]:
    name, _, version = requirement.partition("==")
    return name.lower().replace("_", "-"), version


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_and_no_index(name: str) -> None:
    text = (PROJECT / name).read_text()
    assert "://" not in text, "an index or link would make everyone depend on one mirror"
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE), "pip options belong in the pip command"
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    unhashed = [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert entries
    assert not unhashed


def test_locks_satisfy_pyproject() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    runtime = project["project"]["dependencies"]
    wanted = {
        "requirements.txt": runtime,
        "requirements-dev.txt": [*runtime, *project["dependency-groups"]["dev"]],
    }
    for lock, requirements in wanted.items():
        pins = locked(lock)
        for requirement in requirements:
            name, version = declared(requirement)
            assert name in pins, f"{name} is missing from {lock}: run `make lock`"
            assert not version or pins[name] == version, f"{lock} has a different {name}: run `make lock`"


def test_locks_agree() -> None:
    runtime, dev = locked("requirements.txt"), locked("requirements-dev.txt")
    assert runtime.items() <= dev.items(), "tests and program would run with different versions"


def test_make_targets_on_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    known = {name for group in targets for name in group.split()}
    pages = [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]
    for page in pages:
        for name in re.findall(r"(?:`|^\s*)make ([a-z][a-z-]+)", page.read_text(), re.MULTILINE):
            assert name in known, f"{page.relative_to(PROJECT)} names `make {name}`"


@pytest.mark.parametrize(
    ("target", "program"),
    [
        ("show", "-m tools show"),
        ("timeline", "-m tools timeline"),
        ("check", "-m tools check"),
        ("destroy", "destroy --yes"),
    ],
)
@pytest.mark.parametrize("succeeds", [True, False])
def test_target_runs_only_if_environment_is_complete(
    tmp_path: Path, target: str, program: str, succeeds: bool
) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    stub = f"""#!/bin/sh
echo "$*" >>'{tmp_path}/started'
if [ "$*" = "-m tools env" ]; then
  echo "export PLACE='a  b'"
  exit {0 if succeeds else 1}
fi
[ -z "${{PLACE-}}" ] || echo "$PLACE" >>'{tmp_path}/started'
"""
    for path in (tmp_path / ".venv/bin/python", tmp_path / "bin/pulumi"):
        path.parent.mkdir(parents=True)
        path.write_text(stub)
        path.chmod(0o755)
    done = subprocess.run(
        ["make", target, "PYTHON=true"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    started = (tmp_path / "started").read_text()
    assert "-m tools env" in started
    assert (program in started) == succeeds, started
    assert ("a  b" in started) == succeeds
    assert (done.returncode == 0) == succeeds, done.stderr


def test_links_between_pages_work() -> None:
    for page in [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(PROJECT)} links to {target}"


def test_old_python_is_refused_with_advice(tmp_path: Path) -> None:
    # An interpreter that claims to be old, and no newer one in PATH.
    code = (
        "import runpy, sys\n"
        "sys.version_info = (3, 9, 2, 'final', 0)\n"
        "sys.argv = ['tools/bootstrap.py']\n"
        "runpy.run_path('tools/bootstrap.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Python 3.11 or later is needed; python3 is 3.9" in done.stderr
    assert "install python3.11" in done.stderr
    assert "Traceback" not in done.stderr
