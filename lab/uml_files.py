"""The files that a lab under User Mode Linux needs besides its image: kernel, initramfs, lab-network."""

from __future__ import annotations

import stat
from pathlib import Path

from common import gobuild
from common.files import link_or_copy
from common.progress import Progress
from lab import uml
from lab.artefacts import kernel, targets
from lab.image_root import cpio_newc
from lab.network import PROGRAM


def key() -> str:
    """A key that changes when the files would be built differently."""
    return f"{kernel.key()}-{targets.LAB_NETWORK.key}"


def provide(base: Path, progress: Progress) -> None:
    """Put the files into a lab's folder, building them if needed; the lab doesn't need the cache afterwards.

    Args:
        base: The lab's `base` folder, which holds the image's `initrd`.
        progress: Where builds are reported.

    Raises:
        UserError: A file can't be built.
    """
    built = kernel.ensure(progress)
    network = gobuild.build(targets.LAB_NETWORK, progress)
    # The kernel reads concatenated initramfs archives. The image's own modules stay unused.
    modules = cpio_newc([("modules.tar", stat.S_IFREG | 0o644, (built / kernel.MODULES).read_bytes())])
    draft = base / f".{uml.INITRD}.draft"
    draft.write_bytes((base / "initrd").read_bytes() + modules)
    draft.replace(base / uml.INITRD)
    for source, name in ((built / kernel.PROGRAM, uml.KERNEL), (network / PROGRAM, PROGRAM)):
        link_or_copy(source, base / name)
