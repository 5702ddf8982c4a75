"""Start a lab's servers, network and hosts, and check whether they are up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.progress import Progress
from lab import network, ports, services
from lab.machine import Vm
from lab.ports import LOOPBACK
from lab.record import Record
from lab.uml_machine import memory_folder
from lab.vms import create_vms, for_each, wait_for_all


def is_up(folder: Path, record: Record) -> bool:
    """Whether all hosts and servers of a lab are running and respond."""
    vms = create_vms(folder, record)
    if not record.mirror_root or any(vm.pid is None for vm in vms):
        return False
    if not all(services.up_to_date(folder, service) for service in record.services()):
        return False
    return all(for_each(vms, lambda vm: vm.responds))


def check_ports(folder: Path, record: Record) -> None:
    """Check that no other process uses the lab's ports.

    Raises:
        UserError: Ports are in use; the message lists each one with its owner.
    """
    wanted = record.ports.tcp()
    has_network = network.pid(folder) is not None
    for vm in create_vms(folder, record):
        if has_network or (vm.pid is not None and record.accelerator != "uml"):
            own = vm.machine.forwards
            wanted = {port: purpose for port, purpose in wanted.items() if port not in own}
    for name, port in (("packages", record.ports.packages), ("registry", record.ports.registry)):
        if services.pid(folder, name) is not None:
            wanted.pop(port)
    ports.check_free(wanted)


def start(folder: Path, record: Record, progress: Progress) -> None:
    """Start everything that isn't running, and wait until all hosts are ready.

    Raises:
        UserError: A server or a host doesn't start.
    """
    for service in record.services():
        services.start(folder, service)
    progress.say(
        f"services: packages at http://{LOOPBACK}:{record.ports.packages}, "
        f"registry at http://{LOOPBACK}:{record.ports.registry}"
    )
    vms = create_vms(folder, record)
    start_network(folder, record, vms, progress)
    names = ", ".join(vm.host.name for vm in vms)
    booted = [vm for vm in vms if vm.booted]
    booting = [vm for vm in vms if vm not in booted]
    with progress.step(f"hosts: booting {names} ({record.accelerator})", every=15):
        for vm in vms:
            vm.unpause(progress.scope("hosts"))
            vm.start()
        wait_for_all(booting, Vm.wait_ready, progress)
        # A host that has been ready before may have failed services by now; that isn't the lab's concern.
        wait_for_all(booted, Vm.wait_ssh, progress)
    # A new cache has a new signing key, which hosts seeded before that don't have.
    key = (folder / "packages.asc").read_text()
    for_each(vms, lambda vm: vm.install_packages_key(key))


def start_network(folder: Path, record: Record, vms: Sequence[Vm], progress: Progress) -> None:
    """Start the network of hosts under User Mode Linux; QEMU has a built-in one."""
    if record.accelerator == "uml":
        needed = vms[0].machine.lab_memory
        if memory_folder(folder, needed) == folder:
            progress.say(
                f"memory: /dev/shm has no room for {needed} MiB, so the hosts' memory is in files in "
                f"{folder}, which is slower; in a container, use a larger /dev/shm"
            )
        network.start(folder, folder / "base" / network.PROGRAM, vms, progress)
