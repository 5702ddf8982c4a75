"""A cluster in a lab as the tests see it: its hosts, its stack, and what is asked of them."""

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
from lab.api import Lab
from tests.live_engine import Engine
from tools import env, stack

STATE_SCRIPT = Path(__file__).parent / "snapshot_host_state.sh"
OWN_SCRIPT = Path(__file__).parent / "user_workload.sh"
Config = dict[str, Any]
# Emulated hosts on a busy machine: generous, a run that fails by luck costs more than a slow one.
RUN_SECONDS = 3000.0
# For Pulumi to write its state down, of a run that is left; a deadline of the whole run waits for it too.
STOP_SECONDS = 60.0
NO_CONNECTION_SECONDS = 300.0
# A request by what every host has: `bash -ec ASK ADDRESS PORT`.
ASK = "exec 3<>/dev/tcp/$0/$1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q '^HTTP.* 200' <&3"
NO_CONNECTION = re.compile(
    r"TLS handshake timeout|connection refused|was refused|i/o timeout|unexpected EOF|Client\.Timeout"
)


@dataclass
class Cluster:
    """The lab, the stack on it, and what was seen on the way.

    Attributes:
        lab: The machines.
        hosts: Their names, the control plane's first.
        before: Each host's state before anything was done to it (see snapshot_host_state.sh).
        own: Per host, the process of the person's own service (see user_workload.sh).
        made: What `make up` printed.
        environment: Variables of Pulumi commands.
    """

    lab: Lab
    hosts: tuple[str, ...]
    environment: dict[str, str]
    before: dict[str, set[str]] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    made: str = ""

    @property
    def stack(self) -> str:
        return stack_name(self.lab.name)

    def state(self) -> dict[str, set[str]]:
        """Each host's state now."""
        return self.state_of(self.hosts)

    def state_of(self, hosts: Iterable[str]) -> dict[str, set[str]]:
        """Some hosts' state now."""
        script = STATE_SCRIPT.read_text()

        def look(host: str) -> set[str]:
            done = self.lab.ssh(host, ["bash", "-s"], input=script, timeout=900)
            assert done.returncode == 0, f"{host}: {done.stderr}"
            return set(done.stdout.splitlines())

        names = tuple(hosts)
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(look, names), strict=True))

    def run(self, host: str, command: str, timeout: float = 300) -> str:
        """A shell command's output on a host; it must succeed."""
        done = self.lab.ssh(host, ["bash", "-c", command], timeout=timeout)
        assert done.returncode == 0, f"{host}: {command}: {done.stderr}"
        return done.stdout

    def kubectl(self, command: str) -> str:
        """kubectl's output on the control plane; its cache must not be taken for something left over.

        Asked again while there is no connection: a busy API server takes longer than kubectl's own limits.
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
        """A plain Pulumi command on the stack, or on another one."""
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
        """A Pulumi run on the stack, to be watched and disturbed."""
        return Engine(*arguments, stack=self.stack, folder=project_dir(), environment=self.environment)

    def unlock(self) -> None:
        """What `make up` does first: take away the lock of a run that was killed."""
        stack.unlock(self.stack, env.toolbox(), Progress(quiet=True))

    def get(self, host: str, address: str, port: int) -> subprocess.CompletedProcess[str]:
        """Ask an address for `/` from a host, by what every host has; it fails without a 200 within 15 s."""
        return self.lab.ssh(host, ["timeout", "15", "bash", "-ec", ASK, address, str(port)])

    def logs(self, host: str) -> str:
        """A host's journal, and what the program's steps have logged there."""
        return self.run(host, "journalctl --no-pager -o cat; cat /var/lib/kubeadm-ipvs/*.log")

    def wait_for_answers(self, seconds: float) -> float:
        """Until every host's NodePort answers from every host; how long that took."""
        # One connection per host, and a pause between two looks at whether it answers: a new connection for
        # each look, or one look after the other, would keep an emulated host busy by itself.
        look = (
            'for address; do until echo "$address"; timeout 15 bash -ec "$0" "$address" 30080 2>/dev/null; '
            "do sleep 2; done; done"
        )
        addresses = [f"192.168.166.{101 + number}" for number in range(len(self.hosts))]
        began = time.monotonic()
        for host in self.hosts:
            left = max(int(began + seconds - time.monotonic()), 1)
            done = self.lab.ssh(
                host, ["timeout", str(left), "bash", "-c", look, ASK, *addresses], timeout=left + 60
            )
            silent = (done.stdout.split() or addresses)[-1]
            assert done.returncode == 0, f"{host}: {silent} doesn't answer\n{self.at_work()}"
        return time.monotonic() - began

    def empty_notes(self, host: str) -> int:
        """Leave the CNI plugins' notes of a host's pods as a loss of power may: empty.

        :return: how many pods with a network of their own the host has.
        """
        notes = "/var/lib/cni/flannel/* /var/lib/cni/networks/cbr0/10.* /var/lib/cni/results/*"
        said = self.run(host, f"ls -d /run/netns/cni-*; for note in {notes}; do : >$note; done; sync")
        assert said, f"{host} has no pod with a network of its own"
        return len(said.splitlines())

    def wait_for_pods(self, host: str, count: int, seconds: int) -> None:
        """Until a host has again so many pods with a network of their own."""
        # Asked until it is so, within the bound. The pause between two looks leaves the host its CPU.
        notes = "find /var/lib/cni/flannel -type f -size +0 | wc -l"
        look = f"until (($({notes}) >= {count})); do sleep 2; done"
        done = self.lab.ssh(host, ["timeout", str(seconds), "bash", "-c", look], timeout=seconds + 60)
        assert done.returncode == 0, f"{host}'s {count} pods didn't come back\n{self.at_work()}"

    def at_work(self) -> str:
        """What each host is busy with, for a test that has waited too long."""
        look = (
            "head -n 1 /proc/uptime /proc/loadavg /proc/pressure/*; "
            "ps -eo etimes,time,args --sort=-time | head -n 9 | cut -c -100; "
            "timeout 60 crictl ps -a | cut -c 1-14,36-; timeout 30 ipvsadm -Ln"
        )
        said = []
        for host in self.hosts:
            try:
                said.append(f"{host}:\n{self.lab.ssh(host, ['bash', '-c', look], timeout=200).stdout}")
            except UserError as error:
                said.append(f"{host}: {error}")
        return "\n".join(said)

    def output(self, name: str) -> Any:
        """A stack output, revealed."""
        done = self.pulumi("stack", "output", name, "--json", "--show-secrets")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def revealed(self) -> str:
        """The state as JSON, its secrets in the clear: each run encrypts them anew."""
        done = self.pulumi("stack", "export", "--show-secrets")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def resources(self) -> list[dict[str, Any]]:
        """What the state holds of each resource, in the clear."""
        return list(json.loads(self.revealed())["deployment"]["resources"])


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


