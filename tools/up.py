"""`make up`: from a bare checkout to a cluster whose kernels balance, in one command.

Host tools, Pulumi and its plugins, the lab, `pulumi up`, the kernels' tables, and a request
to nginx from outside. Every part is skipped where nothing is left to do, so a second run
changes nothing and takes seconds; an interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.paths import DEFAULT_LAB, lab_dir, project_dir, stack_file, stack_name
from common.progress import Progress
from lab import requirements
from lab.api import Lab, LabStatus
from tools import env, runs, stack, watch
from tools.__main__ import table
from tools.env import Toolbox

_ANSWER_SECONDS = 120.0  # from the end of `pulumi up`, whose proof has had an answer already
_REQUEST_SECONDS = 20.0
_LISTED_SECONDS = 2.0  # a lab's step that took less isn't listed


@dataclass
class Clock:
    """Where the time went: rows for `watch.time_table`, in seconds since the start."""

    progress: Progress
    rows: list[watch.Row] = field(default_factory=list)

    def note(self, name: str, began: float) -> None:
        """Add a part that ends now."""
        self.rows.append(watch.Row(name, began, self.progress.elapsed - began))


def check_place(lab_name: str) -> None:
    """Refuse at once where the committed stack file can't name the lab's keys.

    :raises UserError: the state is kept somewhere else than Pulumi.dev.yaml says.
    """
    if lab_name != DEFAULT_LAB:
        return  # its stack file is made, and names the right place
    folder = lab_dir(lab_name)
    named = Path("~/.local/state/kubeadm-ipvs/labs").expanduser() / lab_name
    if folder.resolve() != named.resolve():
        raise UserError(
            f"{stack_file(lab_name).name} names {named}, and XDG_STATE_HOME puts the lab in {folder}",
            "unset XDG_STATE_HOME, or take a lab with a stack file of its own: python -m tools.up --lab mine",
        )


def prepare(lab: Lab, progress: Progress, clock: Clock) -> tuple[Toolbox, LabStatus]:
    """Get the tools and bring the lab up, side by side: both may have to build for minutes.

    :raises UserError: either can't be had; the other's work is finished first, and kept.
    """

    def tools() -> Toolbox:
        begun = progress.elapsed
        try:
            return env.toolbox(progress.scope("tools"), ask_upstream=True)
        except UserError as trouble:
            # Said at once: the lab may take minutes until the end, where it is said again.
            progress.say(f"tools: {trouble}")
            raise
        finally:
            clock.note("tools", begun)

    with ThreadPoolExecutor(1) as beside:
        toolbox: Future[Toolbox] = beside.submit(tools)
        begun = progress.elapsed
        status = lab.up()
        clock.note("lab", begun)
        # By the names of the lab's own steps.
        clock.rows += [
            watch.Row(f"  {name}", None, took)
            for name, took in progress.durations.items()
            if took >= _LISTED_SECONDS and not name.startswith("tools: ")
        ]
        return toolbox.result(), status


def answer(url: str, deadline: float) -> str:
    """The status that a URL answers with, once it answers.

    :param deadline: until when to try again (`time.monotonic`).
    :raises UserError: it doesn't answer in time.
    """
    # The URL is this machine's own: a proxy could not reach it.
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
                    "it was proved inside the lab just now: see the forwards with `python -m lab status`",
                ) from None
            # Refused at once or timed out: either way not to be asked in a tight loop.
            time.sleep(0.5)


def up(lab_name: str, progress: Progress) -> None:
    """Do all of it.

    :raises UserError: something can't be done; everything finished is kept.
    """
    check_place(lab_name)
    clock = Clock(progress)
    stack_of_lab = stack_name(lab_name)
    stack.refuse_if_busy(stack_of_lab)
    begun = progress.elapsed
    requirements.install(progress)
    clock.note("host tools", begun)

    toolbox, status = prepare(Lab.load(lab_name, progress), progress, clock)
    progress.say(table(toolbox))
    progress.say(
        f"lab: {len(status.hosts)} hosts, {status.accelerator} ({status.accelerator_reason}); "
        f"packages and images: {status.packages_from}"
    )
    stack.ensure(stack_of_lab, toolbox, progress)

    environment = env.environment(toolbox)
    begun = progress.elapsed
    with runs.recorded(stack_of_lab, "up", environment, project_dir()) as record:
        seen = watch.run(
            ["up", "--yes", "--stack", stack_of_lab],
            environment,
            project_dir(),
            progress.scope("pulumi"),
            record,
        )
    stack.clear_pending_creates(stack_of_lab, toolbox, progress)
    clock.note("pulumi up", begun)
    clock.rows += [watch.Row(f"  {span.name}", begun + span.began, span.took) for span in seen.spans]

    begun = progress.elapsed
    show(stack_of_lab, environment)
    print()
    deadline = time.monotonic() + _ANSWER_SECONDS
    for url in status.node_ports:
        print(f"{url}  {answer(url, deadline)}")
    clock.note("tables, answers", begun)

    print(f"\n{watch.time_table(clock.rows)}")
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.changes.items()))
    print(f"\n{progress.elapsed:.0f}s in all; changed: {summary or 'nothing'}")


def show(stack_of_lab: str, environment: dict[str, str]) -> None:
    """Print the virtual servers of each host.

    :raises UserError: the stack's outputs can't be shown.
    """
    argv = [sys.executable, "-m", "tools.show", "--stack", stack_of_lab]
    sys.stdout.flush()
    if subprocess.run(argv, cwd=project_dir(), env=environment, check=False).returncode != 0:
        raise UserError(f"the outputs of the stack {stack_of_lab} can't be shown (see above)", "make show")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry: expected failures become a message and status 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.up", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", default=DEFAULT_LAB, help="which lab, with its stack (default: %(default)s)")
    chosen = parser.parse_args(argv)
    try:
        up(chosen.lab, Progress())
    except UserError as trouble:
        print(f"\nerror: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
