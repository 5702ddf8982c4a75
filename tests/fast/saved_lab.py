"""Labs that exist only as a saved record."""

from __future__ import annotations

from typing import Any

from common.progress import Progress
from lab.lab import Lab
from lab.options import Options
from lab.ports import fixed
from lab.record import Record

QUIET = Progress(quiet=True)


def saved_lab(name: str = "blue", *, options: dict[str, Any] | None = None, **record: Any) -> Lab:
    """Save a lab's record in the state folder, which must be temporary (see conftest.py).

    Args:
        name: The lab's name.
        options: Fields of its `Options`.
        **record: Fields of its `Record`.
    """
    lab = Lab.load(name, QUIET)
    lab.folder.mkdir(parents=True)
    chosen = Options(name=name, **(options or {}))
    Record(chosen, fixed(chosen.count), **record).write(lab.folder / "lab.json")
    return lab
