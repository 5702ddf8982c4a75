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
    """A key that changes when a rebuild would produce different files."""
    return f"{kernel.key()}-{targets.LAB_NETWORK.key}"


def provide(base: Path, progress: Progress) -> None:
    """Put the files into a lab's folder, so that the lab doesn't depend on the cache; build them if needed.

    Args:
        base: The lab's `base` folder, which holds the image's `initrd`.
        progress: Reports builds.

    Raises:
        UserError: A file can't be built.
    """
    built = kernel.ensure(progress)
    network = gobuild.build(targets.LAB_NETWORK, progress)
    # The kernel reads concatenated initramfs archives. The modules in the image's initramfs stay unused.
    modules = cpio_newc([("modules.tar", stat.S_IFREG | 0o644, (built / kernel.MODULES).read_bytes())])
    draft = base / f".{uml.INITRD}.draft"
    draft.write_bytes((base / "initrd").read_bytes() + modules)
    draft.replace(base / uml.INITRD)
    for source, name in ((built / kernel.PROGRAM, uml.KERNEL), (network / PROGRAM, PROGRAM)):
        link_or_copy(source, base / name)
