"""Where this project keeps things outside the checkout: the one place that computes it.

The cache may be deleted at any time: everything in it is made again. The state may not:
it holds the labs' keys and disks, Pulumi's file backend and its passphrase.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from common.errors import UserError

PROJECT = "kubeadm-ipvs"
DEFAULT_LAB = "default"

_LAB_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def _base(variable: str, fallback: str) -> Path:
    # The XDG specification: an unset, empty or relative value is ignored.
    value = os.environ.get(variable, "")
    return Path(value) if Path(value).is_absolute() else Path.home() / fallback


def project_dir() -> Path:
    """The checkout's root folder."""
    return Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """What was built or downloaded; safe to delete at any time. Made if it isn't there."""
    folder = _base("XDG_CACHE_HOME", ".cache") / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def state_dir() -> Path:
    """What must be kept: labs, Pulumi's file backend, the passphrase. Made, for the owner only."""
    folder = _base("XDG_STATE_HOME", ".local/state") / PROJECT
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def labs_dir() -> Path:
    """The folder that holds a folder for each lab. Made if it isn't there."""
    folder = state_dir() / "labs"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def lab_dir(name: str = DEFAULT_LAB) -> Path:
    """The folder of one lab; it exists only while the lab does.

    :raises UserError: the name can't be a lab's name.
    """
    if not _LAB_NAME.fullmatch(name):
        raise UserError(
            f"'{name}' can't name a lab", "use small letters, digits and hyphens, 32 characters at most"
        )
    return labs_dir() / name


def lab_command(words: str, name: str = DEFAULT_LAB) -> str:
    """The command line that does something with one lab, for advice: never with another than is spoken of.

    :param words: such as `up`.
    """
    return f"python3 -m lab {words}" + ("" if name == DEFAULT_LAB else f" --name {name}")


def stack_name(name: str = DEFAULT_LAB) -> str:
    """The Pulumi stack that belongs to a lab: `dev` for the default one, else `lab-<name>`."""
    return "dev" if name == DEFAULT_LAB else f"lab-{name}"


def stack_file(name: str = DEFAULT_LAB) -> Path:
    """The configuration of that stack, in the project's folder."""
    return project_dir() / f"Pulumi.{stack_name(name)}.yaml"