def command(progress: Progress, *argv: str) -> str:
    """One of the project's commands, its output seen as it comes and returned."""
    return said_by(progress, [sys.executable, "-u", "-m", *argv])


def said_by(progress: Progress, argv: Sequence[str], stop_seconds: float = STOP_SECONDS) -> str:
    """A program's output, seen as it comes; it must succeed.

    Left by an exception, which a signal to pytest raises too, it doesn't let the program go on: that would
    keep the stack's lock. The program and what it has started are interrupted, and killed if they stay.

    :param stop_seconds: they have so long.
    """
    lines = []
    with subprocess.Popen(
        argv,
        cwd=project_dir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, which is interrupted as a terminal interrupts: Pulumi gets the signal too.
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
    # Not where all of it has ended meanwhile.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            # It may have more to say than the pipe holds.
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def edited(cluster: Cluster, change: Callable[[Config], None]) -> Iterator[None]:
    """While the block runs, the stack's file says what `change` has made of its settings.

    Its comments stay: by one of them the lab knows that the file is its own, and edited.
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
    """`pulumi up`; what it printed."""
    done = cluster.pulumi("up", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def identity(cluster: Cluster) -> tuple[str, ...]:
    """What a new cluster or a new node would have another of."""
    nodes = cluster.kubectl("get nodes -o jsonpath='{.items[*].metadata.uid}'")
    return (cluster.output("kubeconfig"), nodes)


def drift(cluster: Cluster) -> dict[str, set[str]]:
    """What `make check` finds, by host."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.check", "--stack", cluster.stack, "--json"],
        cwd=project_dir(),
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    said = json.loads(done.stdout)
    assert said["notLookedAt"] == {}
    wrong = {host: {item["what"] for item in items} for host, items in said["differences"].items()}
    assert done.returncode == (2 if any(wrong.values()) else 0)
    return wrong


