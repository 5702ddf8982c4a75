"""Running other programs, with failures that say what failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from lab.requirements import MIRROR, RPM, find

# Debian's package for each program that is used here.
PACKAGES = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "gcc": "gcc libc6-dev",
    **{requirement.what: requirement.package for requirement in (*MIRROR, *RPM)},
}


def need(name: str) -> str:
    """The path of a program that must be there.

    :raises UserError: it isn't; the message names its package.
    """
    path = find(name)
    if path is None:
        raise UserError(f"the program {name} isn't installed", f"apt install {PACKAGES.get(name, name)}")
    return path


# What making a mirror asks for; building it asks for a compiler beside.
_ALWAYS = ("apt-get", *(requirement.what for requirement in MIRROR))
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_C_HEADERS = Path("/usr/include/stdio.h")


def missing_packages(*, building: bool = True) -> tuple[str, ...]:
    """Debian packages that making a mirror needs and that aren't installed; Go is not among them.

    :param building: count what only building needs, too.
    """
    wanted = (*_ALWAYS, "gcc") if building else _ALWAYS
    lacking = [package for name in wanted if find(name) is None for package in PACKAGES[name].split()]
    if not _KEYRING.exists():
        lacking.append("debian-archive-keyring")
    if building and not _C_HEADERS.exists():
        lacking.append("libc6-dev")
    return tuple(dict.fromkeys(lacking))


def check(*, building: bool) -> None:
    """Refuse before a long work begins if a program is missing that its end needs.

    :raises UserError: with every package that is missing.
    """
    packages = missing_packages(building=building)
    if packages:
        raise UserError(
            f"making a mirror needs packages that are not here: {', '.join(packages)}",
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
    """Run a program to its end and return its standard output.

    :param argv: the program and its arguments; paths and the like are turned into text.
    :param what: what is being done, for the message: "signing the package index".
    :param text: its standard input.
    :param environment: variables to set beside those that are there.
    :raises UserError: the program isn't there or fails; with the last lines of what it wrote.
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
        wrote = (done.stdout[-4000:] + done.stderr).decode(errors="replace").splitlines()
        last = "\n".join(wrote[-12:])
        raise UserError(f"{what}: {Path(program).name} failed with status {done.returncode}:\n{last}")
    return done.stdout
