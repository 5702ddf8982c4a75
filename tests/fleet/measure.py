"""Measures phases of a new fleet, and the program alone."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from common import paths
from common.progress import Progress
from tests.engine.api_server import Programs, api_server
from tests.fleet import program
from tests.fleet.fleet import Options, engine_options, fleet
from tests.fleet.phases import Phase
from tests.fleet.results import Origin, Preview, Results, Run
from tests.lab.resilience.results import PROGRAM, code, computer
from tests.lab.resilience.results import programs as versions
from tools import env

PREVIEW = "program"
"""The name of the phase that measures the program alone."""


def origin(hosts: int, series: str, options: Options) -> Origin:
    """Where measurements of this checkout on this computer come from."""
    argv = ["git", "log", "-1", "--format=%h", "--", *PROGRAM]
    commit = subprocess.run(argv, cwd=paths.project_dir(), capture_output=True, text=True, check=True)
    special = engine_options()
    if options.latency_seconds:
        special.append(f"{options.latency_seconds * 1000:g} ms per command")
    where = ", ".join([computer(), versions(), *special])
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Origin(series, hosts, today, commit.stdout.strip(), code(), where)


def missing(names: Sequence[str], about: Origin, kept: Results) -> list[str]:
    """The phases that haven't been measured yet with this program and in this environment."""
    found: dict[str, Origin] = {
        phase: run.origin
        for (series, hosts, phase), run in kept.runs.items()
        if (series, hosts) == (about.series, about.hosts)
    }
    preview = kept.previews.get((about.series, about.hosts))
    if preview is not None:
        found[PREVIEW] = preview.origin
    now = (about.code, about.where)
    return [name for name in names if name not in found or (found[name].code, found[name].where) != now]


def measure_program(about: Origin) -> Preview:
    """Measure the program alone.

    Raises:
        subprocess.CalledProcessError: It failed; its traceback is on standard error.
    """
    return Preview(about, **asdict(program.measure_elsewhere(about.hosts)))


def measure_phases(
    phases: Sequence[Phase],
    about: Origin,
    options: Options,
    found: Programs,
    progress: Progress,
    take: Callable[[Run], object],
) -> None:
    """Run some phases on a new fleet.

    Args:
        phases: The phases, in their order.
        about: Where the measurements come from.
        options: How the hosts behave.
        found: The programs of the API server.
        progress: Reports each phase.
        take: Receives each measurement at once.

    Raises:
        UserError: A run didn't end as it should.
    """
    variables = env.environment(env.toolbox(progress))
    with (
        tempfile.TemporaryDirectory(prefix="fleet-api-") as folder,
        api_server(Path(folder), found) as cluster,
        fleet(variables, cluster, options, about) as started,
    ):
        for phase in phases:
            with progress.step(f"{about.hosts} hosts: {phase.name}"):
                run = phase.run(started)
            take(run)
