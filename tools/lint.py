"""Every check of the code that runs nothing of it: `python -m tools.lint`, or `make lint`.

ruff, ruff's format, mypy in strict mode, shellcheck, actionlint for the workflows, go vet for the lab's
network, and GitLab's own schema for the example. All of them run, whatever one of them finds, so that one
look shows everything; status 1 if any found something.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import paths
from common.errors import UserError
from common.paths import project_dir
from common.progress import Progress
from lab.artefacts import gobuild

GITLAB = "docs/examples/gitlab-ci.yml"

_SHELLS = ("sh", "bash", "dash")


@dataclass(frozen=True)
class Check:
    """One program, of the environment's `bin` or by its whole path, and its arguments."""

    name: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a check printed, and how it ended."""

    check: Check
    status: int
    output: str
    seconds: float


def project_files(root: Path) -> list[Path]:
    """The files that git knows or would take on (not the ignored ones), as they are on disk.

    :raises subprocess.CalledProcessError: the folder is not a git checkout.
    """
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted({root / name for name in listed.split("\0") if name and (root / name).is_file()})


def is_shell(path: Path) -> bool:
    """Whether a file is a shell script: by its name, or else by its first line."""
    if path.suffix:
        return path.suffix == ".sh"
    with path.open("rb") as file:
        first = file.readline(128).decode(errors="replace").split()
    # `#!/bin/sh -e`, `#!/usr/bin/env bash`
    return bool(first) and first[0].startswith("#!") and any(Path(word).name in _SHELLS for word in first)


def checks(root: Path) -> tuple[Check, ...]:
    """The checks of this checkout; the ones that take longest first."""
    scripts = [str(path.relative_to(root)) for path in project_files(root) if is_shell(path)]
    return (
        Check("mypy --strict", ("mypy", "--no-error-summary")),
        Check(f"shellcheck ({len(scripts)} scripts)", ("shellcheck", "--external-sources", *scripts)),
        Check("ruff check", ("ruff", "check", "--quiet", "--force-exclude", ".")),
        Check("ruff format", ("ruff", "format", "--check", "--quiet", ".")),
        Check("GitLab's schema", ("check-jsonschema", "--builtin-schema=vendor.gitlab-ci", GITLAB)),
    )


def workflow_check(progress: Progress) -> Check:
    """actionlint on the workflows; built once, where it isn't in the cache and a Go is here.

    :raises UserError: there is no Go, or the modules can't be had. Nothing is installed for it.
    """
    target = gobuild.ACTIONLINT
    cached = paths.cache_dir() / "go" / target.key
    if not cached.exists() and gobuild.present_go(target.go_version, progress) is None:
        raise UserError("there is no Go to build it with", "install Go, and it is checked too")
    program = gobuild.build(target, progress) / target.name
    # Its shell scripts by the locked shellcheck; it finds the workflows by itself.
    shellcheck = Path(sys.executable).parent / "shellcheck"
    return Check(f"actionlint {target.version}", (str(program), "-no-color", f"-shellcheck={shellcheck}"))


def network_check(progress: Progress) -> Check:
    """go vet on the lab's network, the one Go program that is this project's own.

    :raises UserError: Go isn't installed. Lint doesn't install it.
    """
    target = gobuild.LAB_NETWORK
    go = gobuild.present_go(target.go_version, progress)
    if go is None:
        raise UserError("Go isn't installed", "install Go to check it too")
    return Check(f"go vet ({target.name})", (str(go.command), "-C", str(target.wrapper), "vet", "./..."))


def run(check: Check, root: Path) -> Outcome:
    """Run one check in the checkout's root."""
    # Beside the interpreter, and not from PATH: the locked versions decide.
    program = Path(sys.executable).parent / check.argv[0]
    begun = time.monotonic()
    done = subprocess.run(
        [str(program), *check.argv[1:]],
        cwd=root,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Outcome(check, done.returncode, done.stdout, time.monotonic() - begun)


def main() -> int:
    """Run the checks side by side and print what they found."""
    root = project_dir()
    failed = False
    found = [*checks(root)]
    for name, make in (("actionlint", workflow_check), ("go vet", network_check)):
        try:
            found.append(make(Progress()))
        except UserError as trouble:
            print(f"lint: {name}: skipped: {trouble}", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for outcome in pool.map(lambda check: run(check, root), found):
            verdict = "ok" if outcome.status == 0 else "FAILED"
            print(f"lint: {outcome.check.name}: {verdict} ({outcome.seconds:.1f}s)", flush=True)
            if outcome.status != 0:
                failed = True
                # ruff format --check --quiet names no files, only its status.
                print(outcome.output.rstrip() or "some files aren't formatted -> make format", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
