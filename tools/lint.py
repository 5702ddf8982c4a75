"""`python -m tools lint`, or `make lint`: static checks of the code.

Runs ruff (linter and formatter), mypy in strict mode, shellcheck, codespell, actionlint for the workflows, go
vet for the lab's network, and GitLab's schema for the example pipeline. All of them run even if one fails.
The exit status is 1 if any fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from common import gobuild, paths
from common.errors import UserError
from common.paths import project_dir
from common.progress import Progress

GITLAB = "docs/examples/gitlab-ci.yml"
LAB_NETWORK = "lab/artefacts/go/lab-network"

_SHELLS = ("sh", "bash", "dash")


@dataclass(frozen=True)
class Check:
    """A program, from the virtual environment or with its full path, and its arguments."""

    name: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """A check's exit status and output."""

    check: Check
    status: int
    output: str
    seconds: float


def project_files(root: Path) -> list[Path]:
    """The files on disk that git tracks or doesn't ignore.

    Raises:
        subprocess.CalledProcessError: The folder isn't a git checkout.
    """
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted({root / name for name in listed.split("\0") if name and (root / name).is_file()})


def is_shell(path: Path) -> bool:
    """Whether a file is a shell script, by its suffix or, without one, by its first line."""
    if path.suffix:
        return path.suffix == ".sh"
    with path.open("rb") as file:
        first = file.readline(128).decode(errors="replace").split()
    # `#!/bin/sh -e`, `#!/usr/bin/env bash`
    return bool(first) and first[0].startswith("#!") and any(Path(word).name in _SHELLS for word in first)


def checks(root: Path) -> tuple[Check, ...]:
    """The checks for this checkout, slowest first."""
    scripts = [str(path.relative_to(root)) for path in project_files(root) if is_shell(path)]
    # Steps include the files that they source, which takes as long as everything else.
    steps = [name for name in scripts if name.startswith("scripts/steps/")]
    others = [name for name in scripts if name not in steps]
    return (
        shellcheck("steps", steps),
        shellcheck("other scripts", others),
        Check("mypy --strict", ("mypy", "--no-error-summary")),
        Check("ruff check", ("ruff", "check", "--quiet", "--force-exclude", ".")),
        Check("ruff format", ("ruff", "format", "--check", "--quiet", ".")),
        Check("codespell", ("codespell",)),
        Check("GitLab's schema", ("check-jsonschema", "--builtin-schema=vendor.gitlab-ci", GITLAB)),
    )


def shellcheck(kind: str, scripts: Sequence[str]) -> Check:
    """shellcheck for some scripts and everything that they source."""
    options = ("--external-sources", "--source-path=scripts")
    return Check(f"shellcheck ({len(scripts)} {kind})", ("shellcheck", *options, *scripts))


def workflow_check(progress: Progress) -> Check:
    """actionlint for the workflows; built if it isn't in the cache.

    Raises:
        UserError: Go isn't installed, or a module can't be downloaded. Lint doesn't install Go.
    """
    target = gobuild.ACTIONLINT
    cached = paths.cache_dir() / "go" / target.key
    if not cached.exists() and gobuild.present_go(target.go_version, progress) is None:
        raise UserError("Go, which builds it, isn't installed", "install Go to run this check too")
    program = gobuild.build(target, progress) / target.name
    # It finds the workflows itself, and checks their scripts with the locked shellcheck.
    shellcheck = Path(sys.executable).parent / "shellcheck"
    return Check(f"actionlint {target.version}", (str(program), "-no-color", f"-shellcheck={shellcheck}"))


def network_check(progress: Progress) -> Check:
    """go vet for the lab's network, the only Go program written for this project.

    Raises:
        UserError: Go isn't installed. Lint doesn't install it.
    """
    module = project_dir() / LAB_NETWORK
    go = gobuild.present_go(gobuild.go_version(module), progress)
    if go is None:
        raise UserError("Go isn't installed", "install Go to run this check too")
    return Check(f"go vet ({module.name})", (str(go.command), "-C", str(module), "vet", "./..."))


def run(check: Check, root: Path) -> Outcome:
    """Run a check in the checkout's root."""
    # The locked version from the virtual environment, not one from PATH.
    program = Path(sys.executable).parent / check.argv[0]
    started = time.monotonic()
    done = subprocess.run(
        [str(program), *check.argv[1:]],
        cwd=root,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Outcome(check, done.returncode, done.stdout, time.monotonic() - started)


@click.command()
def command() -> int:
    """Run all static checks of the code."""
    root = project_dir()
    failed = False
    all_checks = [*checks(root)]
    for name, make in (("actionlint", workflow_check), ("go vet", network_check)):
        try:
            all_checks.append(make(Progress()))
        except UserError as error:
            print(f"lint: {name}: skipped: {error}", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for outcome in pool.map(lambda check: run(check, root), all_checks):
            result = "ok" if outcome.status == 0 else "FAILED"
            print(f"lint: {outcome.check.name}: {result} ({outcome.seconds:.1f}s)", flush=True)
            if outcome.status != 0:
                failed = True
                # ruff format --check --quiet prints nothing.
                print(outcome.output.rstrip() or "some files aren't formatted -> run make format", flush=True)
    return 1 if failed else 0
