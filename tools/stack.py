"""Stacks in the local backend, and the one line that Pulumi wants in a stack's file.

A passphrase stack keeps its salt as `encryptionsalt` in `Pulumi.<stack>.yaml`, and Pulumi
writes that file anew, without its comments, when it makes a stack. Here the file is
committed. So the stack is made from an empty folder, the salt is added as a line, and a
filter of git's leaves that line out of what git sees: the checkout stays clean.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import paths, processes
from common.errors import UserError
from common.progress import Progress
from tools import env
from tools.env import Toolbox

FILTER = "pulumi-salt"
_CLEAN = "sed /^encryptionsalt:/d"  # git runs it by sh
_SALT = re.compile(r"^encryptionsalt: *(\S+) *$", re.MULTILINE)
_PROJECT = re.compile(r"^name: *(\S+) *$", re.MULTILINE)
# What Pulumi writes into the file of a stack, by which the stack's state is read.
_OPENS_STATE = re.compile(r"^(encryptionsalt|encryptedkey|secretsprovider): ")
_OF_A_LAB = re.compile(r"dev|lab-.+")


def ensure(
    name: str, tools: Toolbox, progress: Progress, project: Path | None = None, *, make: bool = True
) -> None:
    """Make the stack if it isn't there, put its salt into its file, and select it.

    :param name: the stack; `Pulumi.<name>.yaml` is made if it isn't there.
    :param project: the folder of Pulumi.yaml; this checkout's if none is given.
    :param make: else a stack that isn't there is refused.
    :raises UserError: Pulumi refuses, the file holds secrets of another state, or the stack is none of a lab
        and its state is elsewhere.
    """
    project = project or paths.project_dir()
    file = project / f"Pulumi.{name}.yaml"
    variables = env.environment(tools)
    state = _state(project, name)
    _refuse_elsewhere(name, file, state)
    if state is None:
        if not make:
            raise UserError(
                f"this project's own state has no stack {name}",
                f"where its state is elsewhere, run plain pulumi: `pulumi destroy --stack {name}`",
            )
        with progress.step(f"making the stack {name} in this project's own state"):
            salt = _make(project, name, file, tools, variables)
    else:
        salt = state.salt
    install_filter(project)
    write_salt(file, salt)
    _refresh(file)
    unlock(name, tools, progress, project)
    _pulumi(tools, ["stack", "select", name], project, variables)


@contextlib.contextmanager
def for_preview(
    name: str, tools: Toolbox, variables: dict[str, str], progress: Progress, project: Path | None = None
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """What a preview of the stack is run with: the environment, and arguments for Pulumi.

    A lab's stack is made where it isn't there, as by `ensure`. Of any other the state may be elsewhere,
    where its file doesn't tell so: one that this project's own state doesn't hold is made in a state that
    ends with this, from a copy of the file, and nothing of it is written into the checkout.

    :param variables: the environment for Pulumi.
    :raises UserError: as `ensure`; or there is no such file.
    """
    project = project or paths.project_dir()
    file = project / f"Pulumi.{name}.yaml"
    if _OF_A_LAB.fullmatch(name) or _state(project, name) is not None:
        ensure(name, tools, progress, project)
        yield variables, []
        return
    if not file.exists():
        raise UserError(f"there is no stack {name}: {file} isn't there", "write it (docs/own-machines.md)")
    _refuse_elsewhere(name, file, None)
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-preview-") as folder:
        copy, state = Path(folder) / file.name, Path(folder) / "state"
        state.mkdir()
        shutil.copy(file, copy)
        shutil.copy(project / "Pulumi.yaml", folder)
        alone = {**variables, "PULUMI_BACKEND_URL": f"file://{state}"}
        progress.say(f"this project's own state has no stack {name}: previewing it as a new cluster")
        _init(name, tools, Path(folder), alone)
        yield alone, ["--config-file", str(copy)]


def unlock(name: str, tools: Toolbox, progress: Progress, project: Path | None = None) -> None:
    """Take away the lock that a run on this machine left when it was killed.

    A lock whose process is alive, or that is another machine's, stays: Pulumi refuses by it.

    :raises UserError: Pulumi can't take it away.
    """
    project = project or paths.project_dir()
    locks = _locks(name, project)
    if locks and all(lock.abandoned for lock in locks):
        progress.say(f"the stack {name} is locked by a run that was killed: unlocking it")
        _pulumi(tools, ["cancel", "--yes", "--stack", name], project, env.environment(tools))


def clear_pending_creates(name: str, tools: Toolbox, progress: Progress, project: Path | None = None) -> None:
    """After an `up` that ended well: forget what an earlier one was killed in the middle of creating.

    The state keeps each such create for good, and Pulumi warns of it at every run, also once the resource
    is there. Where one isn't there all of them stay: the refresh that clears them asks of no single one.

    :raises UserError: Pulumi can't clear them.
    """
    project = project or paths.project_dir()
    state = _state(project, name)
    if state and state.interrupted and state.interrupted <= state.there:
        clear = ["refresh", "--clear-pending-creates", "--yes", "--skip-preview", "--stack", name]
        # Asks of these alone: the rest of the stack isn't what was interrupted.
        of = [word for urn in sorted(state.interrupted) for word in ("--target", urn)]
        with progress.step("clearing what a killed run had begun, and this one has finished"):
            _pulumi(tools, [*clear, *of], project, env.environment(tools))


def refuse_if_busy(name: str, project: Path | None = None) -> None:
    """Ask, before anything is done for it, whether another run is changing the stack.

    Pulumi would refuse too, in the words of its lock, and only after the lab has been looked after.

    :raises UserError: it is, or was when another machine's run last wrote.
    """
    for lock in _locks(name, project or paths.project_dir()):
        if not lock.abandoned:
            raise UserError(
                f"the stack {name} is being changed by another run: process {lock.process} on {lock.machine}",
                f"wait for its end; if that run is dead, `pulumi cancel --stack {name}` takes its lock away",
            )


@dataclass(frozen=True)
class _Lock:
    """What a run writes into the backend before it begins, and takes away when it ends."""

    process: str
    machine: str

    @property
    def abandoned(self) -> bool:
        return (
            self.machine == socket.gethostname()
            and self.process.isdigit()
            and not processes.alive(int(self.process))
        )


def _locks(name: str, project: Path) -> list[_Lock]:
    folder = env.backend_dir() / ".pulumi" / "locks"
    return [_read_lock(file) for file in sorted(folder.glob(f"*/{_project_name(project)}/{name}/*.json"))]


def _read_lock(file: Path) -> _Lock:
    try:
        held = json.loads(file.read_text())
        return _Lock(str(held["pid"]), str(held["hostname"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Lock("unknown", f"an unknown machine (see {file})")


def install_filter(project: Path) -> bool:
    """Set up git's filter in the checkout's own configuration; whether it is set up afterwards.

    Outside a checkout, or without git, there is nothing to keep clean.
    """
    if shutil.which("git") is None:
        return False
    inside = subprocess.run(
        ["git", "rev-parse", "--is-inside-work-tree"], cwd=project, capture_output=True, text=True
    )
    if inside.stdout.strip() != "true":
        return False
    key = f"filter.{FILTER}.clean"
    current = subprocess.run(["git", "config", "--local", key], cwd=project, capture_output=True, text=True)
    if current.stdout.strip() != _CLEAN:
        done = subprocess.run(
            ["git", "config", "--local", key, _CLEAN], cwd=project, capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"git config {key}: {done.stderr.strip()}")
    return True


def salt_in(text: str) -> str | None:
    """The salt in a stack file's text."""
    found = _SALT.search(text)
    return found.group(1) if found else None


