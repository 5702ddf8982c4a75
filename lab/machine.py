"""One virtual machine: its folder, its process, its boot. Subclasses implement what runs the guest."""

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
# Console messages of the kernel or the lab's initramfs after which a boot can't continue.
_FATAL = ("Kernel panic", "lab: ", "You are in emergency mode")


@dataclass(frozen=True)
class Vm(ABC):
    """A host of a lab: its folder and its process.

    The folder holds the disk, seed.tar, console.log, a pid file and the host's SSH key. Paths in the
    command line are relative to it.

    Attributes:
        program: The name of the program that runs the guest, for messages.
        pid_file: That program's pid file.
        disk_file: The guest's disk.
        log_file: The program's output.
    """

    program: ClassVar[str]
    pid_file: ClassVar[str]
    disk_file: ClassVar[str]
    log_file: ClassVar[str]

    lab_folder: Path
    machine: Machine

    @property
    def host(self) -> Host:
        """The host's specification."""
        return self.machine.host

    @property
    def folder(self) -> Path:
        """The host's folder, below the lab's."""
        return self.lab_folder / self.host.name

    @property
    def ssh_port(self) -> int:
        """The port of 127.0.0.1 that is forwarded to the host's SSH server."""
        return self.machine.ports.ssh[self.host.index]

    @property
    def pid(self) -> int | None:
        """The pid of the program that runs the guest; None if the guest isn't running."""
        found = processes.running(self.folder / self.pid_file, self._mark)
        # A lab in another state folder may have the same name, so compare the working directory too.
        if found is not None and _working_folder(found) != self.folder.resolve():
            return None
        return found

    @property
    def _mark(self) -> str:
        return guest_name(self.machine.lab, self.host.name)

    # -- implemented by subclasses ------------------------------------------

    @abstractmethod
    def make_disk(self, base: Path) -> None:
        """Create the disk as an overlay of the raw base disk, unless it exists.

        Raises:
            UserError: The disk can't be created.
        """

    @abstractmethod
    def start(self) -> None:
        """Start the guest unless it is running.

        Raises:
            UserError: The program exits at once; the message includes its output.
        """

    @abstractmethod
    def paused_reason(self) -> str | None:
        """Why the guest's CPUs are stopped; None if they run or the guest isn't started.

        Raises:
            UserError: The program that runs the guest doesn't respond.
        """

    @abstractmethod
    def unpause(self, progress: Progress) -> None:
        """Resume the guest if its CPUs are stopped.

        Raises:
            UserError: The reason for the pause still exists.
        """

    @abstractmethod
    def shut_down_for_reboot(self, seconds: float) -> None:
        """Reboot the guest and return once it has shut down; the caller must call `start` next.

        Raises:
            UserError: The guest isn't running, or doesn't shut down in time.
        """

    @abstractmethod
    def pause(self) -> None:
        """Stop the guest's CPUs."""

    @abstractmethod
    def resume(self) -> None:
        """Let the guest's CPUs run."""

    @abstractmethod
    def save(self, tag: str) -> None:
        """Save a paused guest, replacing an earlier snapshot of that name."""

    @abstractmethod
    def prepare_load(self) -> None:
        """Get the guest ready for `load`, whether it is running or not."""

    @abstractmethod
    def load(self, tag: str) -> None:
        """Restore a snapshot after `prepare_load`; the guest runs again after `resume`."""

    @abstractmethod
    def snapshots(self) -> list[str]:
        """The tags of the guest's snapshots, whether it is running or not."""

    @abstractmethod
    def resident(self) -> int | None:
        """MiB of this machine's memory that the guest uses now; None if it isn't running."""

    # -- common to all --------------------------------------------------------

    def host_key(self) -> str:
        """The public host key as `ssh-ed25519 AAAA...`; the first call creates the key."""
        key = self.folder / "ssh_host_ed25519_key"
        make_key(key, self.host.name)
        return " ".join(key.with_suffix(".pub").read_text().split()[:2])

    def prepare(self, disk: Path, authorized_key: str, packages_key: str, release: str) -> None:
        """Create key, seed and disk where they don't exist yet; a second call changes nothing.

        Args:
            disk: The raw base disk in the lab's folder.
            authorized_key: The lab's public login key.
            packages_key: The package repository's public key.
            release: Debian's code name.
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
            write_atomic(self._known_packages_key, packages_key)
            write_atomic(self.folder / "seed.tar", seed.archive(identity), 0o600)
        self.make_disk(disk)

    def stop(self) -> None:
        """Kill the guest without shutting it down."""
        if self.pid is not None:
            processes.end(self.folder / self.pid_file, self._mark)

    def wait_ssh(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait for the host's SSH server.

        Args:
            seconds: How long to wait.
            progress: Reports success.
            cancelled: Ends the wait early when another host fails.

        Raises:
            UserError: The server doesn't come up; the message includes the console's last lines.
        """
        started = time.monotonic()
        log = self.folder / self.log_file
        while not ssh.sends_banner(self.ssh_port):
            if cancelled.is_set():
                return
            if self.pid is None:
                raise self._boot_error(f"{self.program} for {self.host.name} exited: {tail(log, 3)}")
            fatal = self._fatal_line()
            if fatal is not None:
                raise self._boot_error(f"{self.host.name} doesn't boot: {fatal}")
            if time.monotonic() - started > seconds:
                reason = self.paused_reason()
                cause = f" ({self.program} has paused it: {reason})" if reason else ""
                raise self._boot_error(f"{self.host.name} has no SSH server after {seconds:.0f}s{cause}")
            time.sleep(0.25)
        progress.say(f"{self.host.name}: SSH is up after {time.monotonic() - started:.0f}s")

    def wait_ready(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait until the host has booted: SSH accepts a login with the pinned key, and systemd is done.

        Args:
            seconds: How long to wait.
            progress: Reports success.
            cancelled: Ends the wait early when another host fails.

        Raises:
            UserError: The host doesn't become ready; the message includes the console's last lines.
        """
        started = time.monotonic()
        self.wait_ssh(seconds, progress, cancelled)
        if cancelled.is_set():
            return
        state = self._final_state(started + seconds, cancelled)
        if cancelled.is_set():
            return
        if state != "running":
            failed = ssh.run(
                self.lab_folder, self.ssh_port, ["systemctl", "--failed", "--no-legend", "--plain"]
            )
            raise self._boot_error(f"{self.host.name} booted, but is {state}:\n{failed.stdout.strip()}")
        self.mark_booted()
        progress.say(f"{self.host.name}: ready after {time.monotonic() - started:.0f}s")

    def mark_booted(self) -> None:
        """Record that the guest in the current process has been ready once."""
        write_atomic(self.folder / "booted", str(self.pid))

    @property
    def booted(self) -> bool:
        """Whether the guest in the current process has been ready once, whatever happened to it since."""
        note = self.folder / "booted"
        return note.exists() and note.read_text() == str(self.pid)

    def _final_state(self, deadline: float, cancelled: threading.Event) -> str:
        """systemd's state at the end of the boot. A login that fails because the host is busy is retried."""
        command = ["systemctl", "is-system-running", "--wait"]
        while True:
            left = max(60.0, deadline - time.monotonic())
            try:
                return ssh.run(self.lab_folder, self.ssh_port, command, timeout=left).stdout.strip()
            except UserError as error:
                # Retrying doesn't help with a wrong host key or a rejected login key.
                permanent = "verification failed" in error.what or "Permission denied" in error.what
                if permanent or self.pid is None or time.monotonic() > deadline:
                    raise self._boot_error(f"{self.host.name}: SSH login failed: {error.what}") from None
            if cancelled.wait(1.0):
                return "cancelled"

    @property
    def _known_packages_key(self) -> Path:
        """The file with the package repository's key that the guest is known to have."""
        return self.folder / "packages.known"

    def forget_packages_key(self) -> None:
        """Forget which repository key the guest has: a restored snapshot may have a different one."""
        self._known_packages_key.unlink(missing_ok=True)

    def install_packages_key(self, key: str) -> None:
        """Install the package repository's key on a running host, unless it is known to have it.

        Raises:
            UserError: The key can't be written on the host.
        """
        known = self._known_packages_key
        if known.exists() and known.read_text() == key:
            return
        command = ["tee", f"/{seed.KEY_PLACE[self.machine.family]}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, input=key, timeout=120)
        if done.returncode != 0:
            raise UserError(
                f"{self.host.name}: can't install the package repository's key: {done.stderr.strip()}"
            )
        write_atomic(known, key)

    def _fatal_line(self) -> str | None:
        for line in tail(self.folder / "console.log", 60).splitlines():
            if any(mark in line for mark in _FATAL):
                return line.strip()
        return None

    def _boot_error(self, what: str) -> UserError:
        console = self.folder / "console.log"
        return UserError(
            f"{what}\nlast lines of the console ({console}):\n{tail(console, _CONSOLE_LINES)}",
            f"{lab_command('down', self.machine.lab)}, then up again; "
            "if it fails again, the console shows why",
        )

    @property
    def responds(self) -> bool:
        """Whether the guest is running and its SSH server sends its banner.

        This doesn't check the host key again: that needs a login, which takes an emulated host seconds.
        """
        return self.pid is not None and ssh.sends_banner(self.ssh_port)

    def set_clock(self) -> None:
        """Set the guest's clock to this machine's: a restored guest still has the snapshot's time."""
        command = ["date", "--utc", "--set", f"@{time.time():.3f}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, timeout=120)
        if done.returncode != 0:
            raise UserError(f"{self.host.name}: can't set the clock: {done.stderr.strip()}")


def make_key(path: Path, comment: str) -> None:
    """Create an ed25519 key pair without a passphrase, unless it exists."""
    if path.exists() and path.with_suffix(".pub").exists():
        return
    draft = path.with_name(f".{path.name}.draft")
    for stale in (draft, draft.with_name(draft.name + ".pub")):
        stale.unlink(missing_ok=True)
    keygen = requirements.program("ssh-keygen")
    command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", f"kubeadm-ipvs-lab-{comment}", "-f", str(draft)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"can't create the key {path}: {done.stderr.strip()}")
    draft.with_name(draft.name + ".pub").replace(path.with_name(path.name + ".pub"))
    draft.replace(path)


def _working_folder(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def tail(path: Path, lines: int) -> str:
    """The last lines of a file, or a placeholder if it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(nothing)"
