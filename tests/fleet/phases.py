"""The phases of a fleet's life. Each is one engine run, measured on its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from common.errors import UserError
from tests.engine import finished
from tests.fleet.fleet import Fleet
from tests.fleet.results import Run


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: Its name on the command line and in the results.
        title: What happens, for the page.
        command: `preview`, `up` or `destroy`.
        prepare: Changes the fleet before the run. The returned block lasts as long as the run.
        needs: The phase that must have run before, if any.
        fails: Whether the run must fail.
    """

    name: str
    title: str
    command: str
    prepare: Callable[[Fleet], AbstractContextManager[object]] = lambda _: nullcontext()
    needs: str = ""
    fails: bool = False

    def run(self, fleet: Fleet) -> Run:
        """Run the phase and return its measurement.

        Raises:
            UserError: The run didn't end as it should.
        """
        with self.prepare(fleet):
            return fleet.run(self.name, self.command, fails=self.fails)


def _add(fleet: Fleet) -> AbstractContextManager[None]:
    fleet.settings["hosts"] = [*fleet.settings["hosts"], fleet.made.spare]
    fleet.write()
    return nullcontext()


def _remove(fleet: Fleet) -> AbstractContextManager[None]:
    gone = fleet.middle
    fleet.settings["hosts"] = [host for host in fleet.settings["hosts"] if host["name"] != gone]
    fleet.write()
    return nullcontext()


def _kill_host(fleet: Fleet) -> AbstractContextManager[None]:
    return finished.dead_host(fleet.made, fleet.cluster, fleet.middle)


def _scheduler(name: str) -> Callable[[Fleet], AbstractContextManager[None]]:
    def change(fleet: Fleet) -> AbstractContextManager[None]:
        fleet.settings["proxy"] = {"scheduler": name}
        fleet.write()
        return nullcontext()

    return change


@contextmanager
def _failing_scheduler(fleet: Fleet) -> Iterator[None]:
    """Change the scheduler again. The step that changes it fails on one host in the middle."""
    failing = fleet.options.failing
    if not failing:
        changed = [
            step for step in fleet.steps_on(fleet.middle) if step.changes and "SCHEDULER" in step.values
        ]
        if not changed:
            raise UserError(f"{fleet.middle}: no step changed the scheduler in the previous phase")
        failing = f"{fleet.middle}:{changed[-1].name}"
    fleet.made.failing.add(failing)
    try:
        with _scheduler("lc")(fleet):
            yield
    finally:
        fleet.made.failing.discard(failing)


def _new_version(fleet: Fleet) -> AbstractContextManager[None]:
    with (fleet.made.stack.folder / "scripts" / fleet.options.script).open("a") as script:
        script.write("# A newer version of the program.\n")
    return nullcontext()


PHASES = {
    phase.name: phase
    for phase in (
        Phase("preview", "first preview", "preview"),
        Phase("up", "first `up`", "up"),
        Phase("noop-preview", "preview, nothing changed", "preview", needs="up"),
        Phase("noop-up", "`up`, nothing changed", "up", needs="up"),
        Phase("add", "one more host", "up", _add, needs="up"),
        Phase("remove", "one host less", "up", _remove, needs="add"),
        Phase("dead", "a dead host", "up", _kill_host, needs="up", fails=True),
        Phase("returned", "the dead host is back", "up", needs="dead"),
        Phase("scheduler", "another scheduler", "up", _scheduler("wrr"), needs="up"),
        Phase(
            "lane-failure", "another scheduler fails on one host", "up", _failing_scheduler, "scheduler", True
        ),
        Phase("lane-resumed", "the same, with that host repaired", "up", needs="lane-failure"),
        Phase("version", "a new version of the program", "up", _new_version, needs="up"),
        Phase("destroy", "`destroy`", "destroy", needs="up"),
    )
}
"""All phases by name, in their order."""


def with_needed(names: Collection[str]) -> list[Phase]:
    """Some phases and all that must run before them, in their order."""
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name and name not in wanted:
            wanted.add(name)
            todo.append(PHASES[name].needs)
    # A failure would stay in the state.
    for failed, repaired in (("dead", "returned"), ("lane-failure", "lane-resumed")):
        if failed in wanted:
            wanted.add(repaired)
    return [phase for phase in PHASES.values() if phase.name in wanted]
