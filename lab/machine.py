"""One virtual machine: its folder, its process, its boot, its snapshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from lab import processes, qemu, requirements, seed, ssh
from lab.errors import Trouble
from lab.files import write_atomic
from lab.options import Host
from lab.paths import lab_command
from lab.progress import Progress
from lab.qmp import Qmp

_CONSOLE_LINES = 25
# Saving or loading a guest of a few GiB is a matter of seconds; a busy disk may take longer.
_SNAPSHOT_SECONDS = 600.0
# Two thirds of the control plane's share where there isn't enough for all. With a third (5), workers of a
# lab of three were starved: their kubelets took minutes to start a container.
_WORKERS_NICENESS = 2
# For a guest that QEMU stopped at a full disk: with less it would stand again at once.
_ROOM_TO_GO_ON = 1 << 30  # bytes
# What the kernel or the lab's initramfs says on the console when a boot can't go on.
_FATAL = ("Kernel panic", "lab: ", "You are in emergency mode")


@dataclass(frozen=True)
class Vm:
    """A host of a lab, as files and as a process.

    The folder holds disk.qcow2, seed.tar, console.log, qemu.log, qmp.sock, qemu.pid and
    the host's SSH key; paths in the command line are relative to it.
    """

    lab_folder: Path
    machine: qemu.Machine

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
        """QEMU's process id, if it runs."""
        mark = qemu.guest_name(self.machine.lab, self.host.name)
        found = processes.running(self.folder / "qemu.pid", mark)
        # Another state folder may hold a lab of the same name: look where the process works.
        if found is not None and _working_folder(found) != self.folder.resolve():
            return None
        return found

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
                pods_first=self.machine.accelerator == "tcg" and self.host.role == "control-plane",
            )
            write_atomic(self._packages_known, packages_key)
            write_atomic(self.folder / "seed.tar", seed.archive(identity), 0o600)
        if not (self.folder / "disk.qcow2").exists():
            draft = self.folder / ".disk.draft"
            base = os.path.relpath(disk, self.folder)
            command = [
                requirements.program("qemu-img"),
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                base,
            ]
            done = subprocess.run(
                [*command, draft.name], cwd=self.folder, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise Trouble(f"the disk of {self.host.name} can't be made: {done.stderr.strip()}")
            draft.replace(self.folder / "disk.qcow2")

    def start(self, *, paused: bool = False) -> None:
        """Start QEMU; nothing happens if it runs.

        :raises Trouble: it ends at once; with what it said.
        """
        if self.pid is not None:
            return
        for name in ("qemu.pid", "qmp.sock", "booted"):
            (self.folder / name).unlink(missing_ok=True)
        log = self.folder / "qemu.log"
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
                raise Trouble(f"QEMU of {self.host.name} doesn't start:\n{_tail(log, 10)}")
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

        :raises Trouble: QEMU doesn't say.
        """
        if self.pid is None:
            return None
        with Qmp(self.folder) as qmp:
            status: str = qmp.execute("query-status")["status"]
        return None if status == "running" else status

    def let_run(self, progress: Progress) -> None:
        """Let a guest run whose CPUs stand: at a full disk's end, or after a snapshot that was cut off.

        :raises Trouble: QEMU couldn't write the disk, and there is no more room than before.
        """
        why = self.held()
        if why is None:
            return
        if why == "io-error":
            free = shutil.disk_usage(self.folder).free
            if free < _ROOM_TO_GO_ON:
                raise Trouble(
                    f"QEMU stopped {self.host.name} when it couldn't write its disk: "
                    f"{self.folder} has {free >> 20} MiB left",
                    f"make room, then {lab_command('up', self.machine.lab)}: the host goes on where it stood",
                )
        progress.say(f"{self.host.name}: stood still (QEMU says {why}); it goes on")
        self.resume()

    def wait_answers(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait until the host's SSH server greets.

        :param seconds: how long it may take.
        :param cancelled: set when another host failed, so that this wait is of no use any more.
        :raises Trouble: it doesn't; with the console's last lines.
        """
        begun = time.monotonic()
        log = self.folder / "qemu.log"
        while not ssh.greets(self.ssh_port):
            if cancelled.is_set():
                return
            if self.pid is None:
                raise self._no_boot(f"QEMU of {self.host.name} ended: {_tail(log, 3)}")
            fatal = self._fatal_line()
            if fatal is not None:
                raise self._no_boot(f"{self.host.name} doesn't boot: {fatal}")
            if time.monotonic() - begun > seconds:
                why = self.held()
                cause = f" (QEMU holds it: {why})" if why else ""
                raise self._no_boot(f"{self.host.name} doesn't answer by SSH after {seconds:.0f}s{cause}")
            time.sleep(0.25)
        progress.say(f"{self.host.name}: SSH answers after {time.monotonic() - begun:.0f}s")

    def wait_ready(self, seconds: float, progress: Progress, cancelled: threading.Event) -> None:
        """Wait until the host has booted: SSH answers with the pinned key, and systemd is done.

        :param seconds: how long it may take.
        :param cancelled: set when another host failed, so that this wait is of no use any more.
        :raises Trouble: it doesn't; with the console's last lines.
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
        self._note_booted()
        progress.say(f"{self.host.name}: ready after {time.monotonic() - begun:.0f}s")

    def _note_booted(self) -> None:
        write_atomic(self.folder / "booted", str(self.pid))

    @property
    def booted(self) -> bool:
        """Whether the guest of this QEMU has been ready once, whatever has become of it since."""
        note = self.folder / "booted"
        return note.exists() and note.read_text() == str(self.pid)

    def _final_state(self, deadline: float, cancelled: threading.Event) -> str:
        """systemd's word for the finished boot; a login that fails on a busy host is tried again."""
        command = ["systemctl", "is-system-running", "--wait"]
        while True:
            left = max(60.0, deadline - time.monotonic())
            try:
                return ssh.run(self.lab_folder, self.ssh_port, command, timeout=left).stdout.strip()
            except Trouble as trouble:
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

    def trust_packages(self, key: str) -> None:
        """Give a running host the package repository's key, if it was seeded with another one.

        :raises Trouble: the host doesn't take it.
        """
        known = self._packages_known
        if known.exists() and known.read_text() == key:
            return
        command = ["tee", f"/{seed.KEY_PLACE[self.machine.family]}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, input=key, timeout=120)
        if done.returncode != 0:
            raise Trouble(f"{self.host.name} doesn't take the packages' key: {done.stderr.strip()}")
        write_atomic(known, key)

    def _fatal_line(self) -> str | None:
        for line in _tail(self.folder / "console.log", 60).splitlines():
            if any(mark in line for mark in _FATAL):
                return line.strip()
        return None

    def _no_boot(self, what: str) -> Trouble:
        console = self.folder / "console.log"
        return Trouble(
            f"{what}\nthe console's last lines ({console}):\n{_tail(console, _CONSOLE_LINES)}",
            f"{lab_command('down', self.machine.lab)}, then up again; "
            "if it fails at the same place, the console says where",
        )

    @property
    def answers(self) -> bool:
        """Whether QEMU runs and the guest's SSH server greets.

        The host key was checked when it booted; a login would take an emulated host seconds.
        """
        return self.pid is not None and ssh.greets(self.ssh_port)

    def shut_down_for_reboot(self, seconds: float) -> None:
        """Have the guest reboot, with QEMU ending where it would reset the machine.

        A reset in place makes QEMU 10 fail now and then when it emulates several CPUs (an
        assertion in iotlb_to_section): a new process begins from nothing.

        :raises Trouble: the guest doesn't take the command, or isn't down in time.
        """
        pid = self.pid
        if pid is None:
            raise Trouble(f"{self.host.name} doesn't run", lab_command("up", self.machine.lab))
        with Qmp(self.folder) as qmp:
            qmp.execute("set-action", reboot="shutdown")
        # The connection may be cut before the command's end: whether QEMU ends decides.
        with contextlib.suppress(Trouble):
            ssh.run(self.lab_folder, self.ssh_port, ["systemctl", "reboot"], timeout=120)
        if not processes.wait_end(pid, seconds):
            raise Trouble(f"{self.host.name} is not down {seconds:.0f}s after it was told to reboot")

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

    def load(self, tag: str) -> None:
        """Load memory and disk; the guest stays paused."""
        # The key in the guest will be the one of that time.
        self._packages_known.unlink(missing_ok=True)
        with Qmp(self.folder, timeout=_SNAPSHOT_SECONDS) as qmp:
            qmp.job(
                "snapshot-load", f"load-{tag}", _SNAPSHOT_SECONDS,
                tag=tag, vmstate=qemu.DISK, devices=[qemu.DISK],
            )  # fmt: skip
        self._note_booted()

    def snapshots(self) -> list[str]:
        """The tags that its disk holds, whether it runs or not."""
        if self.pid is not None:
            with Qmp(self.folder) as qmp:
                return qmp.snapshots(qemu.DISK)
        disk = self.folder / "disk.qcow2"
        if not disk.exists():
            return []
        command = [requirements.program("qemu-img"), "snapshot", "-l", disk.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Trouble(f"the disk of {self.host.name} can't be read: {done.stderr.strip()}")
        rows = [line.split() for line in done.stdout.splitlines()]
        return [row[1] for row in rows if len(row) > 2 and row[0].isdigit()]

    def set_clock(self) -> None:
        """Set the guest's clock to this machine's: after a restore it is as it was at the snapshot."""
        command = ["date", "--utc", "--set", f"@{time.time():.3f}"]
        done = ssh.run(self.lab_folder, self.ssh_port, command, timeout=120)
        if done.returncode != 0:
            raise Trouble(f"the clock of {self.host.name} can't be set: {done.stderr.strip()}")

    def stop(self) -> None:
        """End QEMU at once, without shutting the guest down: its disk is thrown away, or was saved."""
        if self.pid is not None:
            processes.end(self.folder / "qemu.pid", qemu.guest_name(self.machine.lab, self.host.name))


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
        raise Trouble(f"no key could be made at {path}: {done.stderr.strip()}")
    draft.with_name(draft.name + ".pub").replace(path.with_name(path.name + ".pub"))
    draft.replace(path)


def _working_folder(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(nothing)"
