"""Where the project keeps files outside the checkout. No other module computes these paths.

The cache can be deleted at any time; everything in it is downloaded or built again. The state can't:
it holds the labs' keys and disks, and Pulumi's file backend with its passphrase.
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
    # The XDG specification: ignore a value that is unset, empty or relative.
    value = os.environ.get(variable, "")
    return Path(value) if Path(value).is_absolute() else Path.home() / fallback


def project_dir() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """The folder for builds and downloads, created if needed; safe to delete at any time."""
    folder = _base("XDG_CACHE_HOME", ".cache") / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def state_dir() -> Path:
    """The folder for labs, Pulumi's file backend and its passphrase; created with mode 700 if needed."""
    folder = _base("XDG_STATE_HOME", ".local/state") / PROJECT
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def labs_dir() -> Path:
    """The folder that has one subfolder per lab; created if needed."""
    folder = state_dir() / "labs"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def lab_dir(name: str = DEFAULT_LAB) -> Path:
    """The folder of one lab, which exists only while the lab does.

    Raises:
        UserError: The name isn't a valid lab name.
    """
    if not _LAB_NAME.fullmatch(name):
        raise UserError(
            f"'{name}' is not a valid lab name",
            "use lower-case letters, digits and inner hyphens, at most 32 characters",
        )
    return labs_dir() / name


def lab_command(words: str, name: str = DEFAULT_LAB) -> str:
    """A `.venv/bin/python -m lab` command line for one lab, to suggest in error messages.

    Args:
        words: The subcommand with its arguments, such as `up`.
        name: The lab.
    """
    return f".venv/bin/python -m lab {words}" + ("" if name == DEFAULT_LAB else f" --name {name}")


def stack_name(name: str = DEFAULT_LAB) -> str:
    """The name of a lab's Pulumi stack: `dev` for the default lab, else `lab-<name>`."""
    return "dev" if name == DEFAULT_LAB else f"lab-{name}"


def stack_file(name: str = DEFAULT_LAB) -> Path:
    """The configuration file of a lab's stack, in the project's root."""
    return project_dir() / f"Pulumi.{stack_name(name)}.yaml"


def unqualified(stack: str) -> str:
    """The last part of a stack's name: `prod` of `org/project/prod`, with the file `Pulumi.prod.yaml`."""
    return stack.rpartition("/")[2]
