"""A host that runs as a User Mode Linux process; `lab.uml` has its command line."""

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
# Candidates for the guests' memory files, best first. On tmpfs they aren't written to a disk.
_MEMORY_FOLDERS = (Path("/dev/shm"), Path("/tmp"))  # noqa: S108 - the files are unlinked at once


def cpu_of(index: int, cpus: tuple[int, ...]) -> int:
    """The CPU of this machine that a host is pinned to.

    A guest that migrates between CPUs wakes a sleeping one at every system call. The first host, the
    control plane, gets a CPU to itself if there are two or more; the workers share the others.

    Args:
        index: The host's index in the lab.
        cpus: The CPUs that this process may use.
    """
    if index == 0 or len(cpus) == 1:
        return cpus[0]
    rest = cpus[1:]
    return rest[(index - 1) % len(rest)]


def memory_folder(lab_folder: Path, needed: int, mounts: Path = Path("/proc/self/mounts")) -> Path:
    """A tmpfs with room for the memory of all the lab's hosts; the lab's folder if none is large enough.

    A guest is killed if it can't get another page, so all memory must be available from the start.
    Memory that running hosts already use counts as available.

    Args:
        lab_folder: The lab's folder.
        needed: MiB for all hosts together.
        mounts: The list of mounts, replaced in tests.
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
    """MiB allocated in a guest's memory file, the largest unlinked file that the process has open."""
    largest = 0
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).endswith("(deleted)"):
                    largest = max(largest, link.stat().st_blocks * 512)
    return largest >> 20


@contextlib.contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """Pin this thread, and the processes that it starts, to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _has_become(pid: int, mark: str) -> bool:
    """Whether a process is the kernel by now: it starts as a shell, then briefly has no command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] != _SHELL.encode() and mark.encode() in words


@dataclass(frozen=True)
class UmlVm(Vm):
    """A host and its kernel's process; `lab.network` must be running."""

    program = "User Mode Linux"
    pid_file = _PID_FILE
    disk_file = uml.DISK
    log_file = "console.log"

    def make_disk(self, base: Path) -> None:
        """Do nothing: the kernel creates its overlay of the base disk at the first boot."""

    def start(self) -> None:
        """Start the kernel; see `Vm.start`."""
        if self.pid is not None:
            return
        for name in (self.pid_file, "booted"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / uml.RUN_FOLDER, ignore_errors=True)
        log = self.folder / self.log_file
        cpu = cpu_of(self.host.index, tuple(sorted(os.sched_getaffinity(0))))
        # The shell writes its pid before it becomes the kernel, so the process can always be found.
        wrapper = [_SHELL, "-c", 'echo $$ >"$0" && exec "$@"', self.pid_file]
        memory = memory_folder(self.lab_folder, self.machine.lab_memory)
        with log.open("wb") as output, _pinned(cpu):
            process = subprocess.Popen(
                [*wrapper, *uml.command(self.machine, _BASE)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in the terminal doesn't stop it
                env={**os.environ, "TMPDIR": str(memory)},
            )
        deadline = time.monotonic() + _START_SECONDS
        while not _has_become(process.pid, self._mark):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"User Mode Linux for {self.host.name} didn't start:\n{tail(log, 10)}")
            time.sleep(0.02)

    def paused_reason(self) -> str | None:
        """`stopped` if the guest's process is stopped; None if it is running or hasn't been started."""
        pid = self.pid
        if pid is None:
            return None
        states = set()
        with contextlib.suppress(OSError):  # a thread that has just exited
            for thread in Path(f"/proc/{pid}/task").iterdir():
                states.add((thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0])
        return "stopped" if states == {"T"} else None

    def unpause(self, progress: Progress) -> None:
        """Resume a guest that an interrupted snapshot left paused."""
        if self.paused_reason():
            progress.say(f"{self.host.name}: was paused; resuming it")
            self.resume()

    def shut_down_for_reboot(self, seconds: float) -> None:
        """Reboot the guest in place: the kernel's process survives a reboot.

        Raises:
            UserError: The guest isn't running, or doesn't reboot in time.
        """
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} isn't running", lab_command("up", self.machine.lab))
        before = self._boot_id()
        (self.folder / "booted").unlink(missing_ok=True)
        # The connection may be cut before the command finishes, so a new boot ID decides.
        with contextlib.suppress(UserError):
            ssh.run(self.lab_folder, self.ssh_port, ["systemctl", "reboot"], timeout=120)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not processes.alive(pid):
                return  # the caller starts it again
            with contextlib.suppress(UserError):
                if ssh.sends_banner(self.ssh_port) and self._boot_id() != before:
                    return
            time.sleep(0.25)
        raise UserError(f"{self.host.name} hasn't rebooted after {seconds:.0f}s")

    def _boot_id(self) -> str:
        command = ["cat", "/proc/sys/kernel/random/boot_id"]
        return ssh.run(self.lab_folder, self.ssh_port, command, timeout=30).stdout.strip()

    def pause(self) -> None:
        """Flush the guest's disk, then stop its process."""
        with contextlib.suppress(UserError):  # a guest that doesn't respond is saved as it is
            ssh.run(self.lab_folder, self.ssh_port, ["sync"], timeout=60)
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while not self.paused_reason():  # each thread takes a moment to stop
            if self.pid is None or time.monotonic() > deadline:
                raise UserError(f"can't pause {self.host.name}")
            time.sleep(0.01)

    def resume(self) -> None:
        """Continue the guest's process, or start it if `prepare_load` stopped it."""
        if self.pid is None:
            self.start()
        else:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} isn't running", lab_command("up", self.machine.lab))
        os.kill(pid, number)

    def _snapshot(self, tag: str) -> Path:
        return self.folder / "snapshots" / f"{tag}.cow"

    def save(self, tag: str) -> None:
        """Copy the disk. Memory isn't saved: a restore boots the guest, as after a power failure."""
        target = self._snapshot(tag)
        target.parent.mkdir(exist_ok=True)
        copy_sparse(self.folder / self.disk_file, target)

    def prepare_load(self) -> None:
        """Stop the guest."""
        self.stop()

    def load(self, tag: str) -> None:
        """Restore the disk; `resume` boots from it."""
        self.forget_packages_key()
        copy_sparse(self._snapshot(tag), self.folder / self.disk_file)

    def snapshots(self) -> list[str]:
        """The tags of the copies of the disk."""
        return sorted(path.stem for path in (self.folder / "snapshots").glob("*.cow"))

    def resident(self) -> int | None:
        """MiB allocated in the memory file, which includes the memory of the guest's processes."""
        pid = self.pid
        return None if pid is None else _touched(pid)
