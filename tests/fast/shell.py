"""Runs the scripts below a temporary root folder, with the host's tools replaced by shell functions."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from model.pod_network import FLANNEL
from model.steps import body

# Tests may run as any user.
_NO_ROOT_CHECK = "is_root() { true; }\n"


def home_of(root: Path) -> Path:
    """The folder that this program has on a host; created if it doesn't exist."""
    home = root / "var/lib/kubeadm-ipvs"
    home.mkdir(parents=True, exist_ok=True)
    return home


def record(root: Path, **files: str) -> Path:
    """Creates the record of a host's original state; `packages_added=…` writes its file packages-added."""
    folder = home_of(root) / "record"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", "-")).write_text(text)
    return folder


def put(root: Path, path: str, text: str = "") -> Path:
    """Writes a file of the host."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def with_code(script: str, code: str, **values: str) -> str:
    """A script with everything it sources, then the test's code, which may replace any of its functions.

    Args:
        script: Its file below `scripts/`: `steps/claim.sh`, `lib/reset/files.sh`.
        code: Shell code; the text calls its function `create`, or the script's own.
        values: The step's values.
    """
    given = {"POD_NETWORK": FLANNEL.lines, **values}
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items())
    return f'{body(script)}{_NO_ROOT_CHECK}{code}\n{assignments}STEP=$2 HOST=$3\nrun_step "$1" </dev/null\n'


def bash(text: str, *arguments: str, root: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a text as sshd would: on standard input, with verb, step and host as arguments."""
    (root / "run").mkdir(exist_ok=True)
    home_of(root)
    return subprocess.run(
        ["bash", "-s", "--", *(arguments or ("create", "step", "node1"))],
        input=text,
        text=True,
        capture_output=True,
        timeout=60,
        check=check,
        env={**os.environ, "KUBEADM_IPVS_ROOT": str(root)},
    )


def run(
    script: str, code: str, root: Path, status: int = 0, /, *, verb: str = "create", **values: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with the test's code and checks its exit status."""
    done = bash(with_code(script, code, **values), verb, "step", "node1", root=root, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    # A pipeline with a part that finds nothing must not print a failure either.
    assert ("FAILED" in done.stderr) == bool(status), done.stderr
    return done


def part(script: str, code: str, root: Path, /, **values: str) -> str:
    """The standard output of a script with the test's code."""
    return run(script, code, root, **values).stdout
