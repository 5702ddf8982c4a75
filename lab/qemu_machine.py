"""A host that QEMU runs, with KVM or by emulation: `lab.qemu` has its command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from common import processes
from common.errors import UserError
from common.paths import lab_command
from common.progress import Progress
from lab import qemu, requirements, ssh
from lab.machine import Vm, tail
from lab.qmp import Qmp

# Saving or loading a guest of a few GiB is a matter of seconds; a busy disk may take longer.
_SNAPSHOT_SECONDS = 600.0
# Two thirds of the control plane's share where there isn't enough for all. With a third (5), workers of a
# lab of three were starved: their kubelets took minutes to start a container.
_WORKERS_NICENESS = 2
# For a guest that QEMU stopped at a full disk: with less it would stand again at once.
_ROOM_TO_GO_ON = 1 << 30  # bytes


@dataclass(frozen=True)
class QemuVm(Vm):
    """A host and its QEMU, which is spoken to by qmp.sock."""

    program = "QEMU"
    pid_file = "qemu.pid"
    disk_file = "disk.qcow2"
    log_file = "qemu.log"

    def make_disk(self, base: Path) -> None:
        """Make the disk as `Vm.make_disk` says."""
        if (self.folder / self.disk_file).exists():
            return
        draft = self.folder / ".disk.draft"
        overlay = ("create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.path.relpath(base, self.folder))
        command = [requirements.program("qemu-img"), *overlay, draft.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"the disk of {self.host.name} can't be made: {done.stderr.strip()}")
        draft.replace(self.folder / self.disk_file)

    def start(self, *, paused: bool = False) -> None:
        """Start QEMU as `Vm.start` says.

        :param paused: don't let the guest's CPUs run yet, for a snapshot to be loaded first.
        """
        if self.pid is not None:
            return
        for name in (self.pid_file, "qmp.sock", "booted"):
            (self.folder / name).unlink(missing_ok=True)
        log = self.folder / self.log_file
        scheduling = self._scheduling()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *scheduling,
                    requirements.program(qemu.BINARY),
                    *qemu.command(self.machine, paused=paused)[1:],
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C isn't meant for it
            )
        if scheduling:
            # Linux schedules whole sessions against each other where it groups them, and nice values
            # only inside of one. There the group has a value of its own.
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/autogroup").write_text(str(_WORKERS_NICENESS))
        deadline = time.monotonic() + 60
        while not (self.folder / "qmp.sock").exists() or self.pid is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"QEMU of {self.host.name} doesn't start:\n{tail(log, 10)}")
            time.sleep(0.02)

    def _scheduling(self) -> tuple[str, ...]:
        """How QEMU is started so that an emulated worker leaves the CPU to the control plane first.

        Everything that workers do waits for the control plane, which is what breaks when it is late.
        """
        if self.machine.accelerator == "kvm" or self.host.role == "control-plane":
            return ()
        return ("nice", "-n", str(_WORKERS_NICENESS))

    def held(self) -> str | None:
        """Why QEMU lets the guest's CPUs stand, in its own word; None where they run, or QEMU doesn't.

        :raises UserError: QEMU doesn't say.
        """
        if self.pid is None:
            return None
        with Qmp(self.folder) as qmp:
            status: str = qmp.execute("query-status")["status"]
        return None if status == "running" else status

    def let_run(self, progress: Progress) -> None:
        """Let a guest run whose CPUs stand: at a full disk's end, or after a snapshot that was cut off.

        :raises UserError: QEMU couldn't write the disk, and the disk is still full.
        """
        why = self.held()
        if why is None:
            return
        if why == "io-error":
            free = shutil.disk_usage(self.folder).free
            if free < _ROOM_TO_GO_ON:
                raise UserError(
                    f"QEMU stopped {self.host.name} when it couldn't write its disk: "
                    f"{self.folder} has {free >> 20} MiB left",
                    f"make room, then {lab_command('up', self.machine.lab)}: the host goes on where it stood",
                )
        progress.say(f"{self.host.name}: stood still (QEMU says {why}); it goes on")
        self.resume()

    def shut_down_for_reboot(self, seconds: float) -> None:
        """Have the guest reboot, with QEMU ending where it would reset the machine.

        A reset in place makes QEMU 10 fail now and then when it emulates several CPUs (an
        assertion in iotlb_to_section): a new process begins from nothing.

        :raises UserError: the guest doesn't take the command, or isn't down in time.
        """
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} doesn't run", lab_command("up", self.machine.lab))
        with Qmp(self.folder) as qmp:
            qmp.execute("set-action", reboot="shutdown")
        # The connection may be cut before the command's end: whether QEMU ends decides.
        with contextlib.suppress(UserError):
            ssh.run(self.lab_folder, self.ssh_port, ["systemctl", "reboot"], timeout=120)
        if not processes.wait_end(pid, seconds):
            raise UserError(f"{self.host.name} is not down {seconds:.0f}s after it was told to reboot")

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        with Qmp(self.folder) as qmp:
            qmp.execute("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run."""
        with Qmp(self.folder) as qmp:
            qmp.execute("cont")

    def save(self, tag: str) -> None:
        """Save memory and disk in the disk's file, in place of an earlier snapshot of that name."""
        with Qmp(self.folder, timeout=_SNAPSHOT_SECONDS) as qmp:
            if tag in qmp.snapshots(qemu.DISK):
                qmp.job("snapshot-delete", f"delete-{tag}", _SNAPSHOT_SECONDS, tag=tag, devices=[qemu.DISK])
            qmp.job(
                "snapshot-save", f"save-{tag}", _SNAPSHOT_SECONDS,
                tag=tag, vmstate=qemu.DISK, devices=[qemu.DISK],
            )  # fmt: skip

    def hold_for_load(self) -> None:
        """Have QEMU run with the guest's CPUs stopped."""
        if self.pid is None:
            self.start(paused=True)
        self.pause()

    def load(self, tag: str) -> None:
        """Load memory and disk; the guest stays paused."""
        # The key in the guest will be the one of that time.
        self.forget_packages()
        with Qmp(self.folder, timeout=_SNAPSHOT_SECONDS) as qmp:
            qmp.job(
                "snapshot-load", f"load-{tag}", _SNAPSHOT_SECONDS,
                tag=tag, vmstate=qemu.DISK, devices=[qemu.DISK],
            )  # fmt: skip

    def snapshots(self) -> list[str]:
        """The tags that its disk holds, whether it runs or not."""
        if self.pid is not None:
            with Qmp(self.folder) as qmp:
                return qmp.snapshots(qemu.DISK)
        disk = self.folder / self.disk_file
        if not disk.exists():
            return []
        command = [requirements.program("qemu-img"), "snapshot", "-l", disk.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"the disk of {self.host.name} can't be read: {done.stderr.strip()}")
        rows = [line.split() for line in done.stdout.splitlines()]
        return [row[1] for row in rows if len(row) > 2 and row[0].isdigit()]

    def resident(self) -> int | None:
        """MiB of memory that QEMU holds."""
        pid = self.pid
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
