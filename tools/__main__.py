"""`python -m tools`: Pulumi's parts and the environment to run them in."""

from __future__ import annotations

import argparse
import sys

from common.errors import UserError
from common.progress import Progress
from tools import env, stack


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help='print the environment for a shell: eval "$(python -m tools env)"')
    commands.add_parser(
        "install", help="get or build what is missing, Pulumi's own plugins where they can be had"
    )
    commands.add_parser("doctor", help="show what is used, its version, and where it comes from")
    make = commands.add_parser(
        "stack", help="make a stack in the local backend, if it isn't there, and select it"
    )
    make.add_argument("name")
    make.add_argument("--existing", action="store_true", help="refuse if it isn't there")
    chosen = parser.parse_args(arguments)
    progress = Progress()
    try:
        tools = env.toolbox(progress, ask_upstream=chosen.command == "install")
        if chosen.command == "env":
            print(env.exports(tools))
        elif chosen.command == "stack":
            stack.ensure(chosen.name, tools, progress, make=not chosen.existing)
        else:
            print(table(tools))
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    return 0


def table(tools: env.Toolbox) -> str:
    """The tools for a person to read."""
    rows = [("program", "version", "from", "path")]
    rows += [(tool.name, tool.version, tool.source, str(tool.path)) for tool in tools.all]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