def write_salt(file: Path, salt: str) -> None:
    """Make `salt` the stack file's only one, at its end; everything else stays byte by byte.

    :raises UserError: the file has another salt and secrets encrypted with it.
    """
    text = file.read_text() if file.exists() else ""
    present = salt_in(text)
    if present == salt:
        return
    if present is not None and re.search(r"^\s+secure: ", text, re.MULTILINE):
        raise UserError(
            f"{file} holds secrets that were encrypted with another state's salt",
            "bring back that state and its passphrase, or remove the secrets and the line 'encryptionsalt'",
        )
    kept = "".join(line for line in text.splitlines(keepends=True) if not _SALT.match(line))
    if kept and not kept.endswith("\n"):
        kept += "\n"
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(f"{kept}encryptionsalt: {salt}\n")
    partial.replace(file)


def _refuse_elsewhere(name: str, file: Path, state: _State | None) -> None:
    # The salt of a lab's stack may be exchanged: it is of this machine, and git doesn't see it. Of any other
    # it is committed, and with another one its owner's Pulumi calls the passphrase wrong.
    if _OF_A_LAB.fullmatch(name) or not file.exists():
        return
    own = state and f"encryptionsalt: {state.salt}"
    for line in file.read_text().splitlines():
        if _OPENS_STATE.match(line) and line != own:
            raise UserError(
                f"{file.name} is of a stack whose state isn't this project's own (see its last lines)",
                "run plain pulumi where that state is (docs/reviewing.md, By hand); "
                f"if that state is gone, take the line '{line.partition(':')[0]}' out",
            )


