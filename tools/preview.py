"""`python -m tools.preview`: what `pulumi up` would change in a stack."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from common import paths
from common.errors import UserError
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


def main(arguments: list[str] | None = None) -> int:
    """Run the preview; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.preview", description=__doc__)
    parser.add_argument("--stack", required=True)
    chosen = parser.parse_args(arguments)
    progress = Progress()
    try:
        tools = env.toolbox(progress, ask_upstream=True)
        return run(chosen.stack, ["--diff"], tools, env.environment(tools), progress)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
