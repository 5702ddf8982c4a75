"""Provide everything that a lab needs before its hosts start: mirror, image, accelerator, keys, disks."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from common import paths
from common.errors import UserError
from common.files import link_or_copy, write_atomic
from common.progress import Progress
from lab import requirements, stackfile
from lab.accelerator import choose
from lab.hardware import Accelerator
from lab.image import Image, ensure_base, ensure_image
from lab.machine import make_key
from lab.ports import LOOPBACK
from lab.record import Record, record_path
from lab.startup import check_ports
from lab.vms import create_vms

Source = Literal["auto", "build", "upstream"]

# Space to build packages, image and mirror, and for the hosts' disks to grow.
_DISK_NEEDED = 6 << 30  # bytes


def provide(folder: Path, record: Record, source: Source, progress: Progress) -> Record:
    """Provide what is missing.

    Args:
        folder: The lab's folder.
        record: The lab's record.
        source: Where packages and images come from.
        progress: Reports builds and downloads.

    Returns:
        The completed record, which is also saved.

    Raises:
        UserError: Something can't be provided.
    """
    # Imported here because most commands don't build anything.
    from lab.artefacts import ensure_mirror, ensure_repositories

    name, release, family = record.options.name, record.options.release, record.options.family
    requirements.check(family)
    check_ports(folder, record)
    _check_room(folder, record, progress)
    with ThreadPoolExecutor(1) as background:
        # In parallel: the base system is mostly downloaded and unpacked, the mirror mostly compiled. Only the
        # image and the RPMs need the base system.
        needed = family == "rpm" or not _has_image(folder)
        base = background.submit(ensure_base, release, family, progress) if needed else None
        mirror = ensure_mirror(progress, source=source, debian_release=release)
        base_archive = base.result() if base else None
    root = mirror.root
    preload = tuple(sorted(path for path in mirror.preload.iterdir() if path.is_file()))
    if base_archive and family == "rpm":
        # These hosts start without a container runtime, so there is nothing to preload images into.
        root, preload = ensure_repositories(mirror, release, base_archive, progress), ()
    if not _has_image(folder):
        _link_image(folder, ensure_image(release, preload, family, progress))
    record = dataclasses.replace(record, image=(folder / "base/complete").read_text())
    if not any(vm.pid for vm in create_vms(folder, record)):
        # All hosts of a lab use the same accelerator because they are saved and restored together.
        decision = choose(folder / "base", progress, disks=_disks(folder, record))
        progress.say(f"accelerator: {decision.accelerator} ({decision.reason})")
        record = dataclasses.replace(
            record, accelerator=decision.accelerator, accelerator_reason=decision.reason
        )
    record = dataclasses.replace(
        record, mirror=mirror.source, mirror_root=str(root), registry_data=str(mirror.registry_data)
    )
    record.write(record_path(name))
    make_key(folder / "id_ed25519", name)
    packages_key = Path(mirror.key).read_text()
    write_atomic(folder / "packages.asc", packages_key)
    vms = create_vms(folder, record)
    authorized_key = (folder / "id_ed25519.pub").read_text()
    for vm in vms:
        vm.prepare(folder / "base/disk.raw", authorized_key, packages_key, release)
    known_hosts = "".join(f"[{LOOPBACK}]:{vm.ssh_port} {vm.host_key()}\n" for vm in vms)
    write_atomic(folder / "known_hosts", known_hosts)
    stackfile.write(name, record.options, record.ports, folder, progress)
    return record


def _check_room(folder: Path, record: Record, progress: Progress) -> None:
    """Check the free disk space, and report if memory is short.

    For a lab that already has its image and mirror, too little disk space is only reported.

    Raises:
        UserError: There isn't enough space to build what is missing.
    """
    complete = _has_image(folder) and bool(record.mirror_root) and Path(record.mirror_root).exists()
    for place in (folder, paths.cache_dir()):
        free = shutil.disk_usage(place).free
        if free < _DISK_NEEDED and complete:
            progress.say(
                f"{place} has {free >> 20} MiB left; QEMU pauses a host when its disk can't be written"
            )
        elif free < _DISK_NEEDED:
            raise UserError(
                f"{place} has {free >> 30} GiB left, and the lab needs {_DISK_NEEDED >> 30} GiB",
                "free some disk space (.venv/bin/python -m lab prune), or set XDG_STATE_HOME and "
                "XDG_CACHE_HOME",
            )
    wanted = sum(vm.host.memory for vm in create_vms(folder, record) if vm.pid is None)
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable:"))
    if available < wanted:
        progress.say(
            f"memory: the hosts may use {wanted} MiB, but only {available} MiB is available; "
            "if hosts are slow or get killed, stop other programs, or use --memory or --count"
        )


def _has_image(folder: Path) -> bool:
    return (folder / "base/complete").exists()


def _link_image(folder: Path, image: Image) -> None:
    """Link the image into the lab's folder, so that the lab doesn't depend on the cache."""
    base = folder / "base"
    base.mkdir(exist_ok=True)
    for source in (image.disk, image.kernel, image.initrd):
        link_or_copy(source, base / source.name)
    write_atomic(base / "complete", image.key)


def _disks(folder: Path, record: Record) -> Accelerator | None:
    """The accelerator that the hosts' existing disks belong to; None if no host has a disk."""
    exist = any((vm.folder / vm.disk_file).exists() for vm in create_vms(folder, record))
    return record.accelerator if exist else None
