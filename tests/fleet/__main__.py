"""`python -m tests.fleet`, or `make fleet N=100`: measures the program with many simulated hosts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import click

from common import cli
from common.progress import Progress
from tests.engine.api_server import programs
from tests.fleet import measure, page, results
from tests.fleet.fleet import Options
from tests.fleet.phases import PHASES, with_needed
from tests.fleet.results import Run


class _Phases(click.ParamType):  # type: ignore[type-arg] # generic only for type checkers
    """The names of phases, separated by commas; all of them if the text is empty."""

    name = "phases"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        known = [measure.PREVIEW, *PHASES]
        names = str(value).split(",") if value else known
        unknown = [name for name in names if name not in known]
        if unknown:
            self.fail(
                f"there is no phase {', '.join(unknown)}; the phases are {', '.join(known)}", param, ctx
            )
        return names


@click.command(context_settings=cli.SETTINGS)
@click.option("--hosts", type=click.IntRange(min=3), multiple=True, default=[100], help="Number of hosts.")
@click.option("--phases", "names", type=_Phases(), default="", help="The phases to measure.")
@click.option("--latency", type=float, default=0, metavar="MS", help="How long each command takes.")
@click.option("--fail", default="", metavar="HOST:STEP", help="The step that fails in `lane-failure`.")
@click.option("--script", default=Options.script, help="The script that changes in `version`.")
@click.option("--series", default=results.NOW, help="The results' name, such as `before`.")
@click.option("--again", is_flag=True, help="Measure everything again, even with an unchanged program.")
def command(
    hosts: Sequence[int],
    names: list[str],
    latency: float,
    fail: str,
    script: str,
    series: str,
    again: bool,
) -> None:
    """Measure the program with many simulated hosts.

    Each result is saved at once. The same command continues after an interruption, and measures only what
    hasn't been measured with the current program.
    """
    # So that a run that is killed stops the API server and the engine.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress()
    options = Options(latency / 1000, fail, script)

    def take(run: Run) -> None:
        progress.say(page.run_line(run))
        results.save(run)

    for count in hosts:
        about = measure.origin(count, series, options)
        todo = names if again else measure.missing(names, about, results.read(results.here()))
        if measure.PREVIEW in todo:
            with progress.step(f"{count} hosts: the program alone"):
                results.save(measure.measure_program(about))
        wanted = with_needed([name for name in todo if name != measure.PREVIEW])
        if wanted:
            found = programs(progress, build=True)
            assert found is not None, "they have just been built"
            measure.measure_phases(wanted, about, options, found, progress, take)
    print(page.report(results.read(results.here()), series, hosts), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return cli.run(command, "python -m tests.fleet", arguments)


if __name__ == "__main__":
    sys.exit(main())
