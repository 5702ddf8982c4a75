"""A run of the program that never was: its own resources and dependencies, with times as in the lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from model.settings import load
from tests.fast import test_graph

BEGAN = 1_795_593_600  # seconds since 1970
# Seconds that steps take in an emulated lab; the first that fits a resource's name counts.
TOOK = (
    ("claim", 6.4), ("kernel", 9.1), ("firewall", 12.7), ("node2-packages", 96.3), ("packages", 88.2),
    ("runtime", 21.5), ("init", 142.6), ("admin", 2.3), ("token", 4.1), ("join", 58.9), ("node", 33.4),
    ("deregister", 1.2), ("proxy", 8.8), ("expected-services", 17.2), ("verification", 24.6),
    ("Deployment", 41.7), ("DaemonSet", 5.3),
)  # fmt: skip
OBJECT = 1.9
STARTS = 0.4  # from the end of what a resource waited for to its own beginning


def up(tmp_path: Path, seconds: dict[str, float] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """An `up` with its dependencies as a record holds them, and the names of its critical path.

    :param seconds: what single resources take, by name.
    """
    recorded = test_graph.run(load(test_graph.raw_settings(tmp_path), tmp_path))
    urn_of = {key: urn for urn, key in recorded.urns.items()}
    custom = [key for key, request in recorded.requests.items() if request.custom]
    work = [key for key in custom if not recorded.requests[key].type.startswith("pulumi:")]
    needs: dict[str, set[str]] = {}
    for key in custom:
        request = recorded.requests[key]
        needs[key] = recorded.names([*request.dependencies, request.provider.rpartition("::")[0]])
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    kept_by: dict[str, str] = {}

    def end(key: str) -> float:
        if key not in ended:
            last = max(needs[key] & set(custom), key=end, default=None)
            kept_by[key] = last or ""
            began[key] = end(last) + STARTS if last else 1.0
            # No two end at once: then there would be two critical paths. By name, since the order in
            # which resources are registered is that of threads, and sums of it can be equal.
            took = (
                next((took for name, took in TOOK if name in key), OBJECT) + crc32(key.encode()) % 9973 / 9973
            )
            ended[key] = began[key] + ((seconds or {}).get(key, took) if key in work else 0)
        return ended[key]

    for key in custom:
        end(key)
    events: list[dict[str, Any]] = []
    for key in work:
        metadata = {
            "op": "create",
            "urn": urn_of[key],
            "type": recorded.requests[key].type,
            "new": {"custom": True, "parent": recorded.requests[key].parent},
        }
        events += [
            {"timestamp": BEGAN + round(began[key], 3), "resourcePreEvent": {"metadata": metadata}},
            {"timestamp": BEGAN + round(ended[key], 3), "resOutputsEvent": {"metadata": metadata}},
        ]
    events.sort(key=lambda event: float(event["timestamp"]))
    path = [max(work, key=end)]
    while path[0] and kept_by[path[0]]:
        path.insert(0, kept_by[path[0]])
    dependencies = {urn_of[key]: sorted(urn_of[other] for other in needs[key]) for key in custom}
    lines = [{"command": "up", "stack": "dev"}, *events, {"dependencies": dependencies}]
    return lines, [name for name in path if name in work]


def text(lines: list[dict[str, Any]]) -> str:
    """As a file holds them."""
    return "".join(json.dumps(line) + "\n" for line in lines)
