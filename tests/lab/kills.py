"""Kills a step before each of its lines in turn; rerunning it must still succeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from model.steps import CALL, PREPARATION
from tests.lab.cluster import Cluster

STEP_SECONDS = 1500
ALL_SECONDS = 3 * 3600  # for more than a hundred runs

# Runs before each command of a step and kills the step with its children at the first line where it hasn't
# been killed yet. `timeout` put the step into its own process group. The line is appended because parts of a
# pipeline may get here at the same time, and a killed part must not truncate what another one wrote.
TRAP = '[[ " $ENDED " == *" $LINENO "* ]] || { echo "$LINENO" >>/run/kills/line; kill -KILL 0; }'

# One connection for all of a step's runs, because on an emulated host a login takes longer than most runs.
# The script may contain secrets, so it stays in memory, readable only by root.
KILL_LOOP = r"""
set -u
rm -rf /run/kills
mkdir -m 0700 /run/kills
cat >/run/kills/step
lines=()
while :; do
  status=0
  : >/run/kills/line
  ENDED=${lines[*]} timeout "$0" bash -s -- "$@" </run/kills/step >/run/kills/output 2>&1 || status=$?
  ((status)) || break
  read -r line </run/kills/line
  if ((status != 137)) || [[ " ${lines[*]} " == *" $line "* ]]; then
    echo "status $status at line $line, after kills at the lines ${lines[*]}"
    cat /run/kills/output
    exit 1
  fi
  lines+=("$line")
done
rm -r /run/kills
echo "${#lines[@]}"
"""


def step_scripts(cluster: Cluster) -> dict[str, str]:
    """The full script of each step in the state, by resource name."""
    commands = [item for item in cluster.resources() if item["type"] == "command:remote:Command"]
    return {command["urn"].rpartition("::")[2]: _plain(command["inputs"]["stdin"]) for command in commands}


def _plain(value: Any) -> str:
    return str(json.loads(value["plaintext"]) if isinstance(value, dict) else value)


def run_step(cluster: Cluster, host: str, verb: str, step: str, text: str) -> None:
    """Run a step's script as the provider does; it must succeed."""
    command = ["timeout", str(STEP_SECONDS), "bash", "-s", "--", verb, step, host]
    done = cluster.lab.ssh(host, command, input=text, timeout=STEP_SECONDS + 100)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_at_every_line(
    cluster: Cluster, host: str, verb: str, step: str, text: str, record: Callable[[str], None]
) -> None:
    """Run a step repeatedly; kill it (SIGKILL) each time before the first line that hasn't been killed yet.

    The last run isn't killed and must succeed. The number of kills is recorded.
    """
    assert text.count(CALL) == 1
    watched = text.replace(CALL, f"{CALL}set -o functrace\ntrap '{TRAP}' DEBUG\n")
    command = ["bash", "-c", KILL_LOOP, str(STEP_SECONDS), verb, step, host]
    done = cluster.lab.ssh(host, command, input=watched, timeout=ALL_SECONDS)
    assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    count = int(done.stdout)
    assert count > 0, "no line was traced"
    record(f"{step} ({verb}) killed {count} times")


def prepare_host(cluster: Cluster, host: str, scripts: dict[str, str]) -> None:
    """Prepare a plain host without kills."""
    for step in PREPARATION:
        run_step(cluster, host, "create", step.name, scripts[f"{host}-{step.name}"])
