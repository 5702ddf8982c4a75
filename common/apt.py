"""Finds programs on this machine and installs Debian packages with apt-get."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from common.errors import UserError
from common.progress import Progress

# A user's PATH often lacks the sbin folders, but any user can run the programs that are needed from there.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LOCK_SECONDS = 300.0
_LOCK_PAUSE_SECONDS = 3.0


def find(program: str) -> str | None:
    """A program's path, searched for in PATH and the sbin folders; None if it isn't installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def as_root(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` as root.

    Raises:
        UserError: The user isn't root, and sudo isn't installed.
    """
    if os.geteuid() == 0:
        return list(argv)
    sudo = find("sudo")
    if sudo is None:
        raise UserError("installing packages needs root or sudo", f"run as root: {' '.join(argv)}")
    return [sudo, *argv]


def apt_get(progress: Progress, argv: Sequence[str]) -> None:
    """Run apt-get as root, waiting while another program holds apt's locks.

    Args:
        progress: Reports the command and any wait.
        argv: The arguments of apt-get.

    Raises:
        UserError: apt-get fails, or the user can't become root.
    """
    progress.say(f"apt-get {' '.join(argv)}")
    lock = f"DPkg::Lock::Timeout={_LOCK_SECONDS:.0f}"
    variables = ["LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]
    command = as_root(["env", *variables, "apt-get", "-q", "-o", lock, *argv])
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        output = done.stdout + done.stderr
        # The option covers dpkg's lock only; `update` takes a different one and fails at once.
        if "Could not get lock" not in output or time.monotonic() > deadline:
            last = "\n".join(output.splitlines()[-15:])
            raise UserError(
                f"apt-get {' '.join(argv)} failed:\n{last}", "fix the error above and run this again"
            )
        progress.say("another program is using apt; trying again")
        time.sleep(_LOCK_PAUSE_SECONDS)
