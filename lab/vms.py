"""All virtual machines of a lab: create the objects, act on them in parallel, wait for them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from common.files import digest_of
from common.progress import Progress
from lab import uml
from lab.hardware import Accelerator, Machine
from lab.machine import Vm
from lab.options import Host
from lab.qemu_machine import QemuVm
from lab.record import Record
from lab.uml_machine import UmlVm

T = TypeVar("T")

# Limits from power-on until systemd is done. An emulated boot takes several minutes while builds are running.
BOOT_SECONDS: dict[Accelerator, float] = {"kvm": 180.0, "uml": 300.0, "tcg": 1200.0}


def create_vms(lab_folder: Path, record: Record) -> tuple[Vm, ...]:
    """The objects for a lab's hosts, the control plane first. Nothing is started."""
    hosts = record.options.hosts()
    workers_first = sorted(hosts, key=lambda host: host.role != "worker")
    network_id = int(digest_of(str(lab_folder))[:2], 16)
    under_uml = record.accelerator == "uml"
    kind: type[Vm] = UmlVm if under_uml else QemuVm

    def vm(host: Host) -> Vm:
        # One CPU by default under User Mode Linux: with a second one, every system call of the guest wakes
        # a sleeping CPU of this machine.
        cpus = (record.options.cpus or 1) if under_uml else host.cpus
        return kind(
            lab_folder,
            Machine(
                lab=record.options.name,
                host=dataclasses.replace(host, cpus=cpus),
                node_port_index=workers_first.index(host),
                ports=record.ports,
                accelerator=record.accelerator,
                kernel=Path("../base") / (uml.KERNEL if under_uml else "vmlinuz"),
                initrd=Path("../base") / (uml.INITRD if under_uml else "initrd"),
                network_id=network_id,
                family=record.options.family,
                lab_memory=sum(host.memory for host in hosts),
            ),
        )

    return tuple(map(vm, hosts))


def for_each(vms: Sequence[Vm], action: Callable[[Vm], T]) -> list[T]:
    """Run an action for all hosts in parallel; when all are done, raise the first failure."""
    with ThreadPoolExecutor(max(1, len(vms))) as pool:
        return list(pool.map(action, vms))


def wait_for_all(
    vms: Sequence[Vm],
    wait: Callable[[Vm, float, Progress, threading.Event], None],
    progress: Progress,
) -> None:
    """Wait for all hosts in parallel; the first failure cancels the other waits.

    Args:
        vms: The hosts.
        wait: `Vm.wait_ready` or `Vm.wait_ssh`.
        progress: Reports hosts that are up.
    """
    failed = threading.Event()

    def wait_for(vm: Vm) -> None:
        try:
            wait(vm, BOOT_SECONDS[vm.machine.accelerator], progress.scope("hosts"), failed)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max(1, len(vms))) as pool:
        try:
            list(pool.map(wait_for, vms))
        except BaseException:  # including Ctrl-C: leaving the pool waits for its threads
            failed.set()
            raise
