"""What a lab under User Mode Linux has beside its image: kernel, initramfs, and the network's program."""

from __future__ import annotations

import stat
from pathlib import Path

from common.files import link_or_copy
from common.progress import Progress
from lab import uml
from lab.artefacts import gobuild, kernel
from lab.image_root import cpio_newc
from lab.network import PROGRAM


def key() -> str:
    """What decides the files, as a key."""
    return f"{kernel.key()}-{gobuild.LAB_NETWORK.key}"


def provide(base: Path, progress: Progress) -> None:
    """Put the files into a lab's folder, which then lives on when the cache is deleted; built if need be.

    :param base: the folder, with the image's `initrd`.
    :raises UserError: they can't be had.
    """
    built = kernel.ensure(progress)
    network = gobuild.build(gobuild.LAB_NETWORK, progress)
    # The kernel takes one archive after the other. The image's own modules stay unused.
    modules = cpio_newc([("modules.tar", stat.S_IFREG | 0o644, (built / kernel.MODULES).read_bytes())])
    draft = base / f".{uml.INITRD}.draft"
    draft.write_bytes((base / "initrd").read_bytes() + modules)
    draft.replace(base / uml.INITRD)
    for source, name in ((built / kernel.PROGRAM, uml.KERNEL), (network / PROGRAM, PROGRAM)):
        link_or_copy(source, base / name)
