"""`python -m tests.fleet.program N`: measures the program alone in a preview of a new cluster with N hosts.

A monitor that records resources replaces the engine (`tests/fast/recorded_run.py`), so the figures contain
neither the engine nor the start of Python. Each measurement needs a process of its own, because the peak
memory of a process never shrinks.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from common.paths import project_dir
from tests.fast import recorded_run
from tests.fleet import hosts


@dataclass(frozen=True)
class Cost:
    """The cost of one preview.

    Attributes:
        cpu_seconds: User and system time, without the imports.
        peak_bytes: The largest resident set, with the imports.
        resources: The number of resources.
        commands: How many of them are remote commands.
    """

    cpu_seconds: float
    peak_bytes: int
    resources: int
    commands: int


def measure(count: int) -> Cost:
    """Preview a new cluster with `count` hosts in this process."""
    settings = hosts.settings(count)
    recorded_run.run(hosts.settings(1), preview=True)  # imports and caches
    began = time.process_time()
    recorded = recorded_run.run(settings, preview=True)
    spent = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Cost(round(spent, 3), peak, len(recorded.requests), len(recorded_run.commands(recorded)))


def measure_elsewhere(count: int) -> Cost:
    """Preview a new cluster with `count` hosts in a process of its own.

    Raises:
        subprocess.CalledProcessError: The program failed; its traceback is on standard error.
    """
    argv = [sys.executable, "-m", "tests.fleet.program", str(count)]
    done = subprocess.run(argv, cwd=project_dir(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Cost(**found)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
