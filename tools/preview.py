"""`python -m tools.preview`: what `pulumi up` would change of a stack."""

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
    """Preview the stack; Pulumi's status.

    :param more: arguments for `pulumi preview`.
    :param variables: the environment for Pulumi.
    :raises UserError: the stack can't be had, or its state is elsewhere.
    """
    with stack.for_preview(name, tools, variables, progress) as (environment, arguments):
        argv = [str(tools.pulumi.path), "preview", "--stack", name, *arguments, *more]
        return subprocess.run(argv, cwd=paths.project_dir(), env=environment, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Run the preview; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.preview", description=__doc__)
    parser.add_argument("--stack", required=True)
    chosen = parser.parse_args(arguments)
    progress = Progress()
    try:
        tools = env.toolbox(progress, ask_upstream=True)
        return run(chosen.stack, ["--diff"], tools, env.environment(tools), progress)
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
