"""A step is killed at each of its lines, one after the other, and must come to the same end all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from components.cluster import Cluster as Program
from components.cluster import ClusterArgs
from model.settings import Settings
from tests.fast import graph, test_graph
from tests.lab.cluster import Cluster, differences
from tools import check

CALL = "STEP=$2 HOST=$3\n"
KILLED = 128 + 9


def texts(settings: Settings, stack: str, host: str, steps: Sequence[str]) -> dict[str, str]:
    """What is sent to a host for each of the steps: taken from the program itself."""

    def program() -> None:
        Program("test", ClusterArgs(settings, stack))

    inputs = graph.run(program, test_graph.outputs).inputs
    return {step: str(inputs[f"{host}-{step}"]["stdin"]) for step in steps}


def send(
    cluster: Cluster, host: str, verb: str, step: str, text: str, trap: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a step's text as the provider would, with a trap before each of its commands."""
    assert text.count(CALL) == 1
    watched = text.replace(CALL, f"{CALL}set -o functrace\ntrap '{trap}' DEBUG\n") if trap else text
    # Of a command that a signal ended ssh says no more than 255.
    command = ["bash", "-c", 'timeout 600 bash -s -- "$@"; exit $?', "bash", verb, step, host]
    return cluster.lab.ssh(host, command, input=watched, timeout=700)


def ended_well(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def killed_at_each_line(cluster: Cluster, host: str, steps: Sequence[str]) -> dict[str, int]:
    """Run the steps on a plain host undisturbed, and then killed at each line; at how many, by step.

    After its kills each step runs once to its end. The host must then be as after the undisturbed
    run, and as before when it is given back.
    """
    sent = texts(check.settings_of(cluster.stack, cluster.environment), cluster.stack, host, steps)
    plain = cluster.state_of([host])
    lines: dict[str, list[str]] = {}
    for step in steps:
        ended_well(send(cluster, host, "create", step, sent[step], "echo $LINENO >>/run/lines"))
        lines[step] = list(dict.fromkeys(cluster.run(host, "cat /run/lines; rm /run/lines").split()))
    wanted = cluster.state_of([host])
    ended_well(send(cluster, host, "delete", "claim", sent["claim"]))
    assert differences(plain, cluster.state_of([host])) == ""
    kills = dict.fromkeys(steps, 0)
    for step in steps:
        for line in lines[step]:
            trap = f"if ((LINENO == {line})); then kill -KILL $$; fi"
            done = send(cluster, host, "create", step, sent[step], trap)
            # A line whose work is done by now may not be reached any more.
            assert done.returncode in (0, KILLED), f"{step}, killed at line {line}: {done.stderr}"
            kills[step] += done.returncode == KILLED
        ended_well(send(cluster, host, "create", step, sent[step]))
    assert differences(wanted, cluster.state_of([host])) == ""
    ended_well(send(cluster, host, "delete", "claim", sent["claim"]))
    assert differences(plain, cluster.state_of([host])) == ""
    return kills
