"""A fleet of 30 hosts: what some phases run, reach and cost. Lanes are tested in tests/engine."""

from __future__ import annotations

import os

import pytest

from common.progress import Progress
from tests.engine.api_server import programs
from tests.fleet import goals, measure, page
from tests.fleet.fleet import Options
from tests.fleet.phases import with_needed
from tests.fleet.results import NOW, Results, Run

HOSTS = 30
# The others take minutes.
NAMES = ("up", "noop-preview", "noop-up", "add", "dead", "returned", "destroy")


@pytest.fixture(scope="module")
def measured(progress: Progress) -> Results:
    """The results of the phases."""
    found = programs(progress, build=os.environ.get("KUBEADM_IPVS_TEST_BUILD") != "never")
    if found is None:
        pytest.skip("no control plane on PATH or in the cache, and building is off")
    options = Options()
    results = Results()

    def take(run: Run) -> None:
        progress.say(page.run_line(run))
        results.add(run)

    about = measure.origin(HOSTS, NOW, options)
    measure.measure_phases(with_needed(NAMES), about, options, found, progress, take)
    return results


def run_of(measured: Results, phase: str) -> Run:
    return measured.runs[NOW, HOSTS, phase]


def test_first_up_reaches_every_host(measured: Results) -> None:
    up = run_of(measured, "up")
    assert up.hosts_reached == HOSTS
    assert up.resources > HOSTS


def test_nothing_is_reached_without_changes(measured: Results) -> None:
    for phase in ("noop-preview", "noop-up"):
        run = run_of(measured, phase)
        assert (run.logins, run.commands) == (0, {}), phase
    assert [name for name in run_of(measured, "noop-up").operations if name != "unchanged"] == []


def test_added_host_concerns_only_itself_and_the_control_plane(measured: Results) -> None:
    assert run_of(measured, "add").hosts_reached == 2


def test_living_hosts_are_served_while_one_is_dead(measured: Results) -> None:
    assert run_of(measured, "dead").failed
    assert run_of(measured, "returned").most_logins > 0


def test_destroyed_fleet_leaves_nothing(measured: Results) -> None:
    destroyed = run_of(measured, "destroy")
    assert destroyed.resources == 0
    assert destroyed.hosts_reached == HOSTS + 1


def test_goals_are_met(measured: Results) -> None:
    """Except those that docs/decisions/0037 gives up, which have limits of their own."""
    missed = {text.partition(":")[0] for text in goals.missed(measured, NOW, HOSTS)}
    up = run_of(measured, "up")
    assert missed <= {
        "state per host after the first `up`",
        "logins on a worker in the first `up`",
        "logins on the control plane in the first `up`",
    }
    assert up.state_bytes / HOSTS < 60_000
    assert up.most_logins == 4
    assert up.control_plane_logins == 6
