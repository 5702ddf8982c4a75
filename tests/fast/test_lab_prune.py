"""Pruning the cache: removed and kept entries."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from common import paths
from common.errors import UserError
from lab import image
from lab.artefacts import kernel
from lab.prune import prune
from tests.fast.saved_lab import QUIET, saved_lab

pytestmark = pytest.mark.usefixtures("temporary_folders")


def entry(folder: Path, age: float) -> Path:
    """Create a complete cache entry that is `age` seconds old."""
    folder.mkdir(parents=True)
    folder.with_name(f"{folder.name}.lock").touch()
    (folder / "manifest.json").write_text("{}")
    when = time.time() - age
    os.utime(folder, (when, when))
    return folder


@pytest.mark.parametrize("everything", [False, True])
def test_pruning_keeps_what_labs_serve(everything: bool) -> None:
    cache = paths.cache_dir()
    old_image, new_image = entry(cache / "image/old", 100), entry(cache / "image/new", 0)
    served, idle = entry(cache / "mirror/served", 300), entry(cache / "mirror/idle", 200)
    newest = entry(cache / "mirror/newest", 100)
    served_rpms, idle_rpms = entry(cache / "rpm/served", 300), entry(cache / "rpm/idle", 200)
    newest_rpms, registry = entry(cache / "rpm/newest", 100), entry(cache / "mirror/registry", 400)
    saved_lab("blue", mirror_root=str(served / "www"), image="none")
    saved_lab(
        "red",
        options={"family": "rpm"},
        image="none",
        mirror_root=str(served_rpms / "www"),
        registry_data=str(registry / "registry"),
    )
    prune(QUIET, everything=everything)
    assert served.exists()
    assert served_rpms.exists()
    assert registry.exists()
    assert not idle_rpms.exists()
    assert newest_rpms.exists() is not everything
    assert not idle.exists()
    assert not old_image.exists()
    assert new_image.exists() is newest.exists() is not everything


@pytest.mark.parametrize("everything", [False, True])
def test_pruning_covers_all_kinds_and_keeps_signing_key(everything: bool) -> None:
    cache = paths.cache_dir()
    served = entry(cache / "mirror/served", 100)
    saved_lab("blue", mirror_root=str(served / "www"), image="none")
    (cache / "signing").mkdir()
    program, packages = entry(cache / "go/etcd-of-last-year", 100), entry(cache / "debian/trixie-old", 100)
    entry(cache / "debian/trixie-new", 0)
    old_kernel = entry(cache / "kernel/of-last-year", 100)
    current_kernel = entry(cache / f"kernel/{kernel.key()}", 0)
    entry(cache / "image/new", 0)
    old_base, current_base = (
        cache / f"image/base-trixie-{key}.tar" for key in ("of-last-year", image._base_key("trixie", "deb"))
    )
    for archive in (old_base, current_base):
        archive.touch()
    (cache / "upstream/copied").mkdir(parents=True)
    prune(QUIET, everything=everything)
    assert (cache / "signing").exists(), "a new key wouldn't match the served mirror"
    for gone in (program, packages, old_base, cache / "upstream/copied", old_kernel):
        assert not gone.exists(), gone
    current = (current_kernel, current_base, cache / "debian/trixie-new")
    assert [path.exists() for path in current] == [not everything] * 3


def test_pruning_with_damaged_record_is_refused() -> None:
    lab = saved_lab("blue")
    (lab.folder / "lab.json").write_text("{")
    with pytest.raises(UserError) as caught:
        prune(QUIET)
    assert caught.value.next_move == ".venv/bin/python -m lab down --name blue"