def _refresh(file: Path) -> None:
    # git compares sizes before it runs a filter, and calls a file modified that is longer
    # than at the last `git add`. Where only the salt was added, adding the file again
    # changes nothing but that remembered size. A person's own edits are left alone.
    if shutil.which("git") is None:
        return
    same = subprocess.run(["git", "diff", "--quiet", "--", file.name], cwd=file.parent, capture_output=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--error-unmatch", "--", file.name], cwd=file.parent, capture_output=True
    )
    if same.returncode == 0 and tracked.returncode == 0:
        # Where another git holds the index, status shows the file until the next run: no harm.
        subprocess.run(["git", "add", "--", file.name], cwd=file.parent, capture_output=True)


@dataclass(frozen=True)
class _State:
    """What the local backend stores of a stack.

    Attributes:
        there: The resources, by URN.
        interrupted: Those that a killed run was creating. Of the other kinds of interrupted operations the
            engine keeps none from one run to the next.
    """

    salt: str
    there: set[str]
    interrupted: set[str]


def _state(project: Path, name: str) -> _State | None:
    checkpoint = env.backend_dir() / ".pulumi" / "stacks" / _project_name(project) / f"{name}.json"
    if not checkpoint.exists():
        return None
    try:
        latest = json.loads(checkpoint.read_text())["checkpoint"]["latest"]
        return _State(
            str(latest["secrets_providers"]["state"]["salt"]),
            {resource["urn"] for resource in latest.get("resources") or []},
            {operation["resource"]["urn"] for operation in latest.get("pending_operations") or []},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint} isn't the state of a stack with a passphrase",
            f"if nothing of the stack '{name}' is left, `pulumi stack rm {name} --force` removes it",
        ) from error


def _make(project: Path, name: str, file: Path, tools: Toolbox, variables: dict[str, str]) -> str:
    text = file.read_text() if file.exists() else ""
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-stack-") as folder:
        elsewhere = Path(folder)
        shutil.copy(project / "Pulumi.yaml", elsewhere)
        written = elsewhere / file.name
        present = salt_in(text)
        if present is not None and re.search(r"^\s+secure: ", text, re.MULTILINE):
            # Secrets in the file: the new stack must keep the salt, and the passphrase must fit it.
            written.write_text(f"encryptionsalt: {present}\n")
        _init(name, tools, elsewhere, variables)
        salt = salt_in(written.read_text())
    if salt is None:
        raise UserError(
            f"Pulumi made the stack {name} without a salt", "is PULUMI_BACKEND_URL a local file backend?"
        )
    return salt


def _init(name: str, tools: Toolbox, folder: Path, variables: dict[str, str]) -> None:
    """Have Pulumi make a stack; it writes the stack's file in the folder anew."""
    _pulumi(
        tools, ["stack", "init", name, "--secrets-provider", "passphrase", "--no-select"], folder, variables
    )


def _project_name(project: Path) -> str:
    found = _PROJECT.search((project / "Pulumi.yaml").read_text())
    if not found:
        raise UserError(f"{project / 'Pulumi.yaml'} has no name")
    return found.group(1)


def _pulumi(tools: Toolbox, arguments: list[str], folder: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [str(tools.pulumi.path), *arguments, "--non-interactive"],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"pulumi {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
