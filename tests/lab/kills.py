"""A step is killed at each of its lines, one after the other, and must come to its end all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.lab.cluster import Cluster

CALL = "STEP=$2 HOST=$3\n"
STEP_SECONDS = 1500
PREPARATION = ("claim", "kernel", "firewall", "packages", "runtime")
ALL_SECONDS = 3 * 3600  # a hundred runs and more

# Before each of a step's commands: ends the step, with what it has started, in the first line where it
# hasn't been ended yet. `timeout` has made it a process group of its own. Appended, since the parts of a
# pipeline may get here at once, and one that is killed must not have emptied what the other wrote.
TRAP = '[[ " $ENDED " == *" $LINENO "* ]] || { echo "$LINENO" >>/run/kills/line; kill -KILL 0; }'

# One connection for all of a step's runs: logging in takes an emulated host longer than most of them. The
# text may hold secrets: memory only, and for root.
AGAIN_AND_AGAIN = r"""
set -u
rm -rf /run/kills
mkdir -m 0700 /run/kills
cat >/run/kills/step
lines=()
while :; do
  status=0
  : >/run/kills/line
  ENDED=${lines[*]} timeout "$0" bash -s -- "$@" </run/kills/step >/run/kills/said 2>&1 || status=$?
  ((status)) || break
  read -r line </run/kills/line
  if ((status != 137)) || [[ " ${lines[*]} " == *" $line "* ]]; then
    echo "status $status at line $line, after kills at the lines ${lines[*]}"
    cat /run/kills/said
    exit 1
  fi
  lines+=("$line")
done
rm -r /run/kills
echo "${#lines[@]}"
"""


def texts(cluster: Cluster) -> dict[str, str]:
    """What the state would have sent to the hosts, by resource: each step's whole text."""
    commands = [item for item in cluster.resources() if item["type"] == "command:remote:Command"]
    return {command["urn"].rpartition("::")[2]: _plain(command["inputs"]["stdin"]) for command in commands}


def _plain(value: Any) -> str:
    return str(json.loads(value["plaintext"]) if isinstance(value, dict) else value)


def run_to_its_end(cluster: Cluster, host: str, verb: str, step: str, text: str) -> None:
    """Run a step's text undisturbed, as the provider would; it must succeed."""
    command = ["timeout", str(STEP_SECONDS), "bash", "-s", "--", verb, step, host]
    done = cluster.lab.ssh(host, command, input=text, timeout=STEP_SECONDS + 100)
    assert done.returncode == 0, done.stdout + done.stderr


def killed_at_each_line(
    cluster: Cluster, host: str, verb: str, step: str, text: str, figure: Callable[[str], None]
) -> None:
    """Run a step again and again, each time killed (SIGKILL) before the first line where it hasn't been yet.

    How many times it was killed is said as a figure. In the end it must succeed.
    """
    assert text.count(CALL) == 1
    watched = text.replace(CALL, f"{CALL}set -o functrace\ntrap '{TRAP}' DEBUG\n")
    command = ["bash", "-c", AGAIN_AND_AGAIN, str(STEP_SECONDS), verb, step, host]
    done = cluster.lab.ssh(host, command, input=watched, timeout=ALL_SECONDS)
    assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    times = int(done.stdout)
    assert times > 0, "no line of it was seen"
    figure(f"{step} ({verb}) killed {times} times")


def prepare(cluster: Cluster, host: str, sent: dict[str, str]) -> None:
    """Run a plain host's steps up to the one that makes it a node, undisturbed."""
    for step in PREPARATION:
        run_to_its_end(cluster, host, "create", step, sent[f"{host}-{step}"])
