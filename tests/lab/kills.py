"""A step is killed at each of its lines, one after the other, and must come to its end all the same."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.lab.cluster import Cluster

CALL = "STEP=$2 HOST=$3\n"
KILLED = 128 + 9
STEP_SECONDS = 1500


def texts(cluster: Cluster) -> dict[str, str]:
    """What the state would have sent to the hosts, by resource: each step's whole text."""
    commands = [item for item in cluster.resources() if item["type"] == "command:remote:Command"]
    return {command["urn"].rpartition("::")[2]: _plain(command["inputs"]["stdin"]) for command in commands}


def _plain(value: Any) -> str:
    return str(json.loads(value["plaintext"]) if isinstance(value, dict) else value)


def run(
    cluster: Cluster, host: str, verb: str, step: str, text: str, trap: str = ":"
) -> subprocess.CompletedProcess[str]:
    """Run a step's text as the provider would, with a trap before each of its commands."""
    assert text.count(CALL) == 1
    watched = text.replace(CALL, f"{CALL}set -o functrace\ntrap '{trap}' DEBUG\n")
    # Of a command that a signal ended ssh says no more than 255.
    command = ["bash", "-c", f'timeout {STEP_SECONDS} bash -s -- "$@"; exit $?', "bash", verb, step, host]
    return cluster.lab.ssh(host, command, input=watched, timeout=STEP_SECONDS + 100)


def run_to_its_end(cluster: Cluster, host: str, verb: str, step: str, text: str) -> None:
    """Run a step's text undisturbed; it must succeed."""
    done = run(cluster, host, verb, step, text)
    assert done.returncode == 0, done.stdout + done.stderr


def killed_at_each_line(cluster: Cluster, host: str, verb: str, step: str, text: str) -> int:
    """Run a step again and again, each time killed (SIGKILL) before the first line where it hasn't been yet.

    :return: how many times it was killed until it came to its end; it must succeed then.
    """
    lines: list[str] = []
    while True:
        known = f" {' '.join(lines)} "
        trap = f'[[ "{known}" == *" $LINENO "* ]] || {{ echo "$LINENO" >/run/line; kill -KILL $$; }}'
        done = run(cluster, host, verb, step, text, trap)
        if done.returncode == 0:
            return len(lines)
        line = cluster.run(host, "cat /run/line; rm /run/line").strip()
        assert done.returncode == KILLED, f"{step}, after a kill at line {lines[-1:]}: {done.stderr}"
        assert line not in lines
        lines.append(line)
