"""The order in which names and paths are shown."""

from __future__ import annotations

import re


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts `node2` before `node10`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", text)]
