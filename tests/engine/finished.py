"""A stack in the state after its first `up`, created by the real engine and program, without real hosts.

The hosts are SSH servers that respond to each step like a working host, and the Kubernetes objects go to a
real API server. Previews of that stack show how the real engine and plugins handle a change.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import yaml

from model.settings import PREFIX
from model.steps import step_of
from tests import stacks
from tests.engine.api_server import ApiServer
from tests.engine.ssh_server import CommandFailed, SshServer, private, ssh_servers
from tests.engine.stack import Stack, make_stack_of
from tests.fast.recorded_run import framed, services_and_slices

NAME = "trial"
HOSTS = {"master": "10.0.0.11", "node1": "10.0.0.12", "node2": "10.0.0.13", "node3": "10.0.0.14"}
"""The available hosts' addresses. The last one is a spare; the cluster uses the others."""

BARRIER_SECONDS = 30
"""How long a step waits for the other steps at its barrier."""


@dataclass(frozen=True)
class Environment:
    """A checkout with one environment and its state.

    Attributes:
        settings: The settings that the stack file started with.
        spare: A host that isn't in the settings.
        calls: The steps that hosts ran so far, in order, such as `node1: delete claim node1`.
        failing: Hosts on which every step fails, steps that fail on one host, such as `node1:join`, and
            single calls that fail, written as in `calls`.
        barriers: Steps, written as in `calls`, that succeed only if all steps at their barrier run at once.
        servers: The hosts' SSH servers by host name.
    """

    stack: Stack
    settings: dict[str, Any]
    spare: dict[str, Any]
    calls: list[str]
    failing: set[str]
    barriers: dict[str, threading.Barrier]
    servers: dict[str, SshServer]

    @property
    def file(self) -> Path:
        """The stack file."""
        return self.stack.folder / f"Pulumi.{NAME}.yaml"

    def write(self, settings: dict[str, Any]) -> None:
        """Write the settings, and keep the lines that Pulumi wrote to the file."""
        kept = {key: value for key, value in yaml.safe_load(self.file.read_text()).items() if key != "config"}
        config = {PREFIX + name: value for name, value in settings.items()}
        self.file.write_text(yaml.safe_dump({**kept, "config": config}, sort_keys=False))

    def copy(self, folder: Path) -> Environment:
        """Copy the checkout and the state."""
        shutil.copytree(self.stack.folder.parent, folder, symlinks=True)
        backend = {"PULUMI_BACKEND_URL": (folder / "backend").as_uri()}
        stack = replace(
            self.stack,
            folder=folder / self.stack.folder.name,
            environment={**self.stack.environment, **backend},
            extra={},
        )
        return replace(self, stack=stack)


@contextmanager
def environment(
    folder: Path, variables: dict[str, str], cluster: ApiServer, addresses: Mapping[str, str] = HOSTS
) -> Iterator[Environment]:
    """Create an environment without a cluster. Within the block, hosts respond and pods become ready.

    Args:
        folder: Holds the checkout, the backend and the hosts.
        variables: Pulumi's environment variables. The developer's SSH agent is left out.
        cluster: The API server that the control plane's kubeconfig names.
        addresses: The hosts' addresses by name. The first host is the control plane, the last one the spare.
    """
    project = folder / "project"
    stacks.copy_checkout(project)
    login = asyncssh.generate_private_key("ssh-ed25519")
    (project / "login-key").write_text(private(login))
    calls: list[str] = []
    failing: set[str] = set()
    barriers: dict[str, threading.Barrier] = {}

    def serve(host: str, command: str) -> str:
        # Without the end of an update's command, which changes with the step's text.
        call = " ".join([f"{host}:", *command.partition("bash -s -- ")[2].split()[:3]])
        step = step_of(command)
        if failing & {host, call, f"{host}:{step.name if step else ''}"}:
            raise CommandFailed
        calls.append(call)
        if call in barriers:
            try:
                barriers[call].wait(BARRIER_SECONDS)
            except threading.BrokenBarrierError as error:
                raise CommandFailed from error
        return answer(command, cluster)

    with ExitStack() as running:
        hosts: list[dict[str, Any]] = []
        answers = {folder / name: partial(serve, name) for name in addresses}
        servers = dict(zip(addresses, running.enter_context(ssh_servers(answers, login)), strict=True))
        for name, address in addresses.items():
            server = servers[name]
            ssh = {"host": "127.0.0.1", "port": server.port, "hostKey": server.host_key}
            role = "worker" if hosts else "control-plane"
            hosts.append({"name": name, "role": role, "address": address, "ssh": ssh})
        settings = {
            "hosts": hosts[:-1],
            "ssh": {"privateKeyFile": "login-key"},
            "cluster": {"apiServer": cluster.url.removeprefix("https://")},
        }
        for namespace in ("kube-flannel", "default"):
            running.enter_context(cluster.pods_ready(namespace))
        without_agent = {name: value for name, value in variables.items() if name != "SSH_AUTH_SOCK"}
        stack = make_stack_of(project, without_agent, NAME)
        stack.language_host = True
        made = Environment(stack, settings, hosts[-1], calls, failing, barriers, servers)
        made.write(settings)
        yield made


@contextmanager
def dead_host(made: Environment, cluster: ApiServer, name: str) -> Iterator[None]:
    """Within the block, a worker is off, and the cluster has noticed."""
    node = f"/api/v1/nodes/{name}"
    cluster.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    status = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    cluster.call("PATCH", f"{node}/status", {"status": status}, "application/merge-patch+json")
    made.servers[name].down = True
    try:
        yield
    finally:
        made.servers[name].down = False
        cluster.call("DELETE", node)


def answer(command: str, cluster: ApiServer) -> str:
    """A step's output on a healthy host."""
    call = re.search(r"bash -s -- (\w+) (\w+) ", command)
    match call[2] if call else "":
        case "init":
            return framed(cluster.kubeconfig)
        case "expected_services":
            return framed(services_and_slices())
        case "verification":
            return framed("== ipvs\n== stats\n== addresses\n== sets\n== spread\n")
    return framed()
