"""The goals for many hosts, and whether the results meet them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tests.fleet.results import Results, Run

Measure = Callable[[Results, str, int], float | None]
"""Takes results, a series and a number of hosts; returns None if the value wasn't measured."""


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        title: What is measured.
        measure: The value for a number of hosts.
        limit: The largest value for a number of hosts.
        unit: The unit of both.
        sizes: The numbers of hosts that the page shows.
        everywhere: Whether it also applies to any other number of hosts.
    """

    title: str
    measure: Measure
    limit: Callable[[int], float]
    unit: str
    sizes: tuple[int, ...] = (100,)
    everywhere: bool = False

    def is_met(self, value: float, hosts: int) -> bool:
        """Whether a value is within the limit."""
        return value <= self.limit(hosts)


def _of_run(phase: str, value: Callable[[Run], float]) -> Measure:
    def measure(kept: Results, series: str, hosts: int) -> float | None:
        run = kept.run(series, hosts, phase)
        return None if run is None else value(run)

    return measure


def _program_seconds(kept: Results, series: str, hosts: int) -> float | None:
    preview = kept.previews.get((series, hosts))
    return None if preview is None else preview.cpu_seconds


def _resources_of_one_more(kept: Results, series: str, hosts: int) -> float | None:
    before, after = kept.run(series, hosts, "up"), kept.run(series, hosts, "add")
    return None if before is None or after is None else after.resources - before.resources


def _time_of_one_more(kept: Results, series: str, hosts: int) -> float | None:
    """The time of adding a host, without what an `up` takes that changes nothing."""
    more, nothing = kept.run(series, hosts, "add"), kept.run(series, hosts, "noop-up")
    return None if more is None or nothing is None else max(0.0, more.seconds - nothing.seconds)


GOALS = (
    Goal(
        "state per host after the first `up`",
        _of_run("up", lambda run: run.state_bytes / run.origin.hosts / 1000),
        lambda _: 30,
        "kB",
        everywhere=True,
    ),
    Goal(
        "whole state after the first `up`",
        _of_run("up", lambda run: run.state_bytes / 1e6),
        lambda hosts: 4 * hosts / 100,
        "MB",
    ),
    Goal(
        "resources of a host that is added",
        _resources_of_one_more,
        lambda _: 10,
        "",
        everywhere=True,
    ),
    Goal(
        "the program's own CPU time in a preview",
        _program_seconds,
        lambda hosts: 5 * hosts / 100 if hosts <= 100 else 30 * hosts / 500,
        "s",
        sizes=(100, 500),
    ),
    Goal(
        "preview that finds no change",
        _of_run("noop-preview", lambda run: run.seconds),
        lambda hosts: 15 * max(hosts, 100) / 100,
        "s",
    ),
    Goal(
        "logins on a worker in the first `up`",
        _of_run("up", lambda run: run.most_logins),
        lambda _: 3,
        "",
        everywhere=True,
    ),
    Goal(
        "logins on the control plane in the first `up`",
        _of_run("up", lambda run: run.control_plane_logins),
        lambda hosts: 3 + math.ceil((hosts - 1) / 20),
        "",
        everywhere=True,
    ),
    Goal(
        "logins when nothing changes",
        _of_run("noop-up", lambda run: run.logins),
        lambda _: 0,
        "",
        everywhere=True,
    ),
    Goal(
        "hosts reached when one is added",
        _of_run("add", lambda run: run.hosts_reached),
        lambda _: 2,
        "",
        everywhere=True,
    ),
    Goal(
        "time to add a host, beyond that of an `up` without changes",
        _time_of_one_more,
        lambda _: math.inf,
        "s",
        sizes=(3, 100),
    ),
)


def missed(kept: Results, series: str, hosts: int) -> list[str]:
    """The goals for any number of hosts that a fleet misses; those that weren't measured are left out."""
    found: list[str] = []
    for goal in GOALS:
        value = goal.measure(kept, series, hosts) if goal.everywhere else None
        if value is not None and not goal.is_met(value, hosts):
            unit = f" {goal.unit}" if goal.unit else ""
            found.append(f"{goal.title}: {value:.3g}{unit}, more than {goal.limit(hosts):.3g}{unit}")
    return found
