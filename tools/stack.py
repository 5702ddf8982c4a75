"""Manages stacks in the local backend, and the one line that Pulumi needs in a stack's file.

A stack with a passphrase keeps its salt as `encryptionsalt` in `Pulumi.<stack>.yaml`. Pulumi rewrites that
file without its comments when it creates a stack, but here the file is committed. So the stack is created in
an empty folder, the salt is added as a line, and a git filter hides that line: the checkout stays clean.
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
_CLEAN = "sed /^encryptionsalt:/d"  # git runs it with sh
_SALT = re.compile(r"^encryptionsalt: *(\S+) *$", re.MULTILINE)
_PROJECT = re.compile(r"^name: *(\S+) *$", re.MULTILINE)
# Lines that Pulumi writes into a stack's file and needs to decrypt the state.
_ENCRYPTION = re.compile(r"^(encryptionsalt|encryptedkey|secretsprovider): ")
_ORGANIZATION = "organization"  # the only one in a local backend
_LAB_STACK = re.compile(r"dev|lab-.+")


def ensure(
    name: str, tools: Toolbox, progress: Progress, project: Path | None = None, *, make: bool = True
) -> None:
    """Create the stack if it doesn't exist, put its salt into its file, and select it.

    Args:
        name: The stack; `Pulumi.<name>.yaml` is created if it doesn't exist.
        tools: The programs to use.
        progress: Where progress is reported.
        project: The folder of Pulumi.yaml; by default this checkout.
        make: Create a missing stack. Otherwise it is an error.

    Raises:
        UserError: Pulumi refuses, the file contains secrets of another state, the stack's state is in another
            backend, or the stack doesn't exist and isn't to be created.
    """
    project = project or paths.project_dir()
    name = _local_name(name, project)
    file = project / f"Pulumi.{name}.yaml"
    variables = env.environment(tools)
    state = _state(project, name)
    _refuse_other_backend(name, file, state)
    if state is None:
        if not make:
            raise UserError(
                f"this project's local backend has no stack {name}",
                f"if its state is in another backend, run plain pulumi: `pulumi destroy --stack {name}`",
            )
        with progress.step(f"creating the stack {name} in this project's local backend"):
            salt = _create(project, name, file, tools, variables)
    else:
        salt = state.salt
    install_filter(project)
    write_salt(file, salt)
    _refresh_index(file)
    unlock(name, tools, progress, project)
    _pulumi(tools, ["stack", "select", name], project, variables)


@contextlib.contextmanager
def for_preview(
    name: str, tools: Toolbox, variables: dict[str, str], progress: Progress, project: Path | None = None
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Prepare a preview of the stack; yields the environment and arguments for Pulumi.

    A lab's stack is created if necessary, as by `ensure`. Any other stack may have its state in another
    backend even if its file doesn't show it. If the local backend doesn't have such a stack, it is created in
    a temporary backend, from a copy of its file, and nothing is written into the checkout.

    Args:
        name: The stack.
        tools: The programs to use.
        variables: Pulumi's environment.
        progress: Where progress is reported.
        project: The folder of Pulumi.yaml; by default this checkout.

    Raises:
        UserError: As for `ensure`, or the stack has no file.
    """
    project = project or paths.project_dir()
    name = _local_name(name, project)
    file = project / f"Pulumi.{name}.yaml"
    if _LAB_STACK.fullmatch(name) or _state(project, name) is not None:
        ensure(name, tools, progress, project)
        yield variables, []
        return
    if not file.exists():
        raise UserError(
            f"there is no stack {name}: {file} doesn't exist",
            "check the name, or write the file (docs/own-machines.md)",
        )
    _refuse_other_backend(name, file, None)
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-preview-") as folder:
        copy, backend = Path(folder) / file.name, Path(folder) / "state"
        backend.mkdir()
        shutil.copy(file, copy)
        shutil.copy(project / "Pulumi.yaml", folder)
        temporary = {**variables, "PULUMI_BACKEND_URL": f"file://{backend}"}
        progress.say(f"this project's local backend has no stack {name}: previewing it as a new cluster")
        _init(name, tools, Path(folder), temporary)
        yield temporary, ["--config-file", str(copy)]


def unlock(name: str, tools: Toolbox, progress: Progress, project: Path | None = None) -> None:
    """Remove the lock that a killed run on this machine has left.

    The lock of a live process or of another machine stays, and Pulumi will refuse to run.

    Raises:
        UserError: Pulumi can't remove the lock.
    """
    project = project or paths.project_dir()
    locks = _locks(name, project)
    if locks and all(lock.abandoned for lock in locks):
        progress.say(f"unlocking the stack {name}: the run that locked it was killed")
        _pulumi(tools, ["cancel", "--yes", "--stack", name], project, env.environment(tools))


def clear_pending_creates(name: str, tools: Toolbox, progress: Progress, project: Path | None = None) -> None:
    """Clear the pending creates of a killed run after a successful `up` has finished them.

    The state keeps each pending create forever, and Pulumi warns about it in every run, even when the
    resource exists. If one of the resources doesn't exist, all pending creates stay: the refresh that clears
    them can't select single ones.

    Raises:
        UserError: Pulumi can't clear them.
    """
    project = project or paths.project_dir()
    state = _state(project, name)
    if state and state.interrupted and state.interrupted <= state.existing:
        refresh = ["refresh", "--clear-pending-creates", "--yes", "--skip-preview", "--stack", name]
        # Don't refresh the rest of the stack.
        targets = [word for urn in sorted(state.interrupted) for word in ("--target", urn)]
        with progress.step("clearing the pending creates of a killed run, which this run has finished"):
            _pulumi(tools, [*refresh, *targets], project, env.environment(tools))


