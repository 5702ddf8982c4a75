"""`make down`: `pulumi destroy`, which gives the hosts back as they were, and then the lab's end.

A lab whose hosts don't run has nothing left to be given back to: its disks go, and the
stack's state is forgotten.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from common.errors import UserError
from common.paths import DEFAULT_LAB, project_dir, stack_name
from common.progress import Progress
from lab.api import Lab
from tools import env, runs, stack, watch
from tools.env import Toolbox


def exists(name: str) -> bool:
    """Whether the local backend has a stack of that name; asked without Pulumi, which may not be here."""
    return any((env.backend_dir() / ".pulumi/stacks").glob(f"*/{name}.json"))


def forget(name: str, toolbox: Toolbox, progress: Progress) -> None:
    """Remove a stack's state, and nothing else: its file stays.

    :raises UserError: Pulumi refuses.
    """
    stack.unlock(name, toolbox, progress)
    argv = [str(toolbox.pulumi.path), "stack", "rm", name, "--force", "--yes", "--preserve-config"]
    with progress.step(f"forgetting the stack {name}"):
        done = subprocess.run(
            [*argv, "--non-interactive"],
            cwd=project_dir(),
            env=env.environment(toolbox),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise UserError(f"'pulumi stack rm {name}' failed:\n{(done.stderr or done.stdout).strip()}")


def down(lab_name: str, progress: Progress, *, force: bool = False) -> None:
    """Destroy the lab's stack, then end the lab; where there is neither, do nothing.

    :param force: don't destroy, only forget the state: for hosts that can't be mended.
    :raises UserError: another run is at work, or the destroy failed; the lab is left as it is for inspection.
    """
    lab = Lab.load(lab_name, progress)
    name = stack_name(lab_name)
    stack.refuse_if_busy(name)
    if exists(name):
        toolbox = env.toolbox(progress.scope("tools"))
        if force:
            forget(name, toolbox, progress)
        elif lab.exists and any(host.state != "stopped" for host in lab.status().hosts):
            # A busy host may not have answered just now: that is no reason to end it without giving it back.
            lab.up()
            stack.ensure(name, toolbox, progress)
            environment = env.environment(toolbox)
            try:
                with runs.recorded(name, "destroy", environment, project_dir()) as record:
                    watch.run(
                        ["destroy", "--yes", "--continue-on-error", "--stack", name],
                        environment,
                        project_dir(),
                        progress.scope("pulumi"),
                        record,
                    )
            except UserError as trouble:
                raise UserError(
                    trouble.what,
                    "the lab still runs: mend what the lines above name and run it again, or end it as it is"
                    f" with `python -m tools.down --lab {lab_name} --force`",
                ) from trouble
        else:
            progress.say("the lab's hosts don't run: there is nothing to give back to them")
            forget(name, toolbox, progress)
    lab.down()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry: expected failures become a message and status 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.down", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", default=DEFAULT_LAB, help="which lab, with its stack (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="end the lab without `pulumi destroy`")
    chosen = parser.parse_args(argv)
    try:
        down(chosen.lab, Progress(), force=chosen.force)
    except UserError as trouble:
        print(f"\nerror: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
