"""`python -m tools`: get Pulumi and its plugins, and print the environment to run them in."""

from __future__ import annotations

import argparse
import sys

from common import tables
from common.errors import UserError
from common.progress import Progress
from tools import env, stack


def main(arguments: list[str] | None = None) -> int:
    """The command line's entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "env", help='print shell commands that set the environment: eval "$(python -m tools env)"'
    )
    commands.add_parser("install", help="download or build missing programs")
    commands.add_parser("doctor", help="show the programs in use, their versions and where they come from")
    make = commands.add_parser(
        "stack", help="create a stack in the local backend, if necessary, and select it"
    )
    make.add_argument("name")
    make.add_argument("--existing", action="store_true", help="fail if the stack doesn't exist")
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def table(tools: env.Toolbox) -> str:
    """The programs with their versions and sources."""
    rows = [(tool.name, tool.version, tool.source, str(tool.path)) for tool in tools.all]
    return tables.table(("PROGRAM", "VERSION", "SOURCE", "PATH"), rows)


if __name__ == "__main__":
    sys.exit(main())
