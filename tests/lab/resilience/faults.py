"""Faults for the long cases: killed runs, cut SSH connections, power cuts and dead hosts."""

from __future__ import annotations

import shlex
import time

from tests.lab.cluster import Cluster
from tests.lab.resilience.results import Record
from tests.live_engine import Engine

EVICTION_SECONDS = 300  # Kubernetes' default for pods on an unresponsive node
DEAD_HOST_SECONDS = 120  # on top of the other hosts' time, which is minutes if they are emulated

# Kills the connection of a step: the nearest sshd above its process.
CUT = r"""
while [[ $(ps -o comm= -p "$pid") != sshd* ]]; do pid=$(ps -o ppid= -p "$pid" | tr -d ' '); done
kill -KILL "$pid"
echo "$call" >/run/cut
"""
# Stops the step first, because a short one could finish before its sshd is found.
CUT_MIDWAY = rf"""call=$0
until pkill -STOP -f "[b]ash -s -- $call"; do read -rt 0.2 <> <(:) || :; done
pid=$(pgrep -of "[b]ash -s -- $call")
{CUT}
pkill -CONT -f "[b]ash -s -- $call"
"""


def kill_midway(run: Engine, every: int, until: str) -> str:
    """Kill the engine once `every` steps have ended and others are running.

    Returns:
        The running steps; empty if the engine wasn't killed because the run ended or the step `until` began.
    """
    for _ in run.events():
        if until in run.started:
            return ""
        if len(run.started) > len(run.finished) >= every:
            run.kill()
            return " and ".join(step for step in run.started if step not in run.finished)
    return ""


def kill_repeatedly(
    cluster: Cluster, verb: str, every: int, printed: list[str], record: Record, until: str = ""
) -> Engine:
    """Start runs and kill each one after `every` steps; return the run that wasn't killed.

    The engine reports a step's end before it saves it, so steps that take no time, such as deletions together
    with their host, may end in several runs. The next run is then killed one step later.
    """
    killed: list[Engine] = []
    while point := kill_midway(run := cluster.start(verb), every, until):
        record(f"{verb}: {len(run.finished)} steps ended, killed during {point}")
        printed.append(run.output)
        every += bool(killed and set(killed[-1].finished) & set(run.finished))
        killed.append(run)
        cluster.unlock()
    for previous in killed:
        previous.kill_plugins()
    assert until or len(killed) > 2, "not killed often enough"
    return run


def cut_power_in_init(cluster: Cluster, run: Engine) -> None:
    """Cut the control plane's power during init, right after kubeadm wrote etcd's manifest."""
    master = cluster.hosts[0]
    wait = "until [[ -e /etc/kubernetes/manifests/etcd.yaml ]]; do read -rt 0.2 <> <(:) || :; done"
    cluster.run(master, f"timeout 900 bash -c '{wait}'", timeout=1000)
    cluster.lab.power_off(master)
    assert run.wait() != 0
    assert f"{master}-init" in run.diagnostics
    cluster.lab.up()


def cut_connections(cluster: Cluster, printed: list[str], record: Record, steps: dict[str, str]) -> None:
    """Run `up` and cut the SSH connection of some steps while they run.

    Only the step's own sshd is killed; its processes on the host have to notice by themselves.

    Args:
        cluster: The cluster.
        printed: Receives the run's output.
        record: Receives each cut.
        steps: For each resource, the step's verb, name and host.
    """
    # Prepared before the run: on a busy host a login takes longer than a short step.
    for call in steps.values():
        cutting = f"setsid timeout 900 bash -c {shlex.quote(CUT_MIDWAY)} {shlex.quote(call)}"
        cluster.run(call.split()[-1], f"rm -f /run/cut; {cutting} </dev/null >/dev/null 2>&1 &")
    run = cluster.start("up")
    status = run.wait()
    printed.append(run.output)
    clean_up = "pkill -f '[p]kill -STOP'; cat /run/cut; rm -f /run/cut"
    cut = {call: cluster.run(call.split()[-1], clean_up) for call in steps.values()}
    assert cut == {call: f"{call}\n" for call in steps.values()}
    assert status != 0
    for resource, call in steps.items():
        assert f"{resource}: " in run.diagnostics
        record(f"{call}: cut")


def delay_by_dead_host(cluster: Cluster, host: str, *arguments: str) -> float:
    """Run a command that must fail at a dead host's claim.

    No update on another host may wait until Kubernetes evicts the dead host's pods.

    Returns:
        How long the run waited for that host alone, in seconds.
    """
    run = cluster.start(*arguments)
    last = time.monotonic()
    began: dict[str, float] = {}
    for word in run.events():
        step = run.finished[-1] if word == "finished" else run.started[-1]
        if step.split()[1].startswith(f"{host}-"):
            continue
        last = time.monotonic()
        if word == "started":
            began[step] = last
        elif step.startswith("update "):
            assert last - began[step] < EVICTION_SECONDS, step
    assert run.wait() != 0
    assert f"{host}-claim" in run.diagnostics
    return time.monotonic() - last
