"""A host that runs as a User Mode Linux process: `lab.uml` has its command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import processes
from common.errors import UserError
from common.files import copy_sparse
from common.paths import lab_command
from common.progress import Progress
from lab import ssh, uml
from lab.hardware import guest_name
from lab.machine import Vm, tail

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_SHELL = "/bin/sh"
_PID_FILE = "uml.pid"
_BASE = "../base/disk.raw"
# Where guests' memory lies, best first: in files of tmpfs, which aren't written to a disk.
_MEMORY_FOLDERS = (Path("/dev/shm"), Path("/tmp"))  # noqa: S108 - private files without a name


def cpu_of(index: int, cpus: tuple[int, ...]) -> int:
    """The CPU of this machine on which a host runs.

    One each, since a guest that moves wakes a sleeping CPU at every system call. The first host, the
    control plane, has a CPU of its own where there are two or more; the others share the rest in turn.

    :param index: the host's place in the lab.
    :param cpus: those that this process may use.
    """
    if index == 0 or len(cpus) == 1:
        return cpus[0]
    rest = cpus[1:]
    return rest[(index - 1) % len(rest)]


def memory_folder(lab_folder: Path, needed: int, mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Where the memory of a lab's hosts fits; the lab's folder where no tmpfs is large enough.

    A guest that doesn't get a page any more is killed in the middle of its work, so there must be room for
    the memory of all hosts from the start. What those that run have taken already counts as room.

    :param needed: MiB, of all hosts together.
    """
    pid_files = lab_folder.glob(f"*/{_PID_FILE}")
    pids = [processes.running(file, guest_name(lab_folder.name, file.parent.name)) for file in pid_files]
    taken = sum(_touched(pid) for pid in pids if pid is not None)
    kinds = {words[1]: words[2] for words in map(str.split, mounts.read_text().splitlines())}
    for folder in _MEMORY_FOLDERS:
        if kinds.get(str(folder)) != "tmpfs" or not os.access(folder, os.W_OK):
            continue
        if (shutil.disk_usage(folder).free >> 20) + taken >= needed:
            return folder
    return lab_folder


def _touched(pid: int) -> int:
    """MiB of a guest's memory file that it has touched: the largest file without a name."""
    largest = 0
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).endswith("(deleted)"):
                    largest = max(largest, link.stat().st_blocks * 512)
    return largest >> 20


@contextlib.contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """Let this thread run on one CPU only, and with it the processes that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _has_become(pid: int, mark: str) -> bool:
    """Whether a process is the kernel: no longer the shell, and not in between, when it has no words."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] != _SHELL.encode() and mark.encode() in words


@dataclass(frozen=True)
class UmlVm(Vm):
    """A host and its kernel's process; `lab.network` must run."""

    program = "User Mode Linux"
    pid_file = _PID_FILE
    disk_file = uml.DISK
    log_file = "console.log"

    def make_disk(self, base: Path) -> None:
        """Nothing: the kernel makes its overlay of the base disk at the first boot."""

    def start(self) -> None:
        """Start the kernel as `Vm.start` says."""
        if self.pid is not None:
            return
        for name in (self.pid_file, "booted"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / uml.RUN_FOLDER, ignore_errors=True)
        log = self.folder / self.log_file
        cpu = cpu_of(self.host.index, tuple(sorted(os.sched_getaffinity(0))))
        # The process writes its own id before it is the kernel, so that none is ever lost.
        wrapper = [_SHELL, "-c", 'echo $$ >"$0" && exec "$@"', self.pid_file]
        memory = memory_folder(self.lab_folder, self.machine.lab_memory)
        with log.open("wb") as output, _pinned(cpu):
            process = subprocess.Popen(
                [*wrapper, *uml.command(self.machine, _BASE)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C isn't meant for it
                env={**os.environ, "TMPDIR": str(memory)},
            )
        deadline = time.monotonic() + _START_SECONDS
        while not _has_become(process.pid, self._mark):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"User Mode Linux of {self.host.name} doesn't start:\n{tail(log, 10)}")
            time.sleep(0.02)

    def held(self) -> str | None:
        """Why the guest stands still: its process was stopped; None where it runs, or isn't there."""
        pid = self.pid
        if pid is None:
            return None
        states = set()
        with contextlib.suppress(OSError):  # a thread that has just ended
            for thread in Path(f"/proc/{pid}/task").iterdir():
                states.add((thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0])
        return "stopped" if states == {"T"} else None

    def let_run(self, progress: Progress) -> None:
        """Let a guest go on that a snapshot, which was cut off, had stopped."""
        if self.held():
            progress.say(f"{self.host.name}: stood still; it goes on")
            self.resume()

    def shut_down_for_reboot(self, seconds: float) -> None:
        """Have the guest reboot in place, as its kernel does it: the process stays.

        :raises UserError: the guest doesn't take the command, or isn't down in time.
        """
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} doesn't run", lab_command("up", self.machine.lab))
        before = self._boot_id()
        (self.folder / "booted").unlink(missing_ok=True)
        # The connection may be cut before the command's end: whether another boot answers decides.
        with contextlib.suppress(UserError):
            ssh.run(self.lab_folder, self.ssh_port, ["systemctl", "reboot"], timeout=120)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not processes.alive(pid):
                return  # `start` begins it again
            with contextlib.suppress(UserError):
                if ssh.greets(self.ssh_port) and self._boot_id() != before:
                    return
            time.sleep(0.25)
        raise UserError(f"{self.host.name} is not down {seconds:.0f}s after it was told to reboot")

    def _boot_id(self) -> str:
        command = ["cat", "/proc/sys/kernel/random/boot_id"]
        return ssh.run(self.lab_folder, self.ssh_port, command, timeout=30).stdout.strip()

    def pause(self) -> None:
        """Stop the guest's process, with everything that it has written on its disk."""
        with contextlib.suppress(UserError):  # a guest that doesn't answer is saved as it is
            ssh.run(self.lab_folder, self.ssh_port, ["sync"], timeout=60)
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while not self.held():  # a signal takes each thread a moment
            if self.pid is None or time.monotonic() > deadline:
                raise UserError(f"{self.host.name} can't be stopped")
            time.sleep(0.01)

    def resume(self) -> None:
        """Let the guest's process go on, or start it where it was ended to be brought back."""
        if self.pid is None:
            self.start()
        else:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} doesn't run", lab_command("up", self.machine.lab))
        os.kill(pid, number)

    def _snapshot(self, tag: str) -> Path:
        return self.folder / "snapshots" / f"{tag}.cow"

    def save(self, tag: str) -> None:
        """Copy the disk. Memory isn't saved: a restore is a boot, as after a power cut at this moment."""
        target = self._snapshot(tag)
        target.parent.mkdir(exist_ok=True)
        copy_sparse(self.folder / self.disk_file, target)

    def hold_for_load(self) -> None:
        """End the guest."""
        self.stop()

    def load(self, tag: str) -> None:
        """Bring the disk back; `resume` boots from it."""
        self.forget_packages()
        copy_sparse(self._snapshot(tag), self.folder / self.disk_file)

    def snapshots(self) -> list[str]:
        """The tags of its disk's copies."""
        return sorted(path.stem for path in (self.folder / "snapshots").glob("*.cow"))

    def resident(self) -> int | None:
        """MiB of the memory file that the guest has touched: its processes' memory too."""
        pid = self.pid
        return None if pid is None else _touched(pid)
