"""The exception for errors that are shown to the user without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """An expected failure: what failed, where and why, and what to do next.

    Command-line programs print it and exit with status 1.

    Attributes:
        what: What failed, where, and the cause; one or more lines.
        next_move: What the user can do about it; may be empty.
    """

    def __init__(self, what: str, next_move: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.next_move = next_move

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.next_move}" if self.next_move else self.what
