"""The committed stack files, and a home directory with the files that they refer to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import yaml

from lab import stackfile
from lab.hardware import Accelerator
from model.settings import PREFIX
from tools import lint

PROJECT = Path(__file__).resolve().parent.parent
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx1BZx8x1Ch1v0mVRy2F1S7ZrYHn3bQJtY4Q5o1V8pK"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
SIGNING_KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks, as paths relative to the checkout."""
    argv = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def copy_checkout(project: Path) -> None:
    """Copy the project's files into a directory, and link this checkout's Python environment."""
    for path in lint.project_files(PROJECT):
        copy = project / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (project / ".venv").symlink_to(PROJECT / ".venv")


def committed() -> list[str]:
    """The names of the stacks with committed files."""
    return [file.name.removeprefix("Pulumi.").removesuffix(".yaml") for file in tracked("Pulumi.*.yaml")]


def written(file: Path) -> dict[str, Any]:
    """The settings in a stack file, without prefixes."""
    config = yaml.safe_load((PROJECT / file).read_text())["config"]
    return {name.removeprefix(PREFIX): value for name, value in config.items()}


def settings_of(stack: str) -> dict[str, Any]:
    """The settings in a stack's own file."""
    return written(Path(f"Pulumi.{stack}.yaml"))


def extended(stack: str) -> list[dict[str, Any]]:
    """The settings that a stack extends; one entry per accelerator if the lab writes them."""
    file = settings_of(stack).get("extends")
    if file is None:
        return []
    if not str(file).startswith("~/"):
        return [written(Path(file))]
    with TemporaryDirectory() as name:
        folder = Path(name)
        variants = []
        for accelerator in get_args(Accelerator):
            stackfile.write_settings(folder, accelerator)
            variants.append(written(folder / stackfile.SETTINGS))
        return variants


def make_home(folder: Path, stack: str) -> None:
    """Create the files in the home directory that a stack's settings refer to; they aren't committed."""
    own = settings_of(stack)
    if str(own.get("extends", "")).startswith("~/"):
        file = folder / str(own["extends"]).removeprefix("~/")
        file.parent.mkdir(parents=True, exist_ok=True)
        stackfile.write_settings(file.parent, "uml")
    for config in (own, *extended(stack)):
        for section, name, text in (
            ("ssh", "privateKeyFile", PRIVATE_KEY),
            ("ssh", "knownHostsFile", "".join(_known_hosts(own))),
            ("packages", "key", SIGNING_KEY),
        ):
            path = str(config.get(section, {}).get(name, ""))
            if path.startswith("~/"):
                file = folder / path.removeprefix("~/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)


def _known_hosts(config: dict[str, Any]) -> Iterator[str]:
    for host in config["hosts"]:
        ssh = {**config.get("ssh", {}), **host.get("ssh", {})}
        address, port = ssh.get("host", host["address"]), ssh.get("port", 22)
        yield f"{address if port == 22 else f'[{address}]:{port}'} {HOST_KEY}\n"