def repaired(name: str) -> Callable[[Config], None]:
    """The settings with a new `repair` at a host, so that all its steps run."""
    text = f"{time.time():.0f}"

    def change(config: Config) -> None:
        next(host for host in config["hosts"] if host["name"] == name)["repair"] = text

    return change


def live_mode(cluster: Cluster, host: str) -> str:
    """The mode in which the host's kube-proxy says that it runs."""
    ask = r'exec 3<>/dev/tcp/127.0.0.1/10249; printf "GET /proxyMode HTTP/1.0\r\n\r\n" >&3; tail -n 1 <&3'
    return cluster.run(host, ask)


def proxy(**values: str) -> Callable[[Config], None]:
    """The settings with others of kube-proxy."""
    return lambda config: config.update(proxy={**config.get("proxy", {}), **values})


def balances(cluster: Cluster, mode: str, scheduler: str = "") -> None:
    """Every host balances in that mode, and nothing of another one is left in its kernel."""
    for host in cluster.hosts:
        assert live_mode(cluster, host) == mode
        tables = cluster.run(host, "nft list tables; iptables-save; ipset list -n")
        assert ("table ip kube-proxy" in tables) == (mode == "nftables")
        assert bool(re.search(r"^:KUBE-SVC-", tables, re.MULTILINE)) == (mode == "iptables")
        assert bool(re.search(r"^KUBE-", tables, re.MULTILINE)) == (mode == "ipvs"), "sets"
        assert ("kube-ipvs0" in cluster.run(host, "ls /sys/class/net")) == (mode == "ipvs")
        schedulers = set(re.findall(r"-s (\w+)", cluster.run(host, "ipvsadm -Sn")))
        assert schedulers == ({scheduler} if scheduler else set())


def secrets_of(cluster: Cluster) -> list[str]:
    """The administrator's key, whole and its begin, the login key, and every token in the state."""
    user = yaml.safe_load(cluster.output("kubeconfig"))["users"][0]["user"]
    login = (cluster.lab.folder / "id_ed25519").read_text().splitlines()[1]
    tokens = re.findall(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", cluster.revealed())
    assert len(tokens) >= len(cluster.hosts) - 1, "the state holds a token for each worker"
    return [user["client-key-data"], user["client-key-data"][:200], login, *tokens]


def put_own_things(cluster: Cluster, *, in_force: Collection[str]) -> None:
    """Give every host what a person might have there (see user_workload.sh).

    :param in_force: the hosts that also get what a reboot would take. None that a test reboots.
    """
    script = OWN_SCRIPT.read_text()
    for host in cluster.hosts:
        kind = ["in-force"] if host in in_force else []
        done = cluster.lab.ssh(host, ["bash", "-s", "--", *kind], input=script, timeout=300)
        assert done.returncode == 0, f"{host}: {done.stderr}"


def own_process(cluster: Cluster, host: str) -> str:
    """The process of the person's own service: another one, and it was restarted."""
    return cluster.run(host, "systemctl show -P MainPID own.service").strip()
