"""Cache folders, found by key. Each is either complete or absent, and is verified on every use."""

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
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """Compare a finished cache folder with its manifest.

    Returns:
        The first difference found, or None if the folder is intact.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected: dict[str, str] = manifest["sha256"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{MANIFEST} can't be read ({error})"
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    for name, found in _sums(folder, expected).items():
        if found != expected[name]:
            return f"{name} has changed"
    return None


def _sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    # hashlib releases the GIL, so threads use all cores.
    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(sha256_of, folder / name) for name in names}
        return {name: future.result() for name, future in found.items()}


def seal(folder: Path, about: dict[str, str]) -> None:
    """Write the manifest: the checksums of all files in the folder, and some facts about it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = _sums(folder, (name for name in names if name != MANIFEST))
    write_atomic(folder / MANIFEST, json.dumps({"about": about, "sha256": sums}, indent=1) + "\n")


def about(folder: Path) -> dict[str, str]:
    """The facts about a finished folder that its manifest records."""
    facts: dict[str, str] = json.loads((folder / MANIFEST).read_text())["about"]
    return facts


def cached(
    kind: str, key: str, progress: Progress, make: Callable[[Path], dict[str, str]], *, resume: bool = False
) -> Path:
    """The folder `<cache>/<kind>/<key>`, made if it is missing or damaged.

    If two processes need the same folder, one waits for the other. The folder appears complete or not at all.

    Args:
        kind: The folder in the cache that holds all folders of this kind.
        key: Identifies the content within its kind.
        progress: Reports a damaged folder and waiting for another process.
        make: Fills an empty folder and returns facts to record in the manifest.
        resume: Pass `make` the folder of an interrupted run instead of an empty one.

    Raises:
        UserError: `make` fails.
    """
    parent = paths.cache_dir() / kind
    parent.mkdir(parents=True, exist_ok=True)
    folder, partial = parent / key, parent / f"{key}.partial"
    with locked(parent / f"{key}.lock", progress, f"{kind}/{key}"):
        if folder.exists():
            problem = damage(folder)
            if problem is None:
                # Record the use: pruning keeps the most recently used entries.
                os.utime(folder)
                return folder
            progress.say(f"{folder}: {problem}; rebuilding it")
            shutil.rmtree(folder)
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        begun = time.monotonic()
        facts = make(partial)
        seal(partial, {**facts, "seconds": f"{time.monotonic() - begun:.1f}"})
        partial.rename(folder)
        return folder


def prune(kind: str, keep: Iterable[str]) -> list[str]:
    """Remove a kind's folders, except those to keep and those that another process is making.

    Returns:
        The keys of the removed folders.
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
            # A partial folder is useful only while its key is still wanted.
            folders = [parent / f"{key}.partial", parent / key]
            present = [folder for folder in folders if folder.exists()]
            if key not in kept and present:
                for folder in present:
                    shutil.rmtree(folder)
                removed.append(key)
    return removed
