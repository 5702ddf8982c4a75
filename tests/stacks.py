"""The committed stack files, and a home with the files that they name."""

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

PROJECT = Path(__file__).resolve().parent.parent
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx1BZx8x1Ch1v0mVRy2F1S7ZrYHn3bQJtY4Q5o1V8pK"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
SIGNING_KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"


def tracked(*patterns: str) -> list[Path]:
    """The files that git knows, by their paths in the checkout."""
    argv = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def copy_checkout(project: Path) -> None:
    """Put the committed files into a folder, with this checkout's Python environment."""
    for file in tracked():
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / file, project / file)
    (project / ".venv").symlink_to(PROJECT / ".venv")


def committed() -> list[str]:
    """The names of the stacks whose files are committed."""
    return [file.name.removeprefix("Pulumi.").removesuffix(".yaml") for file in tracked("Pulumi.*.yaml")]


def written(file: Path) -> dict[str, Any]:
    """What a stack file says, without prefixes."""
    config = yaml.safe_load((PROJECT / file).read_text())["config"]
    return {name.removeprefix(PREFIX): value for name, value in config.items()}


def settings_of(stack: str) -> dict[str, Any]:
    """What a stack's own file says."""
    return written(Path(f"Pulumi.{stack}.yaml"))


def extended(stack: str) -> list[dict[str, Any]]:
    """What the file says that a stack extends; what it may say, where the lab writes it."""
    file = settings_of(stack).get("extends")
    if file is None:
        return []
    if not str(file).startswith("~/"):
        return [written(Path(file))]
    with TemporaryDirectory() as name:
        folder = Path(name)
        said = []
        for accelerator in get_args(Accelerator):
            stackfile.write_settings(folder, accelerator)
            said.append(written(folder / stackfile.SETTINGS))
        return said


def make_home(folder: Path, stack: str) -> None:
    """Put the files there that a stack's settings name in a person's home: none of them is committed."""
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
        way = {**config.get("ssh", {}), **host.get("ssh", {})}
        address, port = way.get("host", host["address"]), way.get("port", 22)
        yield f"{address if port == 22 else f'[{address}]:{port}'} {HOST_KEY}\n"
