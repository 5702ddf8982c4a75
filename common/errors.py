"""The one exception for failures that a person can do something about."""

from __future__ import annotations


class UserError(Exception):
    """An expected failure: what failed (with where and why), and what to do next.

    Programs that meet it print it and exit with status 1; they show no traceback.
    """

    def __init__(self, what: str, next_move: str = "") -> None:
        """Keep both parts.

        :param what: what failed, where, and the cause; one or several lines.
        :param next_move: what the reader can do about it; empty where there is nothing to say.
        """
        super().__init__(what)
        self.what = what
        self.next_move = next_move

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.next_move}" if self.next_move else self.what
