"""Make `.venv` from the lock, on a machine that has nothing but Python: the first step of make.

Started with the system's Python as `python3 tools/bootstrap.py`; uses the standard library
only. A second run finds the stamp and takes a few hundredths of a second. The stamp holds
the hashes of the lock and of this file and the interpreter's version, and is written last: an
interrupted or outdated environment is made again from nothing.
"""

# Old interpreters must get as far as the message below: no newer syntax before `find_python`.
from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
LOCK = PROJECT / "requirements-dev.txt"
STAMP = VENV / "lock.sha256"
OLDEST = (3, 11)
NAMES = ("python3.11", "python3.12", "python3.13", "python3.14")


def fail(what: str, next_move: str) -> None:
    """Print one message and end with status 1."""
    sys.stderr.write("bootstrap: %s\n  -> %s\n" % (what, next_move))  # noqa: UP031 - see the top
    sys.exit(1)


def find_python() -> None:
    """Go on under a recent enough Python: this one, or the first that PATH has."""
    if sys.version_info >= OLDEST:
        return
    for name in NAMES:
        path = shutil.which(name)
        if path:
            os.execv(path, [path, *sys.argv])
    fail(
        "Python 3.11 or later is needed, and python3 is %d.%d" % sys.version_info[:2],  # noqa: UP031
        "install python3.11 or later (Debian 12 and Ubuntu 24.04 have one), then run make again",
    )


def say(message: str) -> None:
    """Show progress, on standard error as all of this project's progress."""
    sys.stderr.write(f"[bootstrap] {message}\n")
    sys.stderr.flush()


def fingerprint() -> str:
    """What `.venv` depends on, as one line."""
    digest = hashlib.sha256(LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    # The base interpreter's path: a virtual environment dies with the Python that it links to.
    return f"{digest} {sys.version_info[0]}.{sys.version_info[1]} {sys.base_prefix}\n"


def is_current() -> bool:
    """Whether `.venv` was completed from this lock, and its interpreter still starts."""
    if not STAMP.is_file() or STAMP.read_text() != fingerprint():
        return False
    probe = [str(VENV / "bin/python"), "-c", "import yaml"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def ensure_ensurepip() -> None:
    """Install Debian's package of `ensurepip` where it was split from Python.

    Exits with what to do where apt, root or sudo are missing.
    """
    if importlib.util.find_spec("ensurepip") is not None:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    command = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    shown = " ".join(["apt-get update &&", *command])
    if shutil.which("apt-get") is None:
        fail(
            f"the Python {sys.executable} has no ensurepip, and apt-get isn't here to install it",
            "install your distribution's package for Python virtual environments, then run make again",
        )
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            fail(f"the package {package} is missing", f"run as root: {shown}")
        # Without a terminal sudo could ask nobody: it must fail at once instead.
        prefix = ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]
    say(f"installing {package} with apt")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # sudo drops the environment; apt-get's own questions are answered by --yes.
    for argv in ([*prefix, "apt-get", "update", "--quiet"], [*prefix, *command]):
        if subprocess.run(argv, check=False, env=environment, stdin=subprocess.DEVNULL).returncode != 0:
            fail(f"'{' '.join(argv)}' failed (its messages are above)", f"mend that, or run as root: {shown}")


def install_locked(lock: Path) -> list[str]:
    """pip's words for installing exactly what a lock holds, each file checked by its hash."""
    return [
        *("install", "--quiet", "--no-input"),
        # Compiled at the first import instead: the Kubernetes SDK has thousands of modules
        # of which a handful is used, and compiling all of them takes minutes.
        *("--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--no-compile"),
        *("--require-hashes", "--requirement", str(lock)),
    ]


def make_environment() -> None:
    """Make `.venv` and install exactly what the lock holds, each file checked by its hash."""
    begun = time.monotonic()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    say(f"making .venv with Python {version} and installing {LOCK.name}")
    steps = (
        ([sys.executable, "-m", "venv", "--clear", str(VENV)], "making the virtual environment"),
        (
            [str(VENV / "bin/python"), "-m", "pip", *install_locked(LOCK)],
            "installing the locked packages",
        ),
    )
    for argv, what in steps:
        if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            fail(
                f"{what} failed (messages are above): {' '.join(argv)}",
                "a package index must be reachable, directly or as pip's configuration names it;"
                " the next make begins this step again",
            )
    partial = STAMP.with_suffix(".partial")
    partial.write_text(fingerprint())
    partial.replace(STAMP)
    say(f"made .venv in {time.monotonic() - begun:.0f}s")


def main() -> None:
    """Make `.venv` if there is none for this lock; two runs at once wait for each other."""
    find_python()
    if is_current():
        return
    folder = os.open(PROJECT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not is_current():
            ensure_ensurepip()
            make_environment()
    finally:
        os.close(folder)


if __name__ == "__main__":
    main()
