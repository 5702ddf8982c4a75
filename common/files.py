"""File helpers: atomic writes, sparse copies, locks, checksums."""

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
    """Write a file atomically: readers see either the old content or all of the new."""
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
    """Copy a file atomically and keep its holes.

    Raises:
        UserError: The copy can't be written.
    """
    draft = target.with_name(f".{target.name}.draft")
    argv = ["cp", "--sparse=always", "--reflink=auto", "--preserve=mode,timestamps", str(source), str(draft)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        draft.unlink(missing_ok=True)
        raise UserError(f"can't copy {source}: {done.stderr.strip()}", "free some disk space and try again")
    draft.replace(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Replace `target` with a hard link to `source`, or with a copy on another file system.

    Raises:
        UserError: The copy can't be written.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_sparse(source, target)


@contextmanager
def locked(path: Path, progress: Progress, what: str) -> Iterator[None]:
    """Hold a lock file; if another process holds it, report that and wait.

    The kernel releases the lock when the holder exits, even if it is killed.

    Args:
        path: The lock file; created if it doesn't exist.
        progress: Reports the wait.
        what: What the lock protects, such as `lab default`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            started = time.monotonic()
            progress.say(f"{what}: another process is using it; waiting for that process to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
            progress.say(f"{what}: waited {time.monotonic() - started:.0f}s")
        yield


def finished(folder: Path) -> list[Path]:
    """The complete entries of a cache folder (those with a manifest), newest last."""
    found = [path.parent for path in folder.glob("*/manifest.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def sparse_digest(path: Path) -> str:
    """SHA-256 of a file's size and of its non-zero blocks with their offsets.

    Holes are skipped without being read, so a disk of many GiB takes about a second.
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
            except OSError:  # ENXIO: only a hole follows
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
    """SHA-256 of the parts, each prefixed with its length so that part boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def tree_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files below a folder."""
    parts: list[bytes | str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts += [str(path.relative_to(folder)), path.read_bytes()]
    return digest_of(*parts)
