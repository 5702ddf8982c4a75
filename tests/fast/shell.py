"""Runs scripts in a temporary root folder, with the host's tools replaced by shell functions."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from pathlib import Path

from model.pod_network import FLANNEL
from model.steps import CALL, body

# Tests may run as any user.
_NO_ROOT_CHECK = "is_root() { true; }\n"


def home_of(root: Path) -> Path:
    """This program's folder on the host; created if it doesn't exist."""
    home = root / "var/lib/kubeadm-ipvs"
    home.mkdir(parents=True, exist_ok=True)
    return home


def record(root: Path, **files: str) -> Path:
    """Create the record of the host's original state; `packages_added=…` writes its file packages-added.

    The files that are never empty get a line that matters to no test.
    """
    folder = home_of(root) / "record"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", "-")).write_text(text)
    for name in ("packages", "units", "links", "sysctls"):
        if not (folder / name).exists():
            (folder / name).write_text("none\n")
    if not (folder / "files.tar").exists():
        with tarfile.open(folder / "files.tar", "w"):
            pass
    return folder


def put(root: Path, path: str, text: str = "") -> Path:
    """Write a file on the host."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def with_code(script: str, code: str, **values: str) -> str:
    """A script with everything it sources, followed by the test's code, which may replace its functions.

    Args:
        script: Its path in `scripts/`, such as `steps/claim.sh`.
        code: Shell code. Its function `create` runs, or else the script's.
        values: The step's values.
    """
    given = {"POD_NETWORK": FLANNEL.lines, **values}
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items())
    return f'{body(script)}{_NO_ROOT_CHECK}{code}\n{assignments}{CALL}run_step "$1" </dev/null\n'


def bash(
    text: str, *arguments: str, root: Path, check: bool = True, has_home: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a text as sshd would: on standard input, with verb, step and host as arguments.

    Args:
        text: What bash reads.
        arguments: Verb, step and host.
        root: The host's root folder.
        check: Whether a failure is an error.
        has_home: Whether to create this program's folder on the host, which each claimed host has.
    """
    (root / "run").mkdir(exist_ok=True)
    if has_home:
        home_of(root)
    else:
        (root / "var/lib").mkdir(parents=True, exist_ok=True)
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
    """Run a script with the test's code and check its exit status."""
    done = bash(with_code(script, code, **values), verb, "step", "node1", root=root, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    # A successful script must not report failures, as a `grep` without a match could inside a pipeline.
    assert ("FAILED" in done.stderr) == bool(status), done.stderr
    return done


def stdout_of(script: str, code: str, root: Path, /, **values: str) -> str:
    """Run a script with the test's code and return its standard output."""
    return run(script, code, root, **values).stdout
