"""`python -m model.show --stack NAME`: the virtual servers of a stack's hosts, as its last proof saw them.

Reads the stack's outputs with the `pulumi` on PATH, and asks no host.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from model import ipvs

OUTPUT = "virtualServers"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns the exit status, 1 where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m model.show", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stack", required=True, help="the stack's name, such as dev")
    parser.add_argument("--json", action="store_true", help="the structured output itself")
    chosen = parser.parse_args(argv)
    try:
        text = _output(chosen.stack)
        print(text if chosen.json else _table(text), end="")
    except _NothingToShow as nothing:
        print(f"error: {nothing}", file=sys.stderr)
        return 1
    return 0


class _NothingToShow(Exception):
    """What keeps the table from being shown, with the next move."""


def _output(stack: str) -> str:
    try:
        result = subprocess.run(
            ["pulumi", "stack", "output", OUTPUT, "--stack", stack, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise _NothingToShow("there is no pulumi on PATH; `make show` puts it there") from None
    if result.returncode != 0:
        raise _NothingToShow(
            f"the stack {stack} has no {OUTPUT} to show: {result.stderr.strip()}\n"
            "  -> `pulumi up` makes it; the proof is its last step"
        )
    return result.stdout


def _table(text: str) -> str:
    try:
        hosts = json.loads(text)
        return ipvs.table(hosts)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _NothingToShow(
            f"the stack's {OUTPUT} is not what this program writes: {text.strip()[:200]}\n"
            "  -> `pulumi up` with this version of the program writes it anew"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
