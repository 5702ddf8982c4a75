"""`make up`: from a fresh checkout to a running cluster, in one command.

Installs host packages, gets Pulumi and its plugins, starts the lab, runs `pulumi up`, shows each host's
virtual servers, and sends nginx a request from outside. Parts that are already done are skipped: a second run
changes nothing and takes seconds, and an interrupted run continues where it was.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click

from common.errors import UserError
from common.paths import DEFAULT_LAB, lab_dir, project_dir, stack_file, stack_name
from common.progress import Progress
from lab import requirements
from lab.lab import Lab
from lab.status import LabStatus
from tools import env, runs, stack, watch
from tools.env import Toolbox
from tools.programs import table

_ANSWER_SECONDS = 120.0  # from the end of `pulumi up`, whose verification has already received an answer
_REQUEST_SECONDS = 20.0
_LISTED_SECONDS = 2.0  # shorter steps of the lab aren't listed


@dataclass
class Clock:
    """Collects rows for `watch.time_table`, in seconds since the start."""

    progress: Progress
    rows: list[watch.Row] = field(default_factory=list)

    def note(self, name: str, began: float) -> None:
        """Add a part that ends now."""
        self.rows.append(watch.Row(name, began, self.progress.elapsed - began))


def check_state_dir(lab_name: str) -> None:
    """Check that the lab's keys are where the committed stack file expects them.

    Raises:
        UserError: They aren't: the state folder isn't the default one.
    """
    if lab_name != DEFAULT_LAB:
        return  # its stack file is generated with the actual folder
    folder = lab_dir(lab_name)
    named = Path("~/.local/state/kubeadm-ipvs/labs").expanduser() / lab_name
    if folder.resolve() != named.resolve():
        raise UserError(
            f"{stack_file(lab_name).name} expects the lab in {named}, but XDG_STATE_HOME puts it in {folder}",
            "unset XDG_STATE_HOME, or use a lab with its own stack file: "
            ".venv/bin/python -m tools up --lab mine",
        )


def prepare(lab: Lab, progress: Progress, clock: Clock) -> tuple[Toolbox, LabStatus]:
    """Get the tools and start the lab at the same time: both may have to build for minutes.

    Raises:
        UserError: One of them failed. The other is finished first, and its results are kept.
    """

    def tools() -> Toolbox:
        started = progress.elapsed
        try:
            return env.toolbox(progress.scope("tools"), ask_upstream=True)
        except UserError as error:
            # Reported now, and again at the end: the lab may take minutes until then.
            progress.say(f"tools: {error}")
            raise
        finally:
            clock.note("tools", started)

    with ThreadPoolExecutor(1) as executor:
        toolbox: Future[Toolbox] = executor.submit(tools)
        started = progress.elapsed
        status = lab.up()
        clock.note("lab", started)
        clock.rows += [
            watch.Row(f"  {name}", None, took)
            for name, took in progress.durations.items()
            if took >= _LISTED_SECONDS and not name.startswith("tools: ")
        ]
        return toolbox.result(), status


def answer(url: str, deadline: float) -> str:
    """Wait for a URL to answer with success; returns the status.

    Args:
        url: A URL of this machine.
        deadline: When to stop retrying (`time.monotonic`).

    Raises:
        UserError: There was no answer in time.
    """
    # A proxy couldn't reach this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=_REQUEST_SECONDS) as response:
                response.read()
                return f"{response.status} {response.reason}"
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{url} doesn't answer: {error}",
                    "nginx answered inside the lab; check the port forwards with "
                    "`.venv/bin/python -m lab status`",
                ) from None
            time.sleep(0.5)


def up(lab_name: str, progress: Progress) -> None:
    """Run all parts.

    Raises:
        UserError: A part failed; finished parts are kept.
    """
    check_state_dir(lab_name)
    clock = Clock(progress)
    lab_stack = stack_name(lab_name)
    stack.refuse_if_busy(lab_stack)
    started = progress.elapsed
    requirements.install(progress)
    clock.note("host tools", started)

    toolbox, status = prepare(Lab.load(lab_name, progress), progress, clock)
    progress.say(table(toolbox))
    progress.say(
        f"lab: {len(status.hosts)} hosts, {status.accelerator} ({status.accelerator_reason}); "
        f"packages and images: {status.packages_from}"
    )
    stack.ensure(lab_stack, toolbox, progress)

    environment = env.environment(toolbox)
    started = progress.elapsed
    with runs.recorded(lab_stack, "up", environment, project_dir()) as record:
        result = watch.run(
            ["up", "--yes", "--stack", lab_stack],
            environment,
            project_dir(),
            progress.scope("pulumi"),
            record,
        )
    stack.clear_pending_creates(lab_stack, toolbox, progress)
    clock.note("pulumi up", started)
    clock.rows += [watch.Row(f"  {span.name}", started + span.began, span.took) for span in result.spans]

    started = progress.elapsed
    show(lab_stack, environment)
    print()
    deadline = time.monotonic() + _ANSWER_SECONDS
    for url in status.node_ports:
        print(f"{url}  {answer(url, deadline)}")
    clock.note("virtual servers and answers", started)

    print(f"\n{watch.time_table(clock.rows)}")
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(result.changes.items()))
    print(f"\n{progress.elapsed:.0f}s in total; changes: {summary or 'none'}")


def show(lab_stack: str, environment: dict[str, str]) -> None:
    """Print the virtual servers of each host.

    Raises:
        UserError: The stack's outputs can't be shown.
    """
    argv = [sys.executable, "-m", "tools", "show", "--stack", lab_stack]
    sys.stdout.flush()
    if subprocess.run(argv, cwd=project_dir(), env=environment, check=False).returncode != 0:
        raise UserError(
            f"the outputs of the stack {lab_stack} can't be shown (see above)", "try again with `make show`"
        )


@click.command()
@click.option("--lab", default=DEFAULT_LAB, metavar="NAME", help=f"The lab (default: {DEFAULT_LAB}).")
def command(lab: str) -> None:
    """Create the lab and its cluster, or continue an interrupted run."""
    up(lab, Progress())
