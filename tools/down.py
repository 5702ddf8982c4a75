"""`make down`: runs `pulumi destroy`, which restores the hosts, and then removes the lab.

If the lab's hosts don't run, there is nothing to restore: their disks and the stack's state are removed.
"""

from __future__ import annotations

import subprocess

import click

from common.errors import UserError
from common.paths import DEFAULT_LAB, project_dir, stack_name
from common.progress import Progress
from lab.lab import Lab
from tools import env, runs, stack, watch
from tools.env import Toolbox


def exists(name: str) -> bool:
    """Whether the local backend has the stack. Doesn't need Pulumi, which may not be installed."""
    return any((env.backend_dir() / ".pulumi/stacks").glob(f"*/{name}.json"))


def forget(name: str, toolbox: Toolbox, progress: Progress) -> None:
    """Remove a stack's state, and nothing else: its file stays.

    Raises:
        UserError: Pulumi refuses.
    """
    stack.unlock(name, toolbox, progress)
    argv = [str(toolbox.pulumi.path), "stack", "rm", name, "--force", "--yes", "--preserve-config"]
    with progress.step(f"removing the state of the stack {name}"):
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
    """Destroy the lab's stack, then remove the lab. Do nothing if there is neither.

    Args:
        lab_name: The lab's name.
        progress: Where progress is reported.
        force: Remove the state without a destroy, for hosts that can't be fixed.

    Raises:
        UserError: Another run is changing the stack, or the destroy failed. The lab is kept for inspection.
    """
    lab = Lab.load(lab_name, progress)
    name = stack_name(lab_name)
    stack.refuse_if_busy(name)
    if exists(name):
        toolbox = env.toolbox(progress.scope("tools"))
        if force:
            forget(name, toolbox, progress)
        elif lab.exists and any(host.state != "stopped" for host in lab.status().hosts):
            # A busy host may not have answered: wait for it, so that it is restored too.
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
            except UserError as error:
                raise UserError(
                    error.what,
                    "the lab is still running: fix the cause above and run the same command again, or remove"
                    f" the lab without a destroy: `.venv/bin/python -m tools down --lab {lab_name} --force`",
                ) from error
        else:
            progress.say("the lab's hosts don't run: there is nothing to restore")
            forget(name, toolbox, progress)
    lab.down()


@click.command()
@click.option("--lab", default=DEFAULT_LAB, metavar="NAME", help=f"The lab (default: {DEFAULT_LAB}).")
@click.option("--force", is_flag=True, help="Remove the lab without `pulumi destroy`.")
def command(lab: str, *, force: bool) -> None:
    """Destroy the cluster, restore its hosts and remove the lab."""
    down(lab, Progress(), force=force)
