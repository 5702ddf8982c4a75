"""What an engine run did, from its printed summary and from the commands that the hosts received."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_BLOCK = re.compile(r"^Resources:[^\n]*\n((?: +\S[^\n]*\n)+)", re.MULTILINE)
# "    + 84 created", "    +-3 replaced", "    84 unchanged"; in a preview "    + 84 to create".
_COUNT = re.compile(r"^ +(?:\S{0,2}?\s*)(\d+) ([a-z][a-z ]*?),?$", re.MULTILINE)


def operations(text: str) -> dict[str, int]:
    """The number of resources by operation, in the engine's words, such as `created` or `to update`.

    Args:
        text: What `pulumi` printed. Empty if it has no summary.
    """
    blocks = _BLOCK.findall(text)
    return {words: int(number) for number, words in _COUNT.findall(blocks[-1])} if blocks else {}


def commands(calls: Iterable[str]) -> dict[str, int]:
    """The number of commands by verb and step, such as `create join`, in the order of their first call.

    Args:
        calls: As in `finished.Environment.calls`.
    """
    return dict(Counter(" ".join(call.split()[1:3]) for call in calls))


def steps_on(host: str, calls: Iterable[str]) -> list[str]:
    """The names of the steps that ran on a host, in order."""
    return [call.split()[2] for call in calls if call.startswith(f"{host}: ")]
