"""Folders in the cache, found by a key: there completely or not at all, and checked at each use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import paths
from common.files import locked, write_atomic
from common.progress import Progress

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a finished cache folder; nothing if it is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected: dict[str, str] = manifest["sha256"]
    except FileNotFoundError:
        return f"{MANIFEST} isn't there"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{MANIFEST} can't be read ({error})"
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} isn't there"
    for name, found in _sums(folder, expected).items():
        if found != expected[name]:
            return f"{name} isn't what was stored"
    return None


def _sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    # Hashing lets other threads run, so that both cores are used.
    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(sha256_of, folder / name) for name in names}
        return {name: future.result() for name, future in found.items()}


def seal(folder: Path, about: dict[str, str]) -> None:
    """Write the manifest of a folder's files, by which `damage` judges it later."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = _sums(folder, (name for name in names if name != MANIFEST))
    write_atomic(folder / MANIFEST, json.dumps({"about": about, "sha256": sums}, indent=1) + "\n")


def about(folder: Path) -> dict[str, str]:
    """What the manifest of a finished folder tells, beside the checksums."""
    told: dict[str, str] = json.loads((folder / MANIFEST).read_text())["about"]
    return told


def cached(
    kind: str, key: str, progress: Progress, make: Callable[[Path], dict[str, str]], *, resume: bool = False
) -> Path:
    """The folder `<cache>/<kind>/<key>`, checked; made by `make` if it isn't there or is damaged.

    :param make: fills the empty folder that it is given, and returns what the manifest should tell.
    :param resume: hand `make` what an interrupted run left, instead of an empty folder.
    :raises UserError: as `make` does.

    Two processes that want the same wait for each other; the folder appears complete or not at all.
    """
    parent = paths.cache_dir() / kind
    parent.mkdir(parents=True, exist_ok=True)
    folder, partial = parent / key, parent / f"{key}.partial"
    with locked(parent / f"{key}.lock", progress, f"{kind}/{key}"):
        if folder.exists():
            problem = damage(folder)
            if problem is None:
                # The time of last use, by which old entries are pruned.
                os.utime(folder)
                return folder
            progress.say(f"{folder}: {problem}; making it again")
            shutil.rmtree(folder)
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        begun = time.monotonic()
        told = make(partial)
        seal(partial, {**told, "seconds": f"{time.monotonic() - begun:.1f}"})
        partial.rename(folder)
        return folder


def prune(kind: str, keep: Iterable[str]) -> list[str]:
    """Remove a kind's folders, except those of the keys to keep and those that someone is making.

    Returns the keys that were removed.
    """
    parent, kept = paths.cache_dir() / kind, set(keep)
    removed = []
    for lock in sorted(parent.glob("*.lock")):
        key = lock.name.removesuffix(".lock")
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # What an interrupted run has left is of use only where the same is wanted again.
            folders = [parent / f"{key}.partial", parent / key]
            there = [folder for folder in folders if folder.exists()]
            if key not in kept and there:
                for folder in there:
                    shutil.rmtree(folder)
                removed.append(key)
    return removed
