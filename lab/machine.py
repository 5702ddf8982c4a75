"""One virtual machine: its folder, its process, its boot. What runs it is a subclass's to say."""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common import processes
from common.errors import UserError
from common.files import write_atomic
from common.paths import lab_command
from common.progress import Progress
from lab import requirements, seed, ssh
from lab.hardware import Machine, guest_name
from lab.options import Host

_CONSOLE_LINES = 25
# What the kernel or the lab's initramfs says on the console when a boot can't go on.
_FATAL = ("Kernel panic", "lab: ", "You are in emergency mode")


@dataclass(frozen=True)
class Vm(ABC):
    """A host of a lab, as files and as a process.

    The folder holds the disk, seed.tar, console.log, a pid file and the host's SSH key; paths in the
    command line are relative to it.
    """

    # By subclass: the program's name for people, its pid file, the disk, the file it writes its messages to.
    program: ClassVar[str]
    pid_file: ClassVar[str]
    disk_file: ClassVar[str]
    log_file: ClassVar[str]

    lab_folder: Path
    machine: Machine

    @property
    def host(self) -> Host:
        """What it shall be."""
        return self.machine.host

    @property
    def folder(self) -> Path:
        """Its folder, below the lab's."""
        return self.lab_folder / self.host.name

    @property
    def ssh_port(self) -> int:
        """The port of 127.0.0.1 that leads to its SSH server."""
        return self.machine.ports.ssh[self.host.index]

    @property
    def pid(self) -> int | None:
        """The process id of what runs the guest, if it runs."""
        found = processes.running(self.folder / self.pid_file, self._mark)
        # Another state folder may hold a lab of the same name: look where the process works.
        if found is not None and _working_folder(found) != self.folder.resolve():
            return None
        return found

    @property
    def _mark(self) -> str:
        return guest_name(self.machine.lab, self.host.name)

    # -- what differs between the programs that run guests ----------------

    @abstractmethod
    def make_disk(self, base: Path) -> None:
        """Make the disk, an overlay of the raw base disk, if it isn't there.

        :raises UserError: it can't be made.
        """

    @abstractmethod
    def start(self) -> None:
        """Start the guest; nothing happens if it runs.

        :raises UserError: it ends at once; with what it said.
        """

    @abstractmethod
    def held(self) -> str | None:
        """Why the guest's CPUs stand still; None where they run, or the guest doesn't.

        :raises UserError: what runs the guest doesn't answer.
        """

    @abstractmethod
    def let_run(self, progress: Progress) -> None:
        """Let a guest run whose CPUs stand still.

        :raises UserError: the cause is still there.
        """

    @abstractmethod
    def shut_down_for_reboot(self, seconds: float) -> None:
        """Have the guest reboot, and return when it has shut down; `start` must follow.

        :raises UserError: the guest doesn't take the command, or isn't down in time.
        """

    @abstractmethod
    def pause(self) -> None:
        """Stop the guest's CPUs."""

    @abstractmethod
    def resume(self) -> None:
        """Let the guest's CPUs run."""

    @abstractmethod
    def save(self, tag: str) -> None:
        """Save a paused guest, in place of an earlier snapshot of that name."""

    @abstractmethod
    def hold_for_load(self) -> None:
        """Stop the guest, whether it runs or not, so that a snapshot can be loaded."""

    @abstractmethod
    def load(self, tag: str) -> None:
        """Bring a guest that is held back to a snapshot; `resume` lets it run."""

    @abstractmethod
    def snapshots(self) -> list[str]:
        """The tags of its snapshots, whether it runs or not."""

    @abstractmethod
    def resident(self) -> int | None:
        """MiB of this machine's memory that the guest holds now; None if it doesn't run."""

    # -- what doesn't ------------------------------------------------------

    def host_key(self) -> str:
        """Its public host key, as `ssh-ed25519 AAAA...`; made at the first call."""
        key = self.folder / "ssh_host_ed25519_key"
        make_key(key, self.host.name)
        return " ".join(key.with_suffix(".pub").read_text().split()[:2])

    def prepare(self, disk: Path, authorized_key: str, packages_key: str, release: str) -> None:
        """Make key, seed and disk, as far as they aren't there: no host loses its identity by a second call.

        :param disk: the raw base disk in the lab's folder.
        """
        self.folder.mkdir(exist_ok=True)
        self.host_key()
        key = self.folder / "ssh_host_ed25519_key"
        emulated = self.machine.accelerator == "tcg"
        if not (self.folder / "seed.tar").exists():
            identity = seed.Identity(
                name=self.host.name,
                address=self.host.address,
                machine_id=uuid.uuid4().hex,
                host_key=key.read_text(),
                host_key_public=key.with_suffix(".pub").read_text(),
                authorized_key=authorized_key,
                packages_port=self.machine.ports.packages,
                packages_key=packages_key,
                release=release,
                family=self.machine.family,
                emulated=emulated,
                pods_first=emulated and self.host.role == "control-plane",
            )
            write_atomic(self._packages_known, packages_key)
            write_atomic(self.folder / "seed.tar", seed.archive(identity), 0o600)
        self.make_disk(disk)

    def stop(self) -> None:
        """End the guest at once, without shutting it down: its disk is thrown away, or was saved."""
        if self.pid is not None:
            processes.end(self.folder / self.pid_file, self._mark)

    def wait_answers(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait until the host's SSH server greets.

        :param seconds: how long it may take.
        :param cancelled: set when another host failed, so that this wait is of no use any more.
        :raises UserError: it doesn't; with the console's last lines.
        """
        begun = time.monotonic()
        log = self.folder / self.log_file
        while not ssh.greets(self.ssh_port):
            if cancelled.is_set():
                return
            if self.pid is None:
                raise self._no_boot(f"{self.program} of {self.host.name} ended: {tail(log, 3)}")
            fatal = self._fatal_line()
            if fatal is not None:
                raise self._no_boot(f"{self.host.name} doesn't boot: {fatal}")
            if time.monotonic() - begun > seconds:
                why = self.held()
                cause = f" ({self.program} holds it: {why})" if why else ""
                raise self._no_boot(f"{self.host.name} doesn't answer by SSH after {seconds:.0f}s{cause}")
            time.sleep(0.25)
        progress.say(f"{self.host.name}: SSH answers after {time.monotonic() - begun:.0f}s")

    def wait_ready(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait until the host has booted: SSH answers with the pinned key, and systemd is done.

        :param seconds: how long it may take.
        :param cancelled: set when another host failed, so that this wait is of no use any more.
        :raises UserError: it doesn't; with the console's last lines.
        """
        begun = time.monotonic()
        self.wait_answers(seconds, progress, cancelled)
        if cancelled.is_set():
            return
        state = self._final_state(begun + seconds, cancelled)
        if cancelled.is_set():
            return
        if state != "running":
            failed = ssh.run(
                self.lab_folder, self.ssh_port, ["systemctl", "--failed", "--no-legend", "--plain"]
            )
            raise self._no_boot(f"{self.host.name} booted, but is {state}:\n{failed.stdout.strip()}")
        self.note_booted()
        progress.say(f"{self.host.name}: ready after {time.monotonic() - begun:.0f}s")

    def note_booted(self) -> None:
        """Remember that the guest of this process has been ready."""
        write_atomic(self.folder / "booted", str(self.pid))

    @property
    def booted(self) -> bool:
        """Whether the guest of this process has been ready once, whatever has become of it since."""
        note = self.folder / "booted"
        return note.exists() and note.read_text() == str(self.pid)

    def _final_state(self, deadline: float, cancelled: threading.Event) -> str:
        """systemd's word for the finished boot; a login that fails on a busy host is tried again."""
        command = ["systemctl", "is-system-running", "--wait"]
        while True:
            left = max(60.0, deadline - time.monotonic())
            try:
                return ssh.run(self.lab_folder, self.ssh_port, command, timeout=left).stdout.strip()
            except UserError as trouble:
                # Another key is another host: no second try makes it right.
                hopeless = "verification failed" in trouble.what or "Permission denied" in trouble.what
                if hopeless or self.pid is None or time.monotonic() > deadline:
                    raise self._no_boot(f"{self.host.name} can't be logged in to: {trouble.what}") from None
            if cancelled.wait(1.0):
                return "given up"

    @property
    def _packages_known(self) -> Path:
        """The packages' key that the guest has, as far as this machine knows."""
        return self.folder / "packages.known"

    def forget_packages(self) -> None:
        """Take the guest for one that may have any key: it was brought back to another time."""
        self._packages_known.unlink(missing_ok=True)

    def trust_packages(self, key: str) -> None:
        """Give a running host the package repository's key, if it was seeded with another one.

        :raises UserError: the host doesn't take it.
        """
        known = self._packages_known
        if known.exists() and known.read_text() == key:
            return
        command = ["tee", f"/{seed.KEY_PLACE[self.machine.family]}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, input=key, timeout=120)
        if done.returncode != 0:
            raise UserError(f"{self.host.name} doesn't take the packages' key: {done.stderr.strip()}")
        write_atomic(known, key)

    def _fatal_line(self) -> str | None:
        for line in tail(self.folder / "console.log", 60).splitlines():
            if any(mark in line for mark in _FATAL):
                return line.strip()
        return None

    def _no_boot(self, what: str) -> UserError:
        console = self.folder / "console.log"
        return UserError(
            f"{what}\nthe console's last lines ({console}):\n{tail(console, _CONSOLE_LINES)}",
            f"{lab_command('down', self.machine.lab)}, then up again; "
            "if it fails at the same place, the console says where",
        )

    @property
    def answers(self) -> bool:
        """Whether the guest runs and its SSH server greets.

        The host key was checked when it booted; a login would take an emulated host seconds.
        """
        return self.pid is not None and ssh.greets(self.ssh_port)

    def set_clock(self) -> None:
        """Set the guest's clock to this machine's: after a restore it is as it was at the snapshot."""
        command = ["date", "--utc", "--set", f"@{time.time():.3f}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, timeout=120)
        if done.returncode != 0:
            raise UserError(f"the clock of {self.host.name} can't be set: {done.stderr.strip()}")


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair without passphrase, unless it is there already."""
    if path.exists() and path.with_suffix(".pub").exists():
        return
    draft = path.with_name(f".{path.name}.draft")
    for stale in (draft, draft.with_name(draft.name + ".pub")):
        stale.unlink(missing_ok=True)
    keygen = requirements.program("ssh-keygen")
    command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", f"kubeadm-ipvs-lab-{comment}", "-f", str(draft)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"no key could be made at {path}: {done.stderr.strip()}")
    draft.with_name(draft.name + ".pub").replace(path.with_name(path.name + ".pub"))
    draft.replace(path)


def _working_folder(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def tail(path: Path, lines: int) -> str:
    """A file's last lines, as far as they can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(nothing)"
