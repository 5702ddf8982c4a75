"""Kills a script before each of its lines in turn; running it again must still succeed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from model.delivery import delivery
from model.steps import CALL, Script, digest
from tests.lab.cluster import Cluster

STEP_SECONDS = 1500
ALL_SECONDS = 3 * 3600  # for more than a hundred runs

# Runs before each command of a step and kills the step with its children at the first line where it hasn't
# been killed yet. `timeout` put the step into its own process group. The line is appended because parts of a
# pipeline may get here at the same time, and a killed part must not truncate what another one wrote.
TRAP = (
    "KILLED_AT=${BASH_SOURCE[0]-}:$LINENO; KILLED_AT=${KILLED_AT##*/}; "
    '[[ " $ENDED " == *" $KILLED_AT "* ]] || { echo "$KILLED_AT" >>/run/kills/line; kill -KILL 0; }'
)

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


def step_texts(cluster: Cluster) -> dict[str, str]:
    """The text of each step in the state, by resource name."""
    commands = [item for item in cluster.resources() if item["type"] == "command:remote:Command"]
    return {command["urn"].rpartition("::")[2]: _plain(command["inputs"]["stdin"]) for command in commands}


def _plain(value: Any) -> str:
    return str(json.loads(value["plaintext"]) if isinstance(value, dict) else value)


def only(text: str, script: Script | str) -> str:
    """A step's text that runs only one of its scripts."""
    script = Script(script) if isinstance(script, str) else script
    call = f'run_scripts "$1" {script.name}={digest(script)} '
    changed, count = re.subn(r'run_scripts "\$1" (?=.*\b' + script.name + r"=)[^<]*", call, text)
    assert count == 1, f"the step doesn't run {script.name}"
    return changed


def deliver(cluster: Cluster, host: str) -> None:
    """Deliver the scripts to a plain host, as the SSH access check does."""
    text = delivery().text(owner="")
    done = cluster.lab.ssh(host, ["bash", "-s", "--", "deliver"], input=text, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def run_step(cluster: Cluster, host: str, verb: str, step: str, text: str) -> None:
    """Run a step's text as the provider does; it must succeed."""
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


def prepare_host(cluster: Cluster, host: str, texts: dict[str, str]) -> None:
    """Deliver the scripts to a plain host and prepare it, without kills."""
    deliver(cluster, host)
    run_step(cluster, host, "create", "preparation", texts[f"{host}-preparation"])
