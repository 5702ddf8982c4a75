"""Reports of three hosts, as `scripts/steps/traffic.sh` prints them, and their views."""

from __future__ import annotations

from pathlib import Path

from model import traffic
from model.traffic import View

DATA = Path(__file__).parent / "data"
NODES = {"master": "192.168.166.101", "node1": "192.168.166.102", "node2": "192.168.166.103"}


def report(host: str) -> str:
    """A host's report."""
    return (DATA / f"traffic-{host}.txt").read_text()


def views() -> list[View]:
    """All hosts' views."""
    return [traffic.view_of_report(host, report(host)) for host in NODES]
