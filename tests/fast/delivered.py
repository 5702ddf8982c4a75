"""Hosts that get their scripts from the program, as in a run: delivered first, then run by short texts."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from model import delivery, steps
from model.delivery import Delivery
from model.steps import SCRIPTS, Script, Step, step_text
from tests.fast.shell import bash

OWNER = "dev 4fd1"
PROBE = (SCRIPTS / "probe.sh").read_text(encoding="utf-8")

# Tests may run as any user.
_NO_ROOT_CHECK = "is_root() { true; }\n"


class Program:
    """A version of the program with the project's files and scripts of its own.

    Attributes:
        delivery: Its scripts, as hosts get them.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, scripts: Mapping[str, str]) -> None:
        """Create a version, and use it instead of the project until another one is created.

        Args:
            folder: Where its scripts are written.
            patch: Undoes the replacement.
            scripts: The code of each script, which may replace functions of `lib/step.sh`; its name may be
                that of one of the project's scripts, of which it replaces functions.
        """
        shutil.copytree(SCRIPTS, folder)
        for name, code in scripts.items():
            file = folder / f"steps/{name}.sh"
            start = file.read_text(encoding="utf-8") if file.exists() else "source lib/step.sh\n"
            file.write_text(f"{start}\n{_NO_ROOT_CHECK}{code}\n", encoding="utf-8")
        self._scripts = tuple(map(Script, scripts))
        for module in (steps, delivery):
            patch.setattr(module, "SCRIPTS", folder)
        patch.setattr(delivery, "SCRIPTS_ON_HOSTS", self._scripts)
        patch.setattr(steps, "digest", inspect.unwrap(steps.digest))
        self.delivery: Delivery = inspect.unwrap(delivery.delivery)()

    def text(self, values: Mapping[str, str] | None = None, *, deletes: bool = False) -> str:
        """The text of a step that runs all scripts.

        Args:
            values: The step's values.
            deletes: Whether it is a step that only its deletion runs.
        """
        return step_text(Step("step", self._scripts, None if deletes else lambda _: 60), values or {})


def deliver(
    program: Program, root: Path, *, owner: str = OWNER, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Deliver a program's scripts to a host; `before` is code that runs first."""
    text = before + program.delivery.text(owner)
    return bash(text, "deliver", root=root, check=not before, has_home=False)


def probe(root: Path) -> str:
    """The digest of the scripts that the host reports."""
    return bash(PROBE, "probe", root=root, has_home=False).stdout.split()[-1]


def run_step(
    root: Path, text: str, status: int = 0, /, *, verb: str = "create", host: str = "node1"
) -> subprocess.CompletedProcess[str]:
    """Run a step's text on a host, and check its exit status."""
    done = bash(text, verb, "step", host, root=root, check=False, has_home=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done
