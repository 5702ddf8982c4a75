"""Problems in a stack's settings: where each one is, and the error that lists all of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from model.sorting import natural

Location = tuple[str | int, ...]
"""Names and list indexes that lead to a setting: `("hosts", 1, "address")`."""

Finding = tuple[Location, str]
"""A location, and the text that follows its path in the message."""


@dataclass(frozen=True)
class Problem:
    """One problem in the settings.

    Attributes:
        path: The setting's path: `hosts[1].address`.
        text: What is wrong and what to write instead.
        file: `in environments/common.yaml` (or `partly in ...`) if it isn't in the stack file alone.
    """

    path: str
    text: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.file})' if self.file else ''}: {self.text}"


class SettingsError(Exception):
    """Settings that can't be used.

    Attributes:
        problems: All problems, sorted by path.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (natural(problem.path), problem.text))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"The configuration has {count}; nothing was changed.\n{lines}")


def path_of(location: Location) -> str:
    """A location in the form that messages use: `hosts[1].address`, `runtime.mirrors["docker.io"]`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text
