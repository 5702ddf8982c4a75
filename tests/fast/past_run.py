"""A simulated run of the program: its real resources and dependencies, with times as in the lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from model.settings_file import load
from tests.fast.recorded_run import run
from tests.fast.sample_settings import raw_settings

BEGAN = 1_795_593_600  # seconds since 1970
# Seconds that steps take in an emulated lab. The first entry that is part of a resource's name applies.
TOOK = (
    ("claim", 0.1), ("node2-preparation", 146.0), ("preparation", 137.9), ("init", 153.7), ("join", 67.7),
    ("nodes", 33.4), ("-node", 0.1), ("deregister", 0.1), ("expected-services", 17.2), ("verification", 24.6),
    ("Deployment", 41.7), ("DaemonSet", 5.3),
)  # fmt: skip
# The scripts of steps that have several, and the share of the step's time after which each is done.
SCRIPTS = {
    "preparation": (
        ("claim", 0.05),
        ("kernel", 0.11),
        ("firewall", 0.2),
        ("packages", 0.84),
        ("runtime", 1.0),
    ),
    "init": (("init", 0.93), ("proxy", 0.98)),
    "join": (("join", 0.87), ("proxy", 1.0)),
}
OBJECT = 1.9
DELAY = 0.4  # seconds from the end of a resource's last dependency to its own beginning


def up(tmp_path: Path, seconds: dict[str, float] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """The record of an `up`, and the names of the resources on its critical path.

    Args:
        tmp_path: A folder for the settings' files.
        seconds: Durations of single resources, by name.
    """
    recorded = run(load(raw_settings(tmp_path), tmp_path))
    urn_of = {key: urn for urn, key in recorded.urns.items()}
    custom = [key for key, request in recorded.requests.items() if request.custom]
    work = [key for key in custom if not recorded.requests[key].type.startswith("pulumi:")]
    needs: dict[str, set[str]] = {}
    for key in custom:
        request = recorded.requests[key]
        needs[key] = recorded.names([*request.dependencies, request.provider.rpartition("::")[0]])
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    last_dependency: dict[str, str] = {}

    def end(key: str) -> float:
        if key not in ended:
            last = max(needs[key] & set(custom), key=end, default=None)
            last_dependency[key] = last or ""
            began[key] = end(last) + DELAY if last else 1.0
            # A fraction that depends on the name: if two resources ended at the same time, there could be two
            # critical paths.
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
        host, _, step = key.rpartition("-")
        for script, share in SCRIPTS.get(step, ()):
            at = BEGAN + round(began[key] + share * (ended[key] - began[key]), 3)
            message = {"urn": urn_of[key], "message": f"{host}: {script}: done"}
            events.append({"timestamp": at - 0.001, "diagnosticEvent": message})
    events.sort(key=lambda event: float(event["timestamp"]))
    path = [max(work, key=end)]
    while path[0] and last_dependency[path[0]]:
        path.insert(0, last_dependency[path[0]])
    dependencies = {urn_of[key]: sorted(urn_of[other] for other in needs[key]) for key in custom}
    lines = [{"command": "up", "stack": "dev"}, *events, {"dependencies": dependencies}]
    return lines, [name for name in path if name in work]


def text(lines: list[dict[str, Any]]) -> str:
    """The lines as a record's text."""
    return "".join(json.dumps(line) + "\n" for line in lines)