def refuse_if_busy(name: str, project: Path | None = None) -> None:
    """Fail early if another run is changing the stack.

    Pulumi would refuse too, but only after the lab has been started.

    Raises:
        UserError: Another process on this machine holds the lock, or another machine does.
    """
    for lock in _locks(name, project or paths.project_dir()):
        if not lock.abandoned:
            raise UserError(
                f"another run is changing the stack {name}: process {lock.process} on {lock.machine}",
                f"wait until it ends; if it is dead, remove its lock with `pulumi cancel --stack {name}`",
            )


@dataclass(frozen=True)
class _Lock:
    """A run's lock in the backend."""

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
        content = json.loads(file.read_text())
        return _Lock(str(content["pid"]), str(content["hostname"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Lock("unknown", f"an unknown machine (see {file})")


def install_filter(project: Path) -> bool:
    """Set up the git filter in the checkout's own configuration.

    Returns:
        Whether the filter is set up. Without git or a checkout there is nothing to keep clean.
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
    """Put `salt` at the end of the stack file in place of any other; the rest stays byte for byte.

    Raises:
        UserError: The file has another salt and secrets that are encrypted with it.
    """
    text = file.read_text() if file.exists() else ""
    present = salt_in(text)
    if present == salt:
        return
    if present is not None and _has_secrets(text):
        raise UserError(
            f"{file} contains secrets that are encrypted with the salt of another state",
            "restore that state and its passphrase, or remove the secrets and the line 'encryptionsalt'",
        )
    kept = "".join(line for line in text.splitlines(keepends=True) if not _SALT.match(line))
    if kept and not kept.endswith("\n"):
        kept += "\n"
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(f"{kept}encryptionsalt: {salt}\n")
    partial.replace(file)


def _has_secrets(text: str) -> bool:
    return re.search(r"^\s+secure: ", text, re.MULTILINE) is not None


def _local_name(name: str, project: Path) -> str:
    """The name of a stack in the local backend, which may be given as `organization/PROJECT/NAME`.

    Raises:
        UserError: The name contains another organization or project.
    """
    *qualifiers, last = name.split("/")
    if qualifiers not in ([], [_ORGANIZATION], [_ORGANIZATION, _project_name(project)]):
        raise UserError(
            f"the stack {name} isn't in this project's local backend",
            "run plain pulumi with the stack's backend (docs/reviewing.md, By hand)",
        )
    return last


def _refuse_other_backend(name: str, file: Path, state: _State | None) -> None:
    # A lab's salt belongs to this machine and may be replaced; git doesn't see it. Any other stack's is
    # committed: with a different one, the owner's Pulumi would report an incorrect passphrase.
    if _LAB_STACK.fullmatch(name) or not file.exists():
        return
    own = state and f"encryptionsalt: {state.salt}"
    for line in file.read_text().splitlines():
        if _ENCRYPTION.match(line) and line != own:
            raise UserError(
                f"the state of the stack in {file.name} isn't in this project's local backend"
                " (see the file's last lines)",
                "run plain pulumi with the stack's backend (docs/reviewing.md, By hand); "
                f"if that state no longer exists, remove the line '{line.partition(':')[0]}'",
            )


def _refresh_index(file: Path) -> None:
    # git compares sizes before it runs a filter, so it reports a file as modified that is longer than at the
    # last `git add`. If only the salt was added, adding the file again changes nothing but the remembered
    # size. The user's own edits are left alone.
    if shutil.which("git") is None:
        return
    same = subprocess.run(["git", "diff", "--quiet", "--", file.name], cwd=file.parent, capture_output=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--error-unmatch", "--", file.name], cwd=file.parent, capture_output=True
    )
    if same.returncode == 0 and tracked.returncode == 0:
        # If another git process holds the index, the file shows as modified until the next run: harmless.
        subprocess.run(["git", "add", "--", file.name], cwd=file.parent, capture_output=True)


@dataclass(frozen=True)
class _State:
    """A stack in the local backend.

    Attributes:
        salt: The salt of its passphrase.
        existing: The URNs of its resources.
        interrupted: The URNs that a killed run was creating. The engine doesn't keep other kinds of
            interrupted operations between runs.
    """

    salt: str
    existing: set[str]
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
            f"if none of the stack's resources exist any more, run `pulumi stack rm {name} --force`",
        ) from error


def _create(project: Path, name: str, file: Path, tools: Toolbox, variables: dict[str, str]) -> str:
    """Create a stack without touching its file; returns the salt."""
    text = file.read_text() if file.exists() else ""
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-stack-") as folder:
        elsewhere = Path(folder)
        shutil.copy(project / "Pulumi.yaml", elsewhere)
        written = elsewhere / file.name
        present = salt_in(text)
        if present is not None and _has_secrets(text):
            # The new stack must keep the salt of the file's secrets; the passphrase must match it.
            written.write_text(f"encryptionsalt: {present}\n")
        _init(name, tools, elsewhere, variables)
        salt = salt_in(written.read_text())
    if salt is None:
        raise UserError(
            f"Pulumi created the stack {name} without a salt",
            "check that PULUMI_BACKEND_URL is a local file backend",
        )
    return salt


def _init(name: str, tools: Toolbox, folder: Path, variables: dict[str, str]) -> None:
    """Create a stack; Pulumi rewrites the stack's file in the folder."""
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
