"""A host that QEMU runs, with KVM or emulated; `lab.qemu` has its command line."""

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

# Saving or loading a guest of a few GiB takes seconds, longer on a busy disk.
_SNAPSHOT_SECONDS = 600.0
# Under contention a worker gets two thirds of the control plane's CPU share. With one third (nice 5), both
# workers of a lab with three hosts starved: their kubelets took minutes to start a container.
_WORKERS_NICENESS = 2
# Free space needed to resume a guest that QEMU paused on a full disk; with less it would pause again.
_ROOM_TO_RESUME = 1 << 30  # bytes


@dataclass(frozen=True)
class QemuVm(Vm):
    """A host and its QEMU process, controlled through qmp.sock."""

    program = "QEMU"
    pid_file = "qemu.pid"
    disk_file = "disk.qcow2"
    log_file = "qemu.log"

    def make_disk(self, base: Path) -> None:
        """Create the disk; see `Vm.make_disk`."""
        if (self.folder / self.disk_file).exists():
            return
        draft = self.folder / ".disk.draft"
        overlay = ("create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.path.relpath(base, self.folder))
        command = [requirements.program("qemu-img"), *overlay, draft.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"can't create the disk of {self.host.name}: {done.stderr.strip()}")
        draft.replace(self.folder / self.disk_file)

    def start(self, *, paused: bool = False) -> None:
        """Start QEMU; see `Vm.start`.

        Args:
            paused: Start with the CPUs stopped, so that a snapshot can be loaded first.
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
                start_new_session=True,  # so that Ctrl-C in the terminal doesn't stop it
            )
        if scheduling:
            # With autogrouping, Linux applies nice values only within a session. Between sessions, the nice
            # values of their autogroups count.
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/autogroup").write_text(str(_WORKERS_NICENESS))
        deadline = time.monotonic() + 60
        while not (self.folder / "qmp.sock").exists() or self.pid is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"QEMU for {self.host.name} didn't start:\n{tail(log, 10)}")
            time.sleep(0.02)

    def _scheduling(self) -> tuple[str, ...]:
        """The command prefix that gives emulated workers a lower CPU priority than the control plane.

        The workers depend on the control plane, which is also what fails first when it is slow.
        """
        if self.machine.accelerator == "kvm" or self.host.role == "control-plane":
            return ()
        return ("nice", "-n", str(_WORKERS_NICENESS))

    def paused_reason(self) -> str | None:
        """QEMU's status for a guest whose CPUs are stopped; None if they run or QEMU isn't started.

        Raises:
            UserError: QEMU doesn't respond.
        """
        if self.pid is None:
            return None
        with Qmp(self.folder) as qmp:
            status: str = qmp.execute("query-status")["status"]
        return None if status == "running" else status

    def unpause(self, progress: Progress) -> None:
        """Resume a guest that was paused by a full disk or by an interrupted snapshot.

        Raises:
            UserError: QEMU paused it on a full disk, and the disk is still full.
        """
        reason = self.paused_reason()
        if reason is None:
            return
        if reason == "io-error":
            free = shutil.disk_usage(self.folder).free
            if free < _ROOM_TO_RESUME:
                raise UserError(
                    f"QEMU paused {self.host.name} because it couldn't write the disk: "
                    f"{self.folder} has {free >> 20} MiB left",
                    f"free some disk space, then {lab_command('up', self.machine.lab)}; the host resumes",
                )
        progress.say(f"{self.host.name}: was paused (QEMU status: {reason}); resuming it")
        self.resume()

    def shut_down_for_reboot(self, seconds: float) -> None:
        """Reboot the guest, with QEMU set to exit instead of resetting the machine.

        A reset in place sometimes crashes QEMU 10 when it emulates several CPUs (an assertion in
        iotlb_to_section); a new process avoids that.

        Raises:
            UserError: The guest isn't running, or doesn't shut down in time.
        """
        pid = self.pid
        if pid is None:
            raise UserError(f"{self.host.name} isn't running", lab_command("up", self.machine.lab))
        with Qmp(self.folder) as qmp:
            qmp.execute("set-action", reboot="shutdown")
        # The connection may be cut before the command finishes, so QEMU's exit decides.
        with contextlib.suppress(UserError):
            ssh.run(self.lab_folder, self.ssh_port, ["systemctl", "reboot"], timeout=120)
        if not processes.wait_end(pid, seconds):
            raise UserError(f"{self.host.name} hasn't shut down {seconds:.0f}s after the reboot command")

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        with Qmp(self.folder) as qmp:
            qmp.execute("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run."""
        with Qmp(self.folder) as qmp:
            qmp.execute("cont")

    def save(self, tag: str) -> None:
        """Save memory and disk in the disk file, replacing an earlier snapshot of that name."""
        with Qmp(self.folder, timeout=_SNAPSHOT_SECONDS) as qmp:
            if tag in qmp.snapshots(qemu.DISK):
                qmp.job("snapshot-delete", f"delete-{tag}", _SNAPSHOT_SECONDS, tag=tag, devices=[qemu.DISK])
            qmp.job(
                "snapshot-save", f"save-{tag}", _SNAPSHOT_SECONDS,
                tag=tag, vmstate=qemu.DISK, devices=[qemu.DISK],
            )  # fmt: skip

    def prepare_load(self) -> None:
        """Start QEMU if it isn't running, and stop the guest's CPUs."""
        if self.pid is None:
            self.start(paused=True)
        self.pause()

    def load(self, tag: str) -> None:
        """Restore memory and disk; the guest stays paused."""
        # The guest will have the repository key from the time of the snapshot.
        self.forget_packages_key()
        with Qmp(self.folder, timeout=_SNAPSHOT_SECONDS) as qmp:
            qmp.job(
                "snapshot-load", f"load-{tag}", _SNAPSHOT_SECONDS,
                tag=tag, vmstate=qemu.DISK, devices=[qemu.DISK],
            )  # fmt: skip

    def snapshots(self) -> list[str]:
        """The tags of the snapshots in the disk, whether the guest is running or not."""
        if self.pid is not None:
            with Qmp(self.folder) as qmp:
                return qmp.snapshots(qemu.DISK)
        disk = self.folder / self.disk_file
        if not disk.exists():
            return []
        command = [requirements.program("qemu-img"), "snapshot", "-l", disk.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"can't read the disk of {self.host.name}: {done.stderr.strip()}")
        rows = [line.split() for line in done.stdout.splitlines()]
        return [row[1] for row in rows if len(row) > 2 and row[0].isdigit()]

    def resident(self) -> int | None:
        """MiB of QEMU's resident memory."""
        pid = self.pid
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
