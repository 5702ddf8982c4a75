"""`python -m tools preview`: what `pulumi up` would change in a stack."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import click

from common import cli, paths
from common.progress import Progress
from tools import env, stack


def run(
    name: str, more: Sequence[str], tools: env.Toolbox, variables: dict[str, str], progress: Progress
) -> int:
    """Preview the stack; returns Pulumi's status.

    Args:
        name: The stack's name.
        more: Further arguments for `pulumi preview`.
        tools: Pulumi and its plugins.
        variables: The environment variables for Pulumi.
        progress: Where to report progress.

    Raises:
        UserError: The stack can't be prepared, or its state is in another backend.
    """
    with stack.for_preview(name, tools, variables, progress) as (environment, arguments):
        argv = [str(tools.pulumi.path), "preview", "--stack", name, *arguments, *more]
        return subprocess.run(argv, cwd=paths.project_dir(), env=environment, check=False).returncode


@click.command()
@cli.stack_option
def command(stack: str) -> int:
    """Show what `pulumi up` would change in a stack."""
    progress = Progress()
    tools = env.toolbox(progress, ask_upstream=True)
    return run(stack, ["--diff"], tools, env.environment(tools), progress)
