"""`Lab`: everything that the command line does with a lab, for Python code such as tools and tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from common import paths, processes
from common.errors import UserError
from common.files import locked, write_atomic
from common.paths import DEFAULT_LAB, lab_command
from common.progress import Progress
from lab import logs, network, provision, record, services, snapshots, ssh, stackfile, startup
from lab.hardware import guest_name
from lab.machine import Vm
from lab.options import Family, Options
from lab.ports import Ports
from lab.provision import Source
from lab.qemu_machine import QemuVm
from lab.record import Record
from lab.status import LabStatus, lab_status
from lab.uml_machine import UmlVm
from lab.vms import BOOT_SECONDS, create_vms, wait_for_all


class Lab:
    """A lab, which may or may not exist.

    Attributes:
        name: The lab's name.
        folder: The lab's folder, which exists only while the lab does.
    """

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        self.name = name
        self.folder = paths.lab_dir(name)
        self._progress = progress or Progress()

    @classmethod
    def load(cls, name: str = DEFAULT_LAB, progress: Progress | None = None) -> Self:
        """The lab with a name; nothing is read or created yet.

        Args:
            name: The lab's name.
            progress: Reports to standard error by default.

        Raises:
            UserError: The name isn't a valid lab name.
        """
        return cls(name, progress)

    @property
    def exists(self) -> bool:
        """Whether the lab has been created and not removed since."""
        return record.record_path(self.name).exists()

    @property
    def options(self) -> Options:
        """The options that the lab was created with.

        Raises:
            UserError: There is no such lab.
        """
        return self._record().options

    @property
    def ports(self) -> Ports:
        """The lab's ports on 127.0.0.1.

        Raises:
            UserError: There is no such lab.
        """
        return self._record().ports

    def _record(self) -> Record:
        return record.load(self.name)

    def _locked(self) -> AbstractContextManager[None]:
        # The lock is next to the lab's folder, because `down` removes the folder.
        return locked(paths.labs_dir() / f".{self.name}.lock", self._progress, f"lab {self.name}")

    def _vm(self, host: str) -> Vm:
        vms = {vm.host.name: vm for vm in create_vms(self.folder, self._record())}
        if host not in vms:
            raise UserError(f"the lab '{self.name}' has no host '{host}'", f"use one of {', '.join(vms)}")
        return vms[host]

    def up(
        self,
        *,
        count: int | None = None,
        memory: int | None = None,
        cpus: int | None = None,
        release: str | None = None,
        family: Family | None = None,
        source: Source = "auto",
    ) -> LabStatus:
        """Create the lab, or the parts of it that are missing; a lab that is up isn't changed.

        An option that isn't given keeps its value in an existing lab and gets the default in a new one.

        Args:
            count: The number of hosts.
            memory: MiB per host.
            cpus: CPUs per host.
            release: Debian's code name.
            family: The hosts' package family.
            source: Where packages and images come from.

        Raises:
            UserError: A step fails, or the lab exists with other options.
        """
        options = {"count": count, "memory": memory, "cpus": cpus, "release": release, "family": family}
        wanted = {key: value for key, value in options.items() if value is not None}
        with self._locked():
            saved = record.load_or_create(self.name, wanted, self._progress)
            if not startup.is_up(self.folder, saved):
                saved = provision.provide(self.folder, saved, source, self._progress)
                startup.start(self.folder, saved, self._progress)
            # Even if it is up: an earlier version of this program may have created it.
            stackfile.write_settings(self.folder, saved.accelerator)
            status = lab_status(self.folder, saved)
            write_atomic(self.folder / "status.json", status.to_json())
            return status

    def reboot(self, host: str) -> None:
        """Reboot a host and wait until it is ready.

        Raises:
            UserError: There is no such host, or it doesn't shut down or boot.
        """
        vm = self._vm(host)
        with self._locked(), self._progress.step(f"hosts: rebooting {host}"):
            vm.shut_down_for_reboot(BOOT_SECONDS[vm.machine.accelerator])
            vm.start()
            wait_for_all((vm,), Vm.wait_ready, self._progress)

    def power_off(self, host: str) -> None:
        """Cut a host's power without shutting it down; `up` starts it again.

        Raises:
            UserError: There is no such host, or its process can't be stopped.
        """
        vm = self._vm(host)
        with self._locked():
            vm.stop()

    def down(self) -> None:
        """Stop hosts and servers, and remove disks, keys and snapshots; do nothing if there is no lab.

        Raises:
            UserError: A process can't be stopped.
        """
        with self._locked():
            if not self.folder.exists():
                self._progress.say(f"lab {self.name}: does not exist")
                return
            with self._progress.step(f"lab {self.name}: stopping hosts and services, removing disks"):
                # Find them by their pid files: the record may be damaged.
                for kind in (QemuVm, UmlVm):
                    for pid_file in self.folder.glob(f"*/{kind.pid_file}"):
                        processes.end(pid_file, guest_name(self.name, pid_file.parent.name))
                network.stop(self.folder)
                for name in ("packages", "registry"):
                    services.stop(self.folder, name)
                # Rename the folder first: if the removal is interrupted, `prune` finishes it.
                trash = paths.labs_dir() / f".removed-{self.name}-{os.getpid()}"
                self.folder.replace(trash)
                shutil.rmtree(trash)

    def status(self) -> LabStatus:
        """The lab's current status.

        Raises:
            UserError: There is no such lab.
        """
        return lab_status(self.folder, self._record())

    def ssh(
        self,
        host: str,
        argv: Sequence[str],
        input: str | None = None,  # noqa: A002 - the name that subprocess uses
        timeout: float = 600.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root; the caller checks its exit status.

        Args:
            host: The host's name.
            argv: The command's words, quoted for the remote shell.
            input: The command's standard input.
            timeout: Seconds until the connection is closed.

        Raises:
            UserError: There is no such host, or SSH itself fails.
        """
        return ssh.run(self.folder, self._vm(host).ssh_port, argv, input=input, timeout=timeout)

    def ssh_command(self, host: str, *, tty: bool) -> list[str]:
        """The ssh command line for a host, for an interactive session.

        Raises:
            UserError: There is no such host.
        """
        return ssh.command(self.folder, self._vm(host).ssh_port, tty=tty)

    def console(self, host: str) -> str:
        """A host's console output.

        Raises:
            UserError: There is no such host, or it was never started.
        """
        path = self._vm(host).folder / "console.log"
        if not path.exists():
            raise UserError(f"{host} has never been started", lab_command("up", self.name))
        return path.read_text(errors="replace")

    def journal(self, host: str) -> str:
        """A host's journal since its last boot.

        Raises:
            UserError: There is no such host, or SSH fails.
        """
        return self.ssh(host, ["journalctl", "--no-pager", "--boot"], timeout=300).stdout

    def collect_logs(self, folder: Path) -> None:
        """Write the logs of all hosts and servers to a folder, created if needed.

        A host that doesn't respond gets a note instead; the other hosts are still collected.

        Raises:
            UserError: There is no such lab.
        """
        logs.collect(self.folder, self._record(), folder)

    def snapshot(self, tag: str) -> None:
        """Save all hosts together, replacing an earlier snapshot of that name.

        Memory is saved as well with QEMU, but not under User Mode Linux.

        Raises:
            UserError: A host isn't running, or can't be saved.
        """
        snapshots.check_tag(tag)
        with self._locked():
            snapshots.save(self.folder, self._record(), tag, self._progress)

    def restore(self, tag: str) -> None:
        """Restore all hosts to a snapshot, whether they are running or not, and set their clocks.

        Raises:
            UserError: A host doesn't have the snapshot, or can't be restored.
        """
        snapshots.check_tag(tag)
        with self._locked():
            snapshots.restore(self.folder, self._record(), tag, self._progress)
