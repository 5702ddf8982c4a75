"""Small things with files: atomic writes, locks, checksums."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.progress import Progress

_BLOCK = 1 << 20


def write_atomic(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a file so that it is there with all its content, or as it was before."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file and keep its holes, so that the target is there whole or as it was before.

    :raises UserError: it can't be written.
    """
    draft = target.with_name(f".{target.name}.draft")
    argv = ["cp", "--sparse=always", "--reflink=auto", "--preserve=mode,timestamps", str(source), str(draft)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        draft.unlink(missing_ok=True)
        raise UserError(f"{source} can't be copied: {done.stderr.strip()}", "make room, and try again")
    draft.replace(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file elsewhere by a hard link, or by a copy on another file system; what is there goes.

    :raises UserError: it can't be written.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_sparse(source, target)


@contextmanager
def locked(path: Path, progress: Progress, what: str) -> Iterator[None]:
    """Hold a lock file; say so when another process has it, and wait for that one.

    The kernel frees the lock when its holder ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            begun = time.monotonic()
            progress.say(f"{what}: another process is at it; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
            progress.say(f"{what}: waited {time.monotonic() - begun:.0f}s")
        yield


def finished(folder: Path) -> list[Path]:
    """A cache folder's folders that were made to their end, as a manifest in them tells; the newest last."""
    found = [path.parent for path in folder.glob("*/manifest.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def sparse_digest(path: Path) -> str:
    """SHA-256 over a file's blocks that aren't all zero, with their offsets, and its size.

    Holes are skipped without being read, so that a disk of many GiB takes a second.
    """
    digest = hashlib.sha256()
    zero = bytes(_BLOCK)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}\n".encode())
        offset = 0
        while offset < size:
            try:
                data_at = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                break
            offset = max(offset, data_at - data_at % _BLOCK)
            file.seek(offset)
            block = file.read(_BLOCK)
            if block != zero[: len(block)]:
                digest.update(f"{offset}\n".encode())
                digest.update(block)
            offset += len(block)
    return digest.hexdigest()


def digest_of(*parts: bytes | str) -> str:
    """SHA-256 over parts, each with its length, so that borders count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def tree_digest(folder: Path) -> str:
    """A digest of all files below a folder: names and contents."""
    parts: list[bytes | str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts += [str(path.relative_to(folder)), path.read_bytes()]
    return digest_of(*parts)
