"""The command line of the tools: `python -m tools`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import cli

commands = cli.LazyGroup(
    {
        "up": "tools.up:command",
        "down": "tools.down:command",
        "show": "tools.show:command",
        "timeline": "tools.timeline:command",
        "check": "tools.check:command",
        "credentials": "tools.credentials:command",
        "preview": "tools.preview:command",
        "policy": "tools.policy:command",
        "report": "tools.report:command",
        "stack": "tools.programs:stack_command",
        "env": "tools.programs:env_command",
        "install": "tools.programs:install_command",
        "doctor": "tools.programs:doctor_command",
        "docs": "tools.reference:command",
        "lint": "tools.lint:command",
        "ci": "tools.ci:commands",
    },
    "Create clusters, inspect and check them, and run the steps of CI.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return cli.run(commands, "python -m tools", arguments)


if __name__ == "__main__":
    sys.exit(main())
