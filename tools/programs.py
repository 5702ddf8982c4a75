"""Commands about the programs that a run uses: `python -m tools env`, `install`, `doctor` and `stack`.

Most make targets evaluate `env` first, so it imports as little as possible.
"""

from __future__ import annotations

import click

from common.progress import Progress
from tools import env


def table(tools: env.Toolbox) -> str:
    """The programs with their versions and sources."""
    from common import tables  # Rich, which `env` doesn't need

    rows = [(tool.name, tool.version, tool.source, str(tool.path)) for tool in tools.all]
    return tables.table(("PROGRAM", "VERSION", "SOURCE", "PATH"), rows)


@click.command()
def env_command() -> None:
    """Print shell commands that set Pulumi's environment, for `eval`."""
    print(env.exports(env.toolbox()))


@click.command()
def install_command() -> None:
    """Download or build missing programs."""
    print(table(env.toolbox(ask_upstream=True)))


@click.command()
def doctor_command() -> None:
    """Show the programs in use, their versions and sources."""
    print(table(env.toolbox()))


@click.command()
@click.argument("name")
@click.option("--existing", is_flag=True, help="Fail if the stack doesn't exist.")
def stack_command(name: str, *, existing: bool) -> None:
    """Create a stack in the local backend and select it."""
    from tools import stack

    progress = Progress()
    stack.ensure(name, env.toolbox(progress), progress, make=not existing)
