"""Runs shell code of the scripts as a host would, with the host's tools replaced by the test's own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from model.steps import SCRIPTS


def bash(text: str, *arguments: str, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a text as sshd would: the text on standard input; verb, step and host as arguments."""
    environment = {**os.environ, "KUBEADM_IPVS_HOME": str(home), "KUBEADM_IPVS_LOCK": str(home / "lock")}
    return subprocess.run(
        ["bash", "-s", "--", *(arguments or ("create", "step", "node1"))],
        input=text,
        text=True,
        capture_output=True,
        timeout=60,
        check=check,
        env=environment,
    )


def code(name: str) -> str:
    """A file below `scripts/`, without what it sources."""
    return re.sub(r"^source .*\n", "", (SCRIPTS / name).read_text(), flags=re.MULTILINE)


def with_lib(body: str, **values: str) -> str:
    """The test's own step on top of the real lib/step.sh, without the check for root."""
    lib = code("lib/step.sh").replace("((EUID == 0))", "true")
    assignments = "".join(f"{name}={value}\n" for name, value in values.items())
    return f'{lib}{body}{assignments}STEP=$2 HOST=$3\nrun_step "$1" </dev/null\n'


def redirected(script: str, root: Path) -> str:
    """A script whose files and folders are below a root of the test's own."""
    return re.sub(r"(?<![\w}/.*])/(etc|var|opt|run|usr/libexec)(?=[/ ;])", rf"{root}/\1", script)
