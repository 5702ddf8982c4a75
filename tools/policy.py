"""`python -m tools policy`: a stack's preview with the policy pack in `policy/`.

The pack runs in its own Python environment in the cache, created once for each lock file: pulumi-policy needs
an older protobuf than the program (docs/decisions/0016-the-policy-packs-own-environment.md).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from common import cli, paths
from common.errors import UserError
from common.files import locked, write_atomic
from common.progress import Progress
from tools import bootstrap, env, preview, provider_plugins

PACK = paths.project_dir() / "policy"
LOCK = PACK / "requirements.txt"
ANALYZER = "pulumi-analyzer-policy-kubeadm-ipvs"
"""The program that the engine looks for on PATH, named after the runtime in PulumiPolicy.yaml."""

_KIND = "policy"
_STAMP = "complete"


def environment_key(lock: Path = LOCK) -> str:
    """The name of the environment's folder in the cache: a hash of the lock file and of the Python."""
    python_id = f"{sys.version_info[0]}.{sys.version_info[1]} {sys.base_prefix}\n".encode()
    return f"venv-{hashlib.sha256(python_id + lock.read_bytes()).hexdigest()[:16]}"


def python(progress: Progress, lock: Path = LOCK) -> Path:
    """The Python of the pack's environment, which has exactly the locked packages; created if needed.

    Raises:
        UserError: A package can't be installed.
    """
    parent = paths.cache_dir() / _KIND
    key = environment_key(lock)
    folder = parent / key
    program = folder / "bin" / "python"
    if (folder / _STAMP).exists():
        return program
    with locked(parent / f"{key}.lock", progress, f"{_KIND}/{key}"):
        # The stamp is written last; without it, an earlier attempt was interrupted.
        if not (folder / _STAMP).exists():
            with progress.step("creating the policy pack's Python environment"):
                _create(folder, program, lock)
            write_atomic(folder / _STAMP, lock.name + "\n")
    return program


def _create(folder: Path, program: Path, lock: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    for argv in (
        # Our own pip installs into it, so it doesn't need one.
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        [sys.executable, "-m", "pip", "--python", str(program), *bootstrap.install_locked(lock)],
    ):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
            raise UserError(
                f"the policy pack's Python environment can't be created: {last}",
                "make a package index reachable, directly or through pip's configuration, and run this again",
            )


def launcher(interpreter: Path) -> Path:
    """A folder for PATH with nothing but the program that starts the policy pack."""
    # The engine passes its address and the pack's folder, and starts the program in that folder.
    text = f'#!/bin/sh\nexec {shlex.quote(str(interpreter))} -u -m pulumi.policy "$@"\n'
    return provider_plugins.cached_script(_KIND, ANALYZER, text)


def with_pack(variables: dict[str, str], progress: Progress) -> dict[str, str]:
    """Add what `--policy-pack policy` needs to Pulumi's environment variables.

    Raises:
        UserError: The pack's environment can't be created.
    """
    folder = launcher(python(progress))
    return {**variables, "PATH": os.pathsep.join([str(folder), variables["PATH"]])}


def run(name: str, more: Sequence[str], progress: Progress) -> int:
    """Preview the stack with the pack; returns Pulumi's status, which isn't 0 if a mandatory rule is broken.

    Raises:
        UserError: The engine or the pack's environment can't be installed.
    """
    tools = env.toolbox(progress, ask_upstream=True)
    variables = with_pack(env.environment(tools), progress)
    return preview.run(name, ["--policy-pack", str(PACK), *more], tools, variables, progress)


@click.command()
@cli.stack_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF PULUMI PREVIEW]")
def command(stack: str, more: tuple[str, ...]) -> int:
    """Preview a stack and check it with the policy pack."""
    return run(stack, more, Progress())
