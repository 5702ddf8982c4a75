"""`python -m tools.policy`: a stack's preview with the policy pack of `policy/`.

The pack runs in an environment of its own in the cache, made once for each lock: pulumi-policy needs an older
protobuf than the program (docs/decisions/0016-the-policy-packs-own-environment.md).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import paths
from common.errors import UserError
from common.files import locked, write_atomic
from common.progress import Progress
from tools import bootstrap, env, preview
from tools.plugins import install

PACK = paths.project_dir() / "policy"
LOCK = PACK / "requirements.txt"
ANALYZER = "pulumi-analyzer-policy-kubeadm-ipvs"
"""What the engine looks for on PATH, by the runtime that PulumiPolicy.yaml names."""

_KIND = "policy"
_STAMP = "complete"


def environment_key(lock: Path = LOCK) -> str:
    """The name of the environment's folder in the cache: the lock's hash and the Python that it links to."""
    about = f"{sys.version_info[0]}.{sys.version_info[1]} {sys.base_prefix}\n".encode()
    return f"venv-{hashlib.sha256(about + lock.read_bytes()).hexdigest()[:16]}"


def python(progress: Progress, lock: Path = LOCK) -> Path:
    """The pack's Python, with exactly what the lock holds; the environment is made if it isn't there.

    :raises UserError: a package can't be had.
    """
    parent = paths.cache_dir() / _KIND
    key = environment_key(lock)
    folder = parent / key
    program = folder / "bin" / "python"
    if (folder / _STAMP).exists():
        return program
    with locked(parent / f"{key}.lock", progress, f"{_KIND}/{key}"):
        # Written last: without it the folder is an interrupted attempt's, or none.
        if not (folder / _STAMP).exists():
            with progress.step("making the policy pack's Python environment"):
                _make(folder, program, lock)
            write_atomic(folder / _STAMP, lock.name + "\n")
    return program


def _make(folder: Path, program: Path, lock: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    for argv in (
        # This Python's own pip installs into it: one less to unpack.
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        [sys.executable, "-m", "pip", "--python", str(program), *bootstrap.install_locked(lock)],
    ):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
            raise UserError(
                f"the policy pack's environment can't be made: {last}",
                "a package index must be reachable, directly or as pip's configuration names it; "
                "the next run begins it again",
            )


def launcher(interpreter: Path) -> Path:
    """The folder that holds only the program that the engine starts a pack of this project by."""
    # The engine hands over its address and the pack's folder, in which it starts this.
    text = f'#!/bin/sh\nexec {shlex.quote(str(interpreter))} -u -m pulumi.policy "$@"\n'
    return install.placed(_KIND, ANALYZER, text)


def with_pack(variables: dict[str, str], progress: Progress) -> dict[str, str]:
    """The environment for Pulumi, with what it needs for `--policy-pack policy`.

    :raises UserError: the pack's environment can't be made.
    """
    folder = launcher(python(progress))
    return {**variables, "PATH": os.pathsep.join([str(folder), variables["PATH"]])}


def judge(name: str, more: Sequence[str], progress: Progress) -> int:
    """Preview the stack with the pack; Pulumi's status, which a mandatory rule's violation makes 1 or more.

    :raises UserError: the engine or the pack's environment can't be had.
    """
    tools = env.toolbox(progress, ask_upstream=True)
    variables = with_pack(env.environment(tools), progress)
    return preview.run(name, ["--policy-pack", str(PACK), *more], tools, variables, progress)


def main(arguments: list[str] | None = None) -> int:
    """Run the preview; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.policy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--stack", required=True)
    parser.add_argument("more", nargs="*", help="arguments for pulumi preview, after --")
    chosen = parser.parse_args(arguments)
    try:
        return judge(chosen.stack, chosen.more, Progress())
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
