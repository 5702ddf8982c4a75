"""Save and restore all hosts of a lab together."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.paths import lab_command
from common.progress import Progress
from lab import services
from lab.machine import Vm
from lab.record import Record
from lab.startup import check_ports, start_network
from lab.vms import create_vms, for_each, wait_for_all


def check_tag(tag: str) -> None:
    """Check that a tag is valid. QEMU would take digits alone for a snapshot's number.

    Raises:
        UserError: The tag isn't valid.
    """
    if not tag or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in tag) or tag.isdigit():
        raise UserError(
            f"'{tag}' is not a valid snapshot name",
            "use letters, digits, '-', '_' and '.', and not only digits",
        )


def save(folder: Path, record: Record, tag: str, progress: Progress) -> None:
    """Save all hosts; the hosts keep running even if this fails.

    Raises:
        UserError: A host isn't running, or can't be saved.
    """
    vms = create_vms(folder, record)
    stopped = [vm.host.name for vm in vms if vm.pid is None]
    if stopped:
        raise UserError(
            f"these hosts aren't running: {', '.join(stopped)}", lab_command("up", record.options.name)
        )
    with progress.step(f"snapshot: saving '{tag}'"):
        try:
            # Pause all hosts before saving any, so that the snapshots are consistent with each other.
            for_each(vms, lambda vm: vm.pause())
            for_each(vms, lambda vm: vm.save(tag))
        finally:
            for_each(vms, lambda vm: vm.resume())
        for_each(vms, lambda vm: vm.set_clock())


def restore(folder: Path, record: Record, tag: str, progress: Progress) -> None:
    """Restore all hosts, whether they are running or not; the hosts run afterwards even if this fails.

    Raises:
        UserError: A host doesn't have the snapshot, or can't be restored.
    """
    vms = create_vms(folder, record)
    tags = {vm.host.name: vm.snapshots() for vm in vms}
    missing = [name for name, existing in tags.items() if tag not in existing]
    if missing:
        common = [other for other in tags[vms[0].host.name] if all(other in held for held in tags.values())]
        raise UserError(
            f"{', '.join(missing)}: no snapshot '{tag}'",
            f"existing snapshots of the lab: {', '.join(common) or 'none'}",
        )
    check_ports(folder, record)
    with progress.step(f"snapshot: restoring '{tag}'"):
        for service in record.services():
            services.start(folder, service)
        start_network(folder, record, vms, progress)
        try:
            # Stop all hosts before restoring any, so that no restored host talks to one in its old state.
            for_each(vms, lambda vm: vm.prepare_load())
            for_each(vms, lambda vm: vm.load(tag))
        finally:
            for_each(vms, lambda vm: vm.resume())
        # Don't wait for a healthy host: the saved state may include failed services.
        wait_for_all(vms, Vm.wait_ssh, progress)
        for_each(vms, lambda vm: vm.mark_booted())
        for_each(vms, lambda vm: vm.set_clock())
        key = (folder / "packages.asc").read_text()
        for_each(vms, lambda vm: vm.install_packages_key(key))
