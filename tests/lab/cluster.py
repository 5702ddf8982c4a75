"""A lab's cluster for the tests: its hosts, its stack, and operations on both."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.paths import project_dir, stack_file, stack_name
from common.progress import Progress
from lab.lab import Lab
from tests.live_engine import Engine
from tools import env, stack

SNAPSHOT_SCRIPT = Path(__file__).parent / "snapshot_host_state.sh"
WORKLOAD_SCRIPT = Path(__file__).parent / "user_workload.sh"
Config = dict[str, Any]
# Generous: with emulated hosts on a busy computer, a spurious failure costs more than a slow run.
RUN_SECONDS = 3000.0
# Time for an interrupted Pulumi run to save its state. The deadline of the test run waits for it too.
STOP_SECONDS = 60.0
NO_CONNECTION_SECONDS = 300.0
# An HTTP request with tools that every host has: `bash -ec HTTP_REQUEST ADDRESS PORT`.
HTTP_REQUEST = "exec 3<>/dev/tcp/$0/$1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q '^HTTP.* 200' <&3"
NO_CONNECTION = re.compile(
    r"TLS handshake timeout|connection refused|was refused|i/o timeout|unexpected EOF|Client\.Timeout"
)


@dataclass
class Cluster:
    """The lab, its stack, and what the fixtures recorded.

    Attributes:
        lab: The hosts' VMs.
        hosts: The hosts' names, starting with the control plane.
        environment: Environment variables for Pulumi commands.
        before: Each host's state before the cluster was created (see snapshot_host_state.sh).
        workload: The PID of the user's service on each host (see user_workload.sh).
        up_output: The output of `make up`.
    """

    lab: Lab
    hosts: tuple[str, ...]
    environment: dict[str, str]
    before: dict[str, set[str]] = field(default_factory=dict)
    workload: dict[str, str] = field(default_factory=dict)
    up_output: str = ""

    @property
    def stack(self) -> str:
        return stack_name(self.lab.name)

    def state(self) -> dict[str, set[str]]:
        """Each host's current state."""
        return self.state_of(self.hosts)

    def state_of(self, hosts: Iterable[str]) -> dict[str, set[str]]:
        """The current state of some hosts."""
        script = SNAPSHOT_SCRIPT.read_text()

        def snapshot(host: str) -> set[str]:
            done = self.lab.ssh(host, ["bash", "-s"], input=script, timeout=900)
            assert done.returncode == 0, f"{host}: {done.stderr}"
            return set(done.stdout.splitlines())

        names = tuple(hosts)
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(snapshot, names), strict=True))

    def run(self, host: str, command: str, timeout: float = 300) -> str:
        """Run a shell command on a host, which must succeed, and return its output."""
        done = self.lab.ssh(host, ["bash", "-c", command], timeout=timeout)
        assert done.returncode == 0, f"{host}: {command}: {done.stderr}"
        return done.stdout

    def kubectl(self, command: str) -> str:
        """Run kubectl on the control plane and return its output.

        Connection errors are retried, because a busy API server exceeds kubectl's timeouts. The cache is in
        /run, so that it doesn't count as a leftover.
        """
        line = f"KUBECACHEDIR=/run/kubectl kubectl --kubeconfig /etc/kubernetes/admin.conf {command}"
        began = time.monotonic()
        while True:
            done = self.lab.ssh(self.hosts[0], ["bash", "-c", line], timeout=300)
            if done.returncode == 0:
                return done.stdout
            late = time.monotonic() - began > NO_CONNECTION_SECONDS
            assert not late and NO_CONNECTION.search(done.stderr), f"{command}: {done.stderr}"

    def pulumi(self, *arguments: str, on: str = "") -> subprocess.CompletedProcess[str]:
        """Run a Pulumi command on this stack, or on another one."""
        return subprocess.run(
            ["pulumi", *arguments, "--stack", on or self.stack, "--non-interactive", "--color", "never"],
            cwd=project_dir(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )

    def start(self, *arguments: str) -> Engine:
        """Start a Pulumi run on the stack, which a test can follow and disturb."""
        return Engine(*arguments, stack=self.stack, folder=project_dir(), environment=self.environment)

    def unlock(self) -> None:
        """Remove a killed run's lock, as `make up` does first."""
        stack.unlock(self.stack, env.toolbox(), Progress(quiet=True))

    def get(self, host: str, address: str, port: int) -> subprocess.CompletedProcess[str]:
        """Request `/` from an address on a host. Fails without a status 200 within 15 s."""
        return self.lab.ssh(host, ["timeout", "15", "bash", "-ec", HTTP_REQUEST, address, str(port)])

    def logs(self, host: str) -> str:
        """A host's journal and the logs of the program's steps."""
        return self.run(host, "journalctl --no-pager -o cat; cat /var/lib/kubeadm-ipvs/*.log")

    def wait_for_node_ports(self, seconds: float) -> float:
        """Wait until every host reaches every host's NodePort; return the time in seconds."""
        # One connection per host and a pause between attempts: reconnecting or polling without a pause would
        # keep an emulated host busy by itself.
        poll = (
            'for address; do until echo "$address"; timeout 15 bash -ec "$0" "$address" 30080 2>/dev/null; '
            "do sleep 2; done; done"
        )
        addresses = [f"192.168.166.{101 + number}" for number in range(len(self.hosts))]
        began = time.monotonic()
        for host in self.hosts:
            left = max(int(began + seconds - time.monotonic()), 1)
            done = self.lab.ssh(
                host, ["timeout", str(left), "bash", "-c", poll, HTTP_REQUEST, *addresses], timeout=left + 60
            )
            silent = (done.stdout.split() or addresses)[-1]
            assert done.returncode == 0, f"{host}: {silent} doesn't answer\n{self.activity()}"
        return time.monotonic() - began

    def empty_cni_state(self, host: str) -> int:
        """Empty the CNI plugins' state files for a host's pods, as a power cut may.

        Returns:
            The number of pods with their own network.
        """
        files = "/var/lib/cni/flannel/* /var/lib/cni/networks/cbr0/10.* /var/lib/cni/results/*"
        listed = self.run(host, f"ls -d /run/netns/cni-*; for file in {files}; do : >$file; done; sync")
        assert listed, f"{host} has no pod with its own network"
        return len(listed.splitlines())

    def wait_for_pods(self, host: str, count: int, seconds: int) -> None:
        """Wait until a host has this many pods with their own network again."""
        # The pause between attempts leaves the CPU to the host.
        files = "find /var/lib/cni/flannel -type f -size +0 | wc -l"
        poll = f"until (($({files}) >= {count})); do sleep 2; done"
        done = self.lab.ssh(host, ["timeout", str(seconds), "bash", "-c", poll], timeout=seconds + 60)
        assert done.returncode == 0, f"{host}'s {count} pods didn't come back\n{self.activity()}"

    def activity(self) -> str:
        """Each host's load, processes, containers and virtual servers, to explain a timeout."""
        command = (
            "head -n 1 /proc/uptime /proc/loadavg /proc/pressure/*; "
            "ps -eo etimes,time,args --sort=-time | head -n 9 | cut -c -100; "
            "timeout 60 crictl ps -a | cut -c 1-14,36-; timeout 30 ipvsadm -Ln"
        )
        found = []
        for host in self.hosts:
            try:
                found.append(f"{host}:\n{self.lab.ssh(host, ['bash', '-c', command], timeout=200).stdout}")
            except UserError as error:
                found.append(f"{host}: {error}")
        return "\n".join(found)

    def output(self, name: str) -> Any:
        """A stack output in plain text."""
        done = self.pulumi("stack", "output", name, "--json", "--show-secrets")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def plain_state(self) -> str:
        """The state as JSON with secrets in plain text; each run encrypts them differently."""
        done = self.pulumi("stack", "export", "--show-secrets")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def resources(self) -> list[dict[str, Any]]:
        """The state's resources with secrets in plain text."""
        return list(json.loads(self.plain_state())["deployment"]["resources"])


def differences(before: dict[str, set[str]], after: dict[str, set[str]]) -> str:
    """Compare two states, host by host; empty if they are equal."""
    return "\n".join(
        line
        for host in before
        for line in (
            *(f"{host}: gone: {thing}" for thing in sorted(before[host] - after[host])),
            *(f"{host}: new: {thing}" for thing in sorted(after[host] - before[host])),
        )
    )


def command(progress: Progress, *argv: str) -> str:
    """Run one of the project's commands, show its output as it arrives, and return it."""
    return run_program(progress, [sys.executable, "-u", "-m", *argv])


def run_program(progress: Progress, argv: Sequence[str], stop_seconds: float = STOP_SECONDS) -> str:
    """Run a program, which must succeed, show its output as it arrives, and return it.

    On an exception, which includes a signal to pytest, the program and its children are interrupted and then
    killed. Left running, they would keep the stack's lock.

    Args:
        progress: Shows the output.
        argv: The program and its arguments.
        stop_seconds: The time between interrupt and kill.
    """
    lines = []
    with subprocess.Popen(
        argv,
        cwd=project_dir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # In its own process group, so that an interrupt reaches Pulumi too, like one from a terminal.
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                progress.say(line.rstrip())
                lines.append(line)
        except BaseException:
            _stop(process, stop_seconds)
            raise
    assert process.returncode == 0, "".join(lines[-80:])
    return "".join(lines)


def _stop(process: subprocess.Popen[str], seconds: float) -> None:
    # The processes may have exited in the meantime.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            # Its remaining output may exceed the pipe's buffer.
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def edited(cluster: Cluster, change: Callable[[Config], None]) -> Iterator[None]:
    """Change the settings in the stack file during the block.

    Comments stay: one of them marks the file as generated by the lab.
    """
    file = stack_file(cluster.lab.name)
    before = file.read_text()
    document = yaml.safe_load(before)
    config = {name.removeprefix("kubeadm-ipvs:"): value for name, value in document["config"].items()}
    change(config)
    document["config"] = {f"kubeadm-ipvs:{name}": value for name, value in config.items()}
    comments = [line for line in before.splitlines(keepends=True) if line.startswith("#")]
    file.write_text("".join(comments) + yaml.safe_dump(document))
    try:
        yield
    finally:
        file.write_text(before)


def up(cluster: Cluster) -> str:
    """Run `pulumi up`, which must succeed, and return its output."""
    done = cluster.pulumi("up", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def identity(cluster: Cluster) -> tuple[str, ...]:
    """Values that change with a new cluster or node: the kubeconfig and the nodes' UIDs."""
    nodes = cluster.kubectl("get nodes -o jsonpath='{.items[*].metadata.uid}'")
    return (cluster.output("kubeconfig"), nodes)


def drift(cluster: Cluster) -> dict[str, set[str]]:
    """The findings of `make check`, by host."""
    done = subprocess.run(
        [sys.executable, "-m", "tools", "check", "--stack", cluster.stack, "--json"],
        cwd=project_dir(),
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["notChecked"] == {}
    found = {host: {item["what"] for item in items} for host, items in report["differences"].items()}
    assert done.returncode == (2 if any(found.values()) else 0)
    return found


def repaired(name: str) -> Callable[[Config], None]:
    """Set a new `repair` for a host, so that all its steps run."""
    text = f"{time.time():.0f}"

    def change(config: Config) -> None:
        next(host for host in config["hosts"] if host["name"] == name)["repair"] = text

    return change


def without(name: str) -> Callable[[Config], None]:
    """Remove a host from the settings."""

    def change(config: Config) -> None:
        config["hosts"] = [host for host in config["hosts"] if host["name"] != name]

    return change


def live_mode(cluster: Cluster, host: str) -> str:
    """The mode that the host's kube-proxy reports."""
    request = r'exec 3<>/dev/tcp/127.0.0.1/10249; printf "GET /proxyMode HTTP/1.0\r\n\r\n" >&3; tail -n 1 <&3'
    return cluster.run(host, request)


def proxy(**values: str) -> Callable[[Config], None]:
    """Change settings of kube-proxy."""
    return lambda config: config.update(proxy={**config.get("proxy", {}), **values})


def assert_balances(cluster: Cluster, mode: str, scheduler: str = "") -> None:
    """Assert that every host balances in this mode, and that no other mode left entries in its kernel."""
    for host in cluster.hosts:
        assert live_mode(cluster, host) == mode
        tables = cluster.run(host, "nft list tables; iptables-save; ipset list -n")
        assert ("table ip kube-proxy" in tables) == (mode == "nftables")
        assert bool(re.search(r"^:KUBE-SVC-", tables, re.MULTILINE)) == (mode == "iptables")
        assert bool(re.search(r"^KUBE-", tables, re.MULTILINE)) == (mode == "ipvs"), "sets"
        assert ("kube-ipvs0" in cluster.run(host, "ls /sys/class/net")) == (mode == "ipvs")
        schedulers = set(re.findall(r"-s (\w+)", cluster.run(host, "ipvsadm -Sn")))
        assert schedulers == ({scheduler} if scheduler else set())


def secrets_in(cluster: Cluster) -> list[str]:
    """The admin's key and its beginning, the login key, and every token in the state."""
    user = yaml.safe_load(cluster.output("kubeconfig"))["users"][0]["user"]
    login = (cluster.lab.folder / "id_ed25519").read_text().splitlines()[1]
    tokens = re.findall(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", cluster.plain_state())
    assert len(tokens) >= len(cluster.hosts) - 1, "the state has a token for each worker"
    return [user["client-key-data"], user["client-key-data"][:200], login, *tokens]


def install_user_workload(cluster: Cluster, *, in_force: Collection[str]) -> None:
    """Install on every host the things that a user might have there (see user_workload.sh).

    Args:
        cluster: The hosts.
        in_force: Hosts that also get rules that a reboot removes. No test may reboot these.
    """
    script = WORKLOAD_SCRIPT.read_text()
    for host in cluster.hosts:
        arguments = ["in-force"] if host in in_force else []
        done = cluster.lab.ssh(host, ["bash", "-s", "--", *arguments], input=script, timeout=300)
        assert done.returncode == 0, f"{host}: {done.stderr}"


def workload_process(cluster: Cluster, host: str) -> str:
    """The PID of the user's service. It changes if the service restarts."""
    return cluster.run(host, "systemctl show -P MainPID workload.service").strip()
