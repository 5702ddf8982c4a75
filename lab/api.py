"""The lab as Python sees it: what the command line does, tests do by this."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from common import paths, processes
from common.errors import UserError
from common.files import digest_of, finished, link_or_copy, locked, write_atomic
from common.paths import DEFAULT_LAB, lab_command
from common.progress import Progress
from lab import network, ports, requirements, services, ssh, stackfile, uml
from lab.accelerator import Decision, choose
from lab.hardware import Accelerator, Machine, guest_name
from lab.image import Image, ensure_base, ensure_image
from lab.image import prune as prune_images
from lab.machine import Vm, make_key
from lab.options import Family, Host, Options
from lab.ports import LOOPBACK, Ports
from lab.qemu_machine import QemuVm
from lab.uml_machine import UmlVm, memory_folder

T = TypeVar("T")
HostState = Literal["ready", "booting", "paused", "stopped"]
Source = Literal["auto", "build", "upstream"]

# From power-on to systemd's end; emulated, with builds beside it, several minutes happen.
_BOOT_SECONDS: dict[Accelerator, float] = {"kvm": 180.0, "uml": 300.0, "tcg": 1200.0}
# An emulated host that is up but busy has been seen to take longer than two seconds.
_GREETING_SECONDS: dict[Accelerator, float] = {"kvm": 2.0, "uml": 5.0, "tcg": 15.0}

# Packages, image and mirror in the making, and hosts' disks as they grow.
_DISK_NEEDED = 6 << 30  # bytes

_LOG_COMMANDS: dict[str, str] = {
    "journal.txt": "journalctl --no-pager --boot -o short-precise",
    "units.txt": "systemctl --no-pager --failed; systemctl --no-pager list-units --type=service",
    "network.txt": "ip -d address; ip route; ip rule; ip neigh; cat /etc/resolv.conf",
    "ipvs.txt": "ipvsadm -Ln; ipvsadm -Ln --stats; ipset list",
    "nftables.txt": "nft list ruleset",
    "containers.txt": "crictl ps -a; crictl pods; ctr -n k8s.io images list",
    "memory.txt": "free -m; ps aux --sort=-rss | head -40; df -h; uptime; cat /proc/pressure/*",
    "pods.txt": "find /var/log/pods -name '*.log' -print -exec tail -n 200 {} ';'",
}


@dataclass(frozen=True)
class HostStatus:
    """One host as it is now."""

    name: str
    role: str
    address: str  # on the lab's LAN
    ssh_host: str
    ssh_port: int
    state: HostState
    pid: int | None  # of what runs the guest
    cpus: int
    memory: int  # MiB that the guest may use
    resident: int | None  # MiB of this machine's memory that the guest holds now


@dataclass(frozen=True)
class ServiceStatus:
    """One of the lab's servers on this machine as it is now."""

    name: str
    url: str  # as guests reach it
    pid: int | None
    answers: bool


