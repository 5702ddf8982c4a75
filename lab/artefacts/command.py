"""Runs the programs that make a mirror, and names the Debian packages of those that are missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from lab.requirements import MIRROR, RPM, find

# The Debian package of each program used here.
PACKAGES = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "gcc": "gcc libc6-dev",
    **{requirement.what: requirement.package for requirement in (*MIRROR, *RPM)},
}


def need(name: str) -> str:
    """The path of a required program.

    Raises:
        UserError: It isn't installed; the message names its package.
    """
    path = find(name)
    if path is None:
        raise UserError(f"{name} isn't installed", f"apt install {PACKAGES.get(name, name)}")
    return path


# Every mirror needs these; building one also needs a compiler.
_ALWAYS = ("apt-get", *(requirement.what for requirement in MIRROR))
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_C_HEADERS = Path("/usr/include/stdio.h")


def missing_packages(*, building: bool = True) -> tuple[str, ...]:
    """The missing Debian packages that are needed to make a mirror, apart from Go.

    Args:
        building: Include those that only a build from source needs.
    """
    wanted = (*_ALWAYS, "gcc") if building else _ALWAYS
    missing = [package for name in wanted if find(name) is None for package in PACKAGES[name].split()]
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    if building and not _C_HEADERS.exists():
        missing.append("libc6-dev")
    return tuple(dict.fromkeys(missing))


def check(*, building: bool) -> None:
    """Check for missing programs before the long work begins.

    Raises:
        UserError: Packages are missing; the message names all of them.
    """
    packages = missing_packages(building=building)
    if packages:
        raise UserError(
            f"making a mirror needs packages that aren't installed: {', '.join(packages)}",
            f"apt install {' '.join(packages)}",
        )


def run(
    argv: Sequence[object],
    what: str,
    *,
    cwd: Path | None = None,
    text: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program and return its standard output.

    Args:
        argv: The program and its arguments, which are converted to strings.
        what: What the program is run for, such as "signing the package index". Error messages start with it.
        cwd: The working directory.
        text: The standard input.
        environment: Variables to set in addition to the current ones.

    Raises:
        UserError: The program isn't installed or fails; the message includes the end of its output.
    """
    program = need(str(argv[0]))
    done = subprocess.run(
        [program, *(str(part) for part in argv[1:])],
        cwd=cwd,
        input=b"" if text is None else text,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout[-4000:] + done.stderr).decode(errors="replace").splitlines()
        last = "\n".join(output[-12:])
        raise UserError(f"{what}: {Path(program).name} failed with status {done.returncode}:\n{last}")
    return done.stdout
