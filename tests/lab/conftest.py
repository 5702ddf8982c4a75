"""A cluster made by `make up`'s own code in a lab of the tests', once for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.api import Lab
from lab.paths import project_dir, stack_name
from lab.progress import Progress
from tools import down, env

LAB = "test"
STATE_SCRIPT = Path(__file__).parent / "state.sh"
# Emulated hosts on a busy machine: generous, a run that fails by luck costs more than a slow one.
RUN_SECONDS = 3000.0


@dataclass
class Cluster:
    """The lab, the stack on it, and what was seen on the way.

    Attributes:
        lab: The machines.
        before: Each host's state before anything was done to it (see state.sh).
        made: What `make up` printed.
        environment: Variables of Pulumi commands.
    """

    lab: Lab
    hosts: tuple[str, ...]
    environment: dict[str, str]
    before: dict[str, set[str]] = field(default_factory=dict)
    made: str = ""

    @property
    def stack(self) -> str:
        return stack_name(self.lab.name)

    def state(self) -> dict[str, set[str]]:
        """Each host's state now."""
        script = STATE_SCRIPT.read_text()
        states = {}
        for host in self.hosts:
            done = self.lab.ssh(host, ["bash", "-s"], input=script, timeout=900)
            assert done.returncode == 0, f"{host}: {done.stderr}"
            states[host] = set(done.stdout.splitlines())
        return states

    def run(self, host: str, command: str, timeout: float = 300) -> str:
        """A shell command's output on a host; it must succeed."""
        done = self.lab.ssh(host, ["bash", "-c", command], timeout=timeout)
        assert done.returncode == 0, f"{host}: {command}: {done.stderr}"
        return done.stdout

    def kubectl(self, command: str) -> str:
        """kubectl's output on the control plane; its cache must not be taken for something left over."""
        prefix = "KUBECACHEDIR=/run/kubectl kubectl --kubeconfig /etc/kubernetes/admin.conf"
        return self.run(self.hosts[0], f"{prefix} {command}")

    def pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A plain Pulumi command on the stack."""
        return subprocess.run(
            ["pulumi", *arguments, "--stack", self.stack, "--non-interactive", "--color", "never"],
            cwd=project_dir(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )

    def output(self, name: str) -> Any:
        """A stack output, revealed."""
        done = self.pulumi("stack", "output", name, "--json", "--show-secrets")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def differences(before: dict[str, set[str]], after: dict[str, set[str]]) -> str:
    """What one state has and the other hasn't, host by host; empty when they are equal."""
    return "\n".join(
        line
        for host in before
        for line in (
            *(f"{host}: gone: {thing}" for thing in sorted(before[host] - after[host])),
            *(f"{host}: new: {thing}" for thing in sorted(after[host] - before[host])),
        )
    )


def _command(progress: Progress, *argv: str) -> str:
    """One of the project's commands, its output seen as it comes and returned."""
    lines = []
    with subprocess.Popen(
        [sys.executable, "-u", "-m", *argv],
        cwd=project_dir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress.say(line.rstrip())
            lines.append(line)
    assert process.returncode == 0, "".join(lines[-80:])
    return "".join(lines)


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, failure_logs: dict[str, Callable[[Path], object]], progress: Progress
) -> Cluster:
    """The finished cluster, made from plain hosts; its lab goes when the tests end."""
    lab = Lab.load(LAB, progress)
    down.down(LAB, progress, force=True)

    def end() -> None:
        failure_logs.pop("lab", None)
        # What a stack still says of the machines goes with them.
        down.down(LAB, progress, force=True)

    # Not by `yield`: where the making fails, the logs are collected before the lab goes.
    request.addfinalizer(end)
    count = int(os.environ.get("KUBEADM_IPVS_TEST_HOSTS", "3"))
    began = time.monotonic()
    failure_logs["lab"] = lab.collect_logs
    status = lab.up(count=count)
    made = Cluster(lab, tuple(host.name for host in status.hosts), env.environment())
    made.before = made.state()
    made.made = _command(progress, "tools.up", "--lab", LAB)
    progress.say(f"from plain hosts to the proof: {time.monotonic() - began:.0f} s")
    return made