@dataclass(frozen=True)
class LabStatus:
    """A whole lab as it is now."""

    name: str
    ready: bool  # every host answers and every service too
    release: str
    family: str  # of the hosts' packages
    accelerator: str
    accelerator_reason: str
    image: str  # the image's key
    packages_from: str  # whether the mirror was built or taken from upstream, and why
    api: str  # `host:port` that leads to the control plane's API server
    node_ports: tuple[str, ...]  # URLs that lead to port 30080 of a host each
    hosts: tuple[HostStatus, ...]
    services: tuple[ServiceStatus, ...]
    snapshots: tuple[str, ...]  # tags that all hosts hold

    def to_json(self) -> str:
        """The same as JSON, for `status --json` and status.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class _Record:
    """What a lab keeps about itself in lab.json; grows while it is made."""

    options: Options
    ports: Ports
    image: str = ""
    accelerator: Accelerator = "tcg"
    accelerator_reason: str = ""
    mirror: str = ""
    mirror_root: str = ""
    registry_data: str = ""

    @staticmethod
    def read(path: Path) -> _Record:
        raw: dict[str, Any] = json.loads(path.read_text())
        raw["options"] = Options(**raw["options"])
        raw["ports"] = _Record.ports_of(raw)
        return _Record(**raw)

    @staticmethod
    def ports_of(raw: dict[str, Any]) -> Ports:
        """The ports alone: another version of this program may have written the rest otherwise."""
        plain: dict[str, Any] = dict(raw["ports"])
        plain |= {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
        return Ports(**plain)

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n", 0o600)


class Lab:
    """A lab by its name, whether it exists or not."""

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        """Nothing is read or made yet; see `load`.

        :param progress: where progress goes; standard error if none is given.
        """
        self.name = name
        self.folder = paths.lab_dir(name)
        self._progress = progress or Progress()

    @classmethod
    def load(cls, name: str = DEFAULT_LAB, progress: Progress | None = None) -> Self:
        """A lab by its name.

        :raises UserError: the name can't be a lab's.
        """
        return cls(name, progress)

    # -- what it is -------------------------------------------------------

    @property
    def _record_path(self) -> Path:
        return self.folder / "lab.json"

    @property
    def exists(self) -> bool:
        """Whether it was made and not taken down since."""
        return self._record_path.exists()

    @property
    def options(self) -> Options:
        """What it was made with.

        :raises UserError: there is no such lab.
        """
        return self._read().options

    @property
    def ports(self) -> Ports:
        """Its ports on 127.0.0.1.

        :raises UserError: there is no such lab.
        """
        return self._read().ports

    def _read(self) -> _Record:
        if not self.exists:
            raise UserError(f"there is no lab '{self.name}'", lab_command("up", self.name))
        try:
            return _Record.read(self._record_path)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._record_path} can't be understood: {error}", lab_command("down", self.name)
            ) from None

    def _vms(self, record: _Record) -> tuple[Vm, ...]:
        hosts = record.options.hosts()
        order = [host for host in hosts if host.role == "worker"] + [
            host for host in hosts if host.role != "worker"
        ]
        number = int(digest_of(str(self.folder))[:2], 16)
        under_uml = record.accelerator == "uml"
        kind: type[Vm] = UmlVm if under_uml else QemuVm

        def vm(host: Host) -> Vm:
            # With a second CPU every system call of a User Mode Linux guest wakes a sleeping CPU of this
            # machine. Whoever asks for more gets them.
            cpus = (record.options.cpus or 1) if under_uml else host.cpus
            return kind(
                self.folder,
                Machine(
                    lab=self.name,
                    host=dataclasses.replace(host, cpus=cpus),
                    workers_first=order.index(host),
                    ports=record.ports,
                    accelerator=record.accelerator,
                    kernel=Path("../base") / (uml.KERNEL if under_uml else "vmlinuz"),
                    initrd=Path("../base") / (uml.INITRD if under_uml else "initrd"),
                    network_id=number,
                    family=record.options.family,
                    lab_memory=sum(host.memory for host in hosts),
                ),
            )

        return tuple(map(vm, hosts))

    def _vm(self, host: str) -> Vm:
        vms = {vm.host.name: vm for vm in self._vms(self._read())}
        if host not in vms:
            raise UserError(f"the lab '{self.name}' has no host '{host}'", f"its hosts: {', '.join(vms)}")
        return vms[host]

    def _services(self, record: _Record) -> tuple[services.Service, ...]:
        if not record.mirror_root:
            return ()
        root, data = Path(record.mirror_root), Path(record.registry_data)
        return services.services(record.ports, root, data, record.options.release, record.options.family)

    def _lock_path(self) -> Path:
        # Beside the lab's folder, which `down` removes.
        return paths.labs_dir() / f".{self.name}.lock"

    # -- up ---------------------------------------------------------------

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
        """Make the lab, or what is missing of it; a lab that is up is left alone.

        :param count: hosts; None: as it is, or the default.
        :param memory: MiB for each host; likewise.
        :param cpus: CPUs for each host; likewise.
        :param release: Debian's code name; likewise.
        :param family: what the hosts' packages are; likewise.
        :param source: where packages and images come from: `auto`, `build` or `upstream`.
        :raises UserError: something can't be done, or the lab exists with other options.
        """
        asked = {"count": count, "memory": memory, "cpus": cpus, "release": release, "family": family}
        wanted = {key: value for key, value in asked.items() if value is not None}
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            record = self._begin(wanted)
            if not self._is_up(record):
                record = self._provide(record, source)
                self._start(record)
            # Also for a lab that an earlier version of this program has made.
            stackfile.write_settings(self.folder, record.accelerator)
            status = self.status()
            write_atomic(self.folder / "status.json", status.to_json())
            return status

    def _begin(self, wanted: dict[str, Any]) -> _Record:
        """The lab's record, made if there is none."""
        if self.exists:
            record = self._read()
            now = asdict(record.options)
            differing = [
                f"{key}: is {now[key]}, asked for {wanted[key]}" for key in wanted if now[key] != wanted[key]
            ]
            if differing:
                raise UserError(
                    f"the lab '{self.name}' exists with other options:\n" + "\n".join(differing),
                    f"{lab_command('down', self.name)}, then up again",
                )
            return record
        options = Options(name=self.name, **wanted)
        # Ports are chosen and written down under one lock, so that two new labs don't choose the same.
        with locked(paths.labs_dir() / ".ports.lock", self._progress, "ports"):
            chosen = self._choose_ports(options.count)
            record = _Record(options, chosen)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            record.write(self._record_path)
        return record

    def _choose_ports(self, count: int) -> Ports:
        if self.name == DEFAULT_LAB:
            chosen = ports.fixed(count)
            ports.check_free(chosen.tcp())
            return chosen
        reserved: set[int] = set()
        for path in paths.labs_dir().glob("*/lab.json"):
            try:
                other = _Record.ports_of(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError, KeyError) as error:
                self._progress.say(f"{path} can't be understood, so its ports may be taken again: {error}")
                continue
            reserved |= {*other.tcp(), other.lan}
        return ports.free(count, reserved)

    def _is_up(self, record: _Record) -> bool:
        vms = self._vms(record)
        if not record.mirror_root or any(vm.pid is None for vm in vms):
            return False
        if not all(services.running_as_wanted(self.folder, service) for service in self._services(record)):
            return False
        return all(self._each(lambda vm: vm.answers, vms))

    def _check_ports(self, record: _Record) -> None:
        """Refuse before anything starts if a port is taken by someone else."""
        wanted = record.ports.tcp()
        has_network = network.pid(self.folder) is not None
        for vm in self._vms(record):
            if has_network or (vm.pid is not None and record.accelerator != "uml"):
                mine = vm.machine.forwards
                wanted = {port: what for port, what in wanted.items() if port not in mine}
        for name, port in (("packages", record.ports.packages), ("registry", record.ports.registry)):
            if services.pid(self.folder, name) is not None:
                wanted.pop(port)
        ports.check_free(wanted)

    def _check_room(self, record: _Record) -> None:
        """Refuse where the disk is too full to make what is missing; say so where memory is short.

        A lab that has all it serves and boots from only begins again, and is what `make down` frees.

        :raises UserError: with the folder and what it has.
        """
        made = self._has_image and bool(record.mirror_root) and Path(record.mirror_root).exists()
        for folder in (self.folder, paths.cache_dir()):
            free = shutil.disk_usage(folder).free
            if free < _DISK_NEEDED and made:
                self._progress.say(
                    f"{folder} has {free >> 20} MiB left: QEMU stops a host whose disk can't be written"
                )
            elif free < _DISK_NEEDED:
                raise UserError(
                    f"{folder} has {free >> 30} GiB left, and the lab needs {_DISK_NEEDED >> 30}",
                    "make room (python3 -m lab prune), or set XDG_STATE_HOME and XDG_CACHE_HOME elsewhere",
                )
        wanted = sum(vm.host.memory for vm in self._vms(record) if vm.pid is None)
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable:"))
        if available < wanted:
            self._progress.say(
                f"memory: the hosts may use {wanted} MiB, and this machine has {available} MiB to give; "
                "if they get slow or are killed, end something or use --memory or --count"
            )

    def _provide(self, record: _Record, source: Source) -> _Record:
        """Everything that must be there before hosts start: mirror, image, keys, disks."""
        # Here and not above: the mirror's builders are needed only where something is made.
        from lab.artefacts import ensure_mirror, ensure_repositories

        release, family = record.options.release, record.options.family
        requirements.check(family)
        self._check_ports(record)
        self._check_room(record)
        progress = self._progress
        with ThreadPoolExecutor(1) as beside:
            # The base system is downloads and unpacking mostly; the mirror is compiling. Of use is it for
            # the image, and for the RPMs.
            wanted = family == "rpm" or not self._has_image
            base = beside.submit(ensure_base, release, family, progress) if wanted else None
            mirror = ensure_mirror(progress, source=source, debian_release=release)
            archive = base.result() if base else None
        root, archives = (
            mirror.root,
            tuple(sorted(path for path in mirror.preload.iterdir() if path.is_file())),
        )
        if archive and family == "rpm":
            # Hosts without a runtime hold no images either.
            root, archives = ensure_repositories(mirror, release, archive, progress), ()
        if not self._has_image:
            self._adopt(ensure_image(release, archives, family, progress))
        record = dataclasses.replace(record, image=(self.folder / "base/complete").read_text())
        base_folder = self.folder / "base"
        if not any(vm.pid for vm in self._vms(record)):
            # Hosts of one lab run alike, since they are saved and loaded together.
            decision: Decision = choose(base_folder, progress, disks=self._disks(record))
            progress.say(f"accelerator: {decision.accelerator} ({decision.reason})")
            record = dataclasses.replace(
                record, accelerator=decision.accelerator, accelerator_reason=decision.reason
            )
        record = dataclasses.replace(
            record, mirror=mirror.source, mirror_root=str(root), registry_data=str(mirror.registry_data)
        )
        record.write(self._record_path)
        make_key(self.folder / "id_ed25519", self.name)
        key = Path(mirror.key).read_text()
        write_atomic(self.folder / "packages.asc", key)
        vms = self._vms(record)
        authorized = (self.folder / "id_ed25519.pub").read_text()
        for vm in vms:
            vm.prepare(base_folder / "disk.raw", authorized, key, release)
        known = "".join(f"[{LOOPBACK}]:{vm.ssh_port} {vm.host_key()}\n" for vm in vms)
        write_atomic(self.folder / "known_hosts", known)
        stackfile.write(self.name, record.options, record.ports, self.folder, progress)
        return record

    def _disks(self, record: _Record) -> Accelerator | None:
        """What the hosts have run by, if any has a disk."""
        there = any((vm.folder / vm.disk_file).exists() for vm in self._vms(record))
        return record.accelerator if there else None

    @property
    def _has_image(self) -> bool:
        return (self.folder / "base/complete").exists()

    def _adopt(self, image: Image) -> None:
        """Link the image into the lab, which then lives on when the cache is deleted."""
        folder = self.folder / "base"
        folder.mkdir(exist_ok=True)
        for source in (image.disk, image.kernel, image.initrd):
            link_or_copy(source, folder / source.name)
        write_atomic(folder / "complete", image.key)

    def _start(self, record: _Record) -> None:
        """Start services and hosts, and wait until they are ready."""
        progress = self._progress
        for service in self._services(record):
            services.start(self.folder, service)
        progress.say(
            f"services: packages at http://{LOOPBACK}:{record.ports.packages}, "
            f"registry at http://{LOOPBACK}:{record.ports.registry}"
        )
        vms = self._vms(record)
        self._start_network(record, vms)
        names = ", ".join(vm.host.name for vm in vms)
        booted = [vm for vm in vms if vm.booted]
        booting = [vm for vm in vms if vm not in booted]
        with progress.step(f"hosts: booting {names} ({record.accelerator})", every=15):
            for vm in vms:
                vm.let_run(progress.scope("hosts"))
                vm.start()
            self._wait(Vm.wait_ready, record, booting)
            # What has become of a host since its boot is for whoever uses it to judge.
            self._wait(Vm.wait_answers, record, booted)
        # The mirror's key is made anew with the cache: hosts that were seeded before get to know it.
        key = (self.folder / "packages.asc").read_text()
        self._each(lambda vm: vm.trust_packages(key), vms)

    def _start_network(self, record: _Record, vms: Sequence[Vm]) -> None:
        """Start the network of hosts under User Mode Linux; QEMU has its own."""
        if record.accelerator == "uml":
            needed = vms[0].machine.lab_memory
            if memory_folder(self.folder, needed) == self.folder:
                self._progress.say(
                    f"memory: /dev/shm has no room for {needed} MiB, so the hosts' memory is a file in "
                    f"{self.folder}, which is slower; a container may need a larger /dev/shm"
                )
            network.start(self.folder, self.folder / "base" / network.PROGRAM, vms, self._progress)

    def _wait(
        self,
        for_what: Callable[[Vm, float, Progress, threading.Event], None],
        record: _Record,
        vms: Sequence[Vm],
    ) -> None:
        """Wait for all of them by `Vm.wait_ready` or `Vm.wait_answers`; the first failure ends it."""
        failed = threading.Event()

        def wait(vm: Vm) -> None:
            try:
                for_what(vm, _BOOT_SECONDS[record.accelerator], self._progress.scope("hosts"), failed)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(max(1, len(vms))) as pool:
            try:
                list(pool.map(wait, vms))
            except BaseException:  # Ctrl-C among them: the pool's end waits for its threads
                failed.set()
                raise

    def _each(self, action: Callable[[Vm], T], vms: Sequence[Vm]) -> list[T]:
        """Do something with every host at once; the first failure is raised when all are done."""
        with ThreadPoolExecutor(max(1, len(vms))) as pool:
            return list(pool.map(action, vms))

    def reboot(self, host: str) -> None:
        """Shut a host down as for a reboot, boot it again, and wait until it is ready.

        :raises UserError: no such host, or it doesn't go down or come back.
        """
        vm = self._vm(host)
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            record = self._read()
            with self._progress.step(f"hosts: rebooting {host}"):
                vm.shut_down_for_reboot(_BOOT_SECONDS[record.accelerator])
                vm.start()
                self._wait(Vm.wait_ready, record, (vm,))

    def power_off(self, host: str) -> None:
        """Take a host's power away, as it happens to real ones: nothing is shut down. `up` starts it again.

        :raises UserError: no such host, or its process can't be ended.
        """
        vm = self._vm(host)
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            vm.stop()

    # -- down -------------------------------------------------------------

    def down(self) -> None:
        """End hosts and services and remove disks, keys and snapshots; nothing happens without a lab.

        :raises UserError: a process can't be ended.
        """
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            if not self.folder.exists():
                self._progress.say(f"lab {self.name}: there is none")
                return
            with self._progress.step(f"lab {self.name}: ending hosts and services, removing disks"):
                # By what is in the folder, not by the record: that may be what is broken.
                for kind in (QemuVm, UmlVm):
                    for pid_file in self.folder.glob(f"*/{kind.pid_file}"):
                        processes.end(pid_file, guest_name(self.name, pid_file.parent.name))
                network.stop(self.folder)
                for name in ("packages", "registry"):
                    services.stop(self.folder, name)
                # Out of the way at once; the removal may be interrupted, and `prune` ends it.
                trash = paths.labs_dir() / f".removed-{self.name}-{os.getpid()}"
                self.folder.replace(trash)
                shutil.rmtree(trash)

    # -- looking and using ------------------------------------------------

    def status(self) -> LabStatus:
        """What runs and answers now.

        :raises UserError: there is no such lab.
        """
        record = self._read()
        vms = self._vms(record)
        hosts = tuple(self._each(_host_status, vms))
        served = self._services(record)
        with ThreadPoolExecutor(2) as pool:
            health = list(pool.map(services.healthy, served))
        lines = tuple(
            ServiceStatus(
                service.name,
                f"http://10.0.2.2:{service.port}",
                services.pid(self.folder, service.name),
                answers,
            )
            for service, answers in zip(served, health, strict=True)
        )
        tags = [vm.snapshots() for vm in vms]
        return LabStatus(
            name=self.name,
            ready=bool(lines) and all(h.state == "ready" for h in hosts) and all(s.answers for s in lines),
            release=record.options.release,
            family=record.options.family,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
            image=record.image,
            packages_from=record.mirror,
            api=f"{LOOPBACK}:{record.ports.api}",
            node_ports=tuple(f"http://{LOOPBACK}:{port}" for port in record.ports.node_port),
            hosts=hosts,
            services=lines,
            snapshots=tuple(tag for tag in tags[0] if all(tag in other for other in tags)),
        )

    def ssh(
        self,
        host: str,
        argv: Sequence[str],
        input: str | None = None,  # noqa: A002 - as subprocess names it
        timeout: float = 600.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root; its exit status is for the caller to judge.

        :param argv: the command's words, passed as they are.
        :param input: its standard input.
        :param timeout: seconds until the connection is given up.
        :raises UserError: no such host, or SSH itself fails.
        """
        return ssh.run(self.folder, self._vm(host).ssh_port, argv, input=input, timeout=timeout)

    def ssh_command(self, host: str, *, tty: bool) -> list[str]:
        """The ssh command line for a host, for a person's own session.

        :raises UserError: no such host.
        """
        return ssh.command(self.folder, self._vm(host).ssh_port, tty=tty)

    def console(self, host: str) -> str:
        """What a host has written to its console.

        :raises UserError: no such host, or it never ran.
        """
        path = self._vm(host).folder / "console.log"
        if not path.exists():
            raise UserError(f"{host} has never been started", lab_command("up", self.name))
        return path.read_text(errors="replace")

    def journal(self, host: str) -> str:
        """A host's journal since its boot.

        :raises UserError: no such host, or SSH fails.
        """
        return self.ssh(host, ["journalctl", "--no-pager", "--boot"], timeout=300).stdout

    def collect_logs(self, folder: Path) -> None:
        """Put every host's logs and tables, and the services' logs, into a folder.

        A host that doesn't answer leaves a note there, and the others are collected all the same.

        :param folder: made if it isn't there.
        :raises UserError: there is no such lab.
        """
        folder.mkdir(parents=True, exist_ok=True)
        vms = self._vms(self._read())

        def collect(vm: Vm) -> None:
            target = folder / vm.host.name
            target.mkdir(exist_ok=True)
            for name in {"console.log", vm.log_file}:
                if (vm.folder / name).exists():
                    shutil.copyfile(vm.folder / name, target / name)
            for name, line in _LOG_COMMANDS.items():
                try:
                    done = ssh.run(self.folder, vm.ssh_port, ["sh", "-c", line], timeout=240)
                    text = done.stdout + done.stderr
                except UserError as trouble:
                    (target / "not-collected.txt").write_text(f"from {name} on: {trouble}\n")
                    return
                (target / name).write_text(text)

        self._each(collect, vms)
        for log in [*(self.folder / "services").glob("*.log"), *(self.folder / "network").glob("*.log")]:
            shutil.copyfile(log, folder / log.name)
        try:
            write_atomic(folder / "status.json", self.status().to_json())
        except UserError as trouble:
            (folder / "not-collected.txt").write_text(f"status.json: {trouble}\n")

    # -- snapshots --------------------------------------------------------

    def snapshot(self, tag: str) -> None:
        """Save all hosts together, memory and disks; an earlier snapshot of that name is replaced.

        :raises UserError: a host doesn't run, or can't be saved; the hosts run on in any case.
        """
        _check_tag(tag)
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            vms = self._vms(self._read())
            stopped = [vm.host.name for vm in vms if vm.pid is None]
            if stopped:
                raise UserError(f"these hosts don't run: {', '.join(stopped)}", lab_command("up", self.name))
            with self._progress.step(f"snapshot: saving '{tag}'"):
                try:
                    # All stop before the first is saved: none may speak to another's past.
                    self._each(lambda vm: vm.pause(), vms)
                    self._each(lambda vm: vm.save(tag), vms)
                finally:
                    self._each(lambda vm: vm.resume(), vms)
                self._each(lambda vm: vm.set_clock(), vms)

    def restore(self, tag: str) -> None:
        """Bring all hosts back to a snapshot, whether they run or not; their clocks are set right.

        :raises UserError: a host doesn't hold it, or can't be loaded; the hosts run on in any case.
        """
        _check_tag(tag)
        with locked(self._lock_path(), self._progress, f"lab {self.name}"):
            record = self._read()
            vms = self._vms(record)
            lacking = [vm.host.name for vm in vms if tag not in vm.snapshots()]
            if lacking:
                held = ", ".join(self.status().snapshots) or "none"
                raise UserError(f"there is no snapshot '{tag}' of {', '.join(lacking)}", f"there are: {held}")
            self._check_ports(record)
            with self._progress.step(f"snapshot: restoring '{tag}'"):
                for service in self._services(record):
                    services.start(self.folder, service)
                self._start_network(record, vms)
                try:
                    # All are held before the first is loaded: none may speak to another's past.
                    self._each(lambda vm: vm.hold_for_load(), vms)
                    self._each(lambda vm: vm.load(tag), vms)
                finally:
                    self._each(lambda vm: vm.resume(), vms)
                # Whatever state was saved is what is wanted: also one with failed services.
                self._wait(Vm.wait_answers, record, vms)
                self._each(lambda vm: vm.note_booted(), vms)
                self._each(lambda vm: vm.set_clock(), vms)
                key = (self.folder / "packages.asc").read_text()
                self._each(lambda vm: vm.trust_packages(key), vms)


def _host_status(vm: Vm) -> HostStatus:
    pid = vm.pid
    patience = _GREETING_SECONDS[vm.machine.accelerator]
    state: HostState = (
        "stopped" if pid is None else "ready" if ssh.greets(vm.ssh_port, patience) else "booting"
    )
    if state == "booting" and vm.held():
        state = "paused"
    host = vm.host
    return HostStatus(
        host.name,
        host.role,
        host.address,
        LOOPBACK,
        vm.ssh_port,
        state,
        pid,
        host.cpus,
        host.memory,
        vm.resident(),
    )


def _check_tag(tag: str) -> None:
    if not tag or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in tag) or tag.isdigit():
        raise UserError(
            f"'{tag}' can't name a snapshot", "use letters, digits, '-', '_' and '.', and not digits alone"
        )


def prune(progress: Progress, *, everything: bool = False) -> None:
    """Remove what nothing needs any more: images and mirrors of the past, leftovers of interrupted work.

    What a lab that exists serves stays in any case, with the key that signs it; its image it holds itself.
    What somebody is making at this moment stays too, or is waited for.

    :param everything: the whole cache of this project but that.
    :raises UserError: a lab's record can't be understood, so that what it serves isn't known.
    """
    # Here and not above: as in `_provide`.
    from lab.artefacts import cache
    from lab.artefacts import prune as prune_sites

    for trash in paths.labs_dir().glob(".removed-*"):
        shutil.rmtree(trash)
    folder = paths.cache_dir()
    before = _disk_use(folder)
    records = [Lab.load(path.parent.name, progress)._read() for path in paths.labs_dir().glob("*/lab.json")]
    served = {Path(p) for record in records for p in (record.mirror_root, record.registry_data) if p}
    prune_images({record.image for record in records}, progress, everything=everything)
    if everything:
        kinds = ("mirror", "rpm", "go", "debian", "kernel")
        for kind in kinds:
            cache.prune(kind, _served_keys(folder / kind, served))
        # Each of these is made anew by the next command that wants it.
        kept = {"image", *kinds, *(["signing"] if served else [])}
        for path in folder.iterdir():
            if path.name not in kept:
                _remove(path)
    else:
        prune_sites(progress, served)
        rpms = folder / "rpm"
        newest = {path.name for path in finished(rpms)[-1:]}
        cache.prune("rpm", newest | _served_keys(rpms, served))
    progress.say(f"prune: {(before - _disk_use(folder)) >> 20} MiB freed in {folder}")


def _served_keys(kind: Path, served: set[Path]) -> set[str]:
    """The names of the folders below a kind's folder that labs serve something of."""
    return {path.relative_to(kind).parts[0] for path in served if path.is_relative_to(kind)}


def _remove(path: Path) -> None:
    if path.is_dir():
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=False, capture_output=True)
        shutil.rmtree(path)
    else:
        path.unlink()


def _disk_use(folder: Path) -> int:
    """Bytes that a folder's files take on disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
