"""Sample results of a simulated fleet."""

from __future__ import annotations

from tests.fleet.processes import ENGINE, HOSTS, PROGRAM
from tests.fleet.results import NOW, Origin, Preview, Run


def origin(hosts: int = 100, series: str = NOW) -> Origin:
    """Where a sample result comes from."""
    return Origin(series, hosts, "2026-11-26", "abc1234", "0123456789ab", "2 cores and 24 GiB")


def run(phase: str, about: Origin | None = None, *, seconds: float = 12.3, logins: int = 300) -> Run:
    """A result of one phase."""
    return Run(
        phase=phase,
        origin=about or origin(),
        failed=phase == "dead",
        seconds=seconds,
        other_load=0.25,
        cpu_seconds={PROGRAM: 4.5, ENGINE: 3.0, HOSTS: 2.0},
        peak_bytes={PROGRAM: 123_000_000, ENGINE: 456_000_000},
        written_bytes=0,
        logins=logins,
        control_plane_logins=8,
        most_logins=3,
        hosts_reached=100,
        operations={"created": 900, "unchanged": 1},
        commands={"create join": 99},
        resources=900,
        state_bytes=2_900_000,
    )


def preview(about: Origin | None = None, *, cpu_seconds: float = 4.5) -> Preview:
    """The cost of the program alone."""
    return Preview(about or origin(), cpu_seconds, 200_000_000, 900, 400)
