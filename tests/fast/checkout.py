"""Git commands for tests that need a small checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(root: Path, *arguments: str) -> str:
    """Run git in the checkout and return its output."""
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false"]
    argv = ["git", *identity, *arguments]
    return subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, **files: str | None) -> str:
    """Write files, commit everything, and return the commit's hash.

    Args:
        root: The checkout.
        files: Text by file name, with `__` for a slash and `_` for a dot; None deletes the file.
    """
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "change")
    return git(root, "rev-parse", "HEAD")
