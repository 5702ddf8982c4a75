"""Remove cache entries that neither a lab nor the current code needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from common import cache, paths
from common.files import finished
from common.progress import Progress
from lab import image, record


def prune(progress: Progress, *, everything: bool = False) -> None:
    """Remove old images and mirrors, and what interrupted builds left behind.

    Mirrors that existing labs serve are kept, with the key that signs them. Builds in progress are left alone
    or waited for.

    Args:
        progress: Reports the result.
        everything: Remove the whole cache except what existing labs serve. Labs have their own links to their
            images, so the cache's copies are removed too.

    Raises:
        UserError: A lab's record is damaged, so it isn't known what that lab serves.
    """
    # Imported here because most commands don't need the builders.
    from lab.artefacts import prune as prune_mirrors

    for trash in paths.labs_dir().glob(".removed-*"):
        shutil.rmtree(trash)
    folder = paths.cache_dir()
    before = _disk_use(folder)
    records = [record.load(path.parent.name) for path in paths.labs_dir().glob("*/lab.json")]
    served = {Path(p) for lab in records for p in (lab.mirror_root, lab.registry_data) if p}
    image.prune({lab.image for lab in records}, progress, everything=everything)
    if everything:
        kinds = ("mirror", "rpm", "go", "debian", "kernel")
        for kind in kinds:
            cache.prune(kind, _served_keys(folder / kind, served))
        # Other entries are created again when a command needs them.
        kept = {"image", *kinds, *(["signing"] if served else [])}
        for path in folder.iterdir():
            if path.name not in kept:
                _remove(path)
    else:
        prune_mirrors(progress, served)
        rpms = folder / "rpm"
        newest = {path.name for path in finished(rpms)[-1:]}
        cache.prune("rpm", newest | _served_keys(rpms, served))
    progress.say(f"prune: freed {(before - _disk_use(folder)) >> 20} MiB in {folder}")


def _served_keys(kind: Path, served: set[Path]) -> set[str]:
    """The names of a cache folder's entries that labs serve files from."""
    return {path.relative_to(kind).parts[0] for path in served if path.is_relative_to(kind)}


def _remove(path: Path) -> None:
    if path.is_dir():
        # Some entries are read-only.
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=False, capture_output=True)
        shutil.rmtree(path)
    else:
        path.unlink()


def _disk_use(folder: Path) -> int:
    """Bytes that a folder's files take up on disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
