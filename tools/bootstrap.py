"""Create `.venv` from the lock: the first step of every make target.

Runs as `python3 tools/bootstrap.py` with the system's Python, and uses only the standard library. A stamp
makes later runs take a few hundredths of a second. It contains the hashes of the lock and of this file and
the interpreter's version, and is written last, so an interrupted or outdated environment is created from
scratch.
"""

# Old interpreters must be able to print the error message below: no newer syntax before `find_python`.
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
    """Print an error and exit with status 1."""
    sys.stderr.write("bootstrap: %s\n  -> %s\n" % (what, next_move))  # noqa: UP031 - for old interpreters
    sys.exit(1)


def find_python() -> None:
    """Continue with a recent enough Python: this one, or the first on PATH."""
    if sys.version_info >= OLDEST:
        return
    for name in NAMES:
        path = shutil.which(name)
        if path:
            os.execv(path, [path, *sys.argv])
    fail(
        "Python 3.11 or later is needed; python3 is %d.%d" % sys.version_info[:2],  # noqa: UP031
        "install python3.11 or later (Debian 12 and Ubuntu 24.04 have it), then run make again",
    )


def say(message: str) -> None:
    """Report progress on standard error."""
    sys.stderr.write(f"[bootstrap] {message}\n")
    sys.stderr.flush()


def fingerprint() -> str:
    """Everything that `.venv` depends on, as one line."""
    digest = hashlib.sha256(LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    # The base interpreter's path is included: a virtual environment links to it.
    return f"{digest} {sys.version_info[0]}.{sys.version_info[1]} {sys.base_prefix}\n"


def is_current() -> bool:
    """Whether `.venv` was created from this lock and its interpreter still works."""
    if not STAMP.is_file() or STAMP.read_text() != fingerprint():
        return False
    probe = [str(VENV / "bin/python"), "-c", "import yaml"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def ensure_ensurepip() -> None:
    """Install Debian's package with `ensurepip` if Python comes without it.

    Exits with instructions if apt, root or sudo are missing.
    """
    if importlib.util.find_spec("ensurepip") is not None:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    command = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    shown = " ".join(["apt-get update &&", *command])
    if shutil.which("apt-get") is None:
        fail(
            f"{sys.executable} has no ensurepip, and there is no apt-get to install it",
            "install your distribution's package for Python virtual environments, then run make again",
        )
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            fail(f"the package {package} is missing", f"run as root: {shown}")
        # Without a terminal sudo can't ask for a password and must fail immediately.
        prefix = ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]
    say(f"installing {package} with apt")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # sudo may drop the variable; --yes still answers apt-get's own questions.
    for argv in ([*prefix, "apt-get", "update", "--quiet"], [*prefix, *command]):
        if subprocess.run(argv, check=False, env=environment, stdin=subprocess.DEVNULL).returncode != 0:
            fail(f"'{' '.join(argv)}' failed (see above)", f"fix the cause, or run as root: {shown}")


def install_locked(lock: Path) -> list[str]:
    """pip's arguments to install exactly the packages of a lock, verified by their hashes."""
    return [
        *("install", "--quiet", "--no-input"),
        # Modules are compiled when they are imported: compiling the thousands of modules in the Kubernetes
        # SDK takes minutes, and only a handful are used.
        *("--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--no-compile"),
        *("--require-hashes", "--requirement", str(lock)),
    ]


def make_environment() -> None:
    """Create `.venv` and install the locked packages."""
    started = time.monotonic()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    say(f"creating .venv with Python {version} and installing {LOCK.name}")
    steps = (
        ([sys.executable, "-m", "venv", "--clear", str(VENV)], "creating the virtual environment"),
        (
            [str(VENV / "bin/python"), "-m", "pip", *install_locked(LOCK)],
            "installing the locked packages",
        ),
    )
    for argv, what in steps:
        if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            fail(
                f"{what} failed (see above): {' '.join(argv)}",
                "check that pip can reach its package index, then run make again",
            )
    partial = STAMP.with_suffix(".partial")
    partial.write_text(fingerprint())
    partial.replace(STAMP)
    say(f"created .venv in {time.monotonic() - started:.0f}s")


def main() -> None:
    """Create `.venv` if it isn't current. Only one run at a time does this."""
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
