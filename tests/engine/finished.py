"""A cluster as the state has it after a first `up`: the real engine and program, without machines.

The hosts are SSH servers that answer each step as a finished host does; the Kubernetes objects go to
a real API server. What is previewed against that state is the engine's and the plugins' own judgement.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import yaml

from model.settings import PREFIX
from tests import stacks
from tests.engine.api_server import ApiServer
from tests.engine.ssh_server import CommandFailed, private, ssh_server
from tests.engine.stack import Stack, make_stack_of
from tests.fast.test_graph import TOKEN, promises

NAME = "trial"
HOSTS = {"master": "10.0.0.11", "node1": "10.0.0.12", "node2": "10.0.0.13", "node3": "10.0.0.14"}
"""The machines that there are, of which the cluster has the first three."""

MEETING_SECONDS = 30
"""How long a step waits for the others of its meeting."""


@dataclass(frozen=True)
class Environment:
    """A checkout with one environment, and its state.

    Attributes:
        settings: What the stack file was first made from.
        spare: A host that isn't among them.
        asked: What was asked of the hosts so far, in order: `node1: delete claim node1`.
        dead: Names of hosts on which nothing that is asked is done; or steps as in `asked`, which fail.
        meetings: Steps as in `asked` that end when each that is to be at the meeting has begun, or fail.
    """

    stack: Stack
    settings: dict[str, Any]
    spare: dict[str, Any]
    asked: list[str]
    dead: set[str]
    meetings: dict[str, threading.Barrier]

    @property
    def file(self) -> Path:
        """The stack file."""
        return self.stack.folder / f"Pulumi.{NAME}.yaml"

    def write(self, settings: dict[str, Any]) -> None:
        """Make these the settings; what Pulumi has written into the file stays."""
        kept = {key: value for key, value in yaml.safe_load(self.file.read_text()).items() if key != "config"}
        config = {PREFIX + name: value for name, value in settings.items()}
        self.file.write_text(yaml.safe_dump({**kept, "config": config}, sort_keys=False))

    def copy(self, folder: Path) -> Environment:
        """The same once more, to be changed: checkout and state."""
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
def environment(folder: Path, variables: dict[str, str], cluster: ApiServer) -> Iterator[Environment]:
    """An environment whose cluster was never made; until the block ends, hosts answer and pods become ready.

    :param variables: the environment in which Pulumi runs; the developer's agent is no part of a test.
    :param cluster: what the control plane's kubeconfig leads to.
    """
    project = folder / "project"
    stacks.copy_checkout(project)
    login = asyncssh.generate_private_key("ssh-ed25519")
    (project / "login-key").write_text(private(login))
    asked: list[str] = []
    dead: set[str] = set()
    meetings: dict[str, threading.Barrier] = {}

    def serve(host: str, command: str) -> str:
        called = f"{host}: {command.partition('bash -s -- ')[2]}"
        if dead & {host, called}:
            raise CommandFailed
        asked.append(called)
        if called in meetings:
            try:
                meetings[called].wait(MEETING_SECONDS)
            except threading.BrokenBarrierError as alone:
                raise CommandFailed from alone
        return answer(command, cluster)

    with ExitStack() as running:
        hosts: list[dict[str, Any]] = []
        for name, address in HOSTS.items():
            server = running.enter_context(
                ssh_server(folder / name, login=login, answer=partial(serve, name))
            )
            way = {"host": "127.0.0.1", "port": server.port, "hostKey": server.host_key}
            role = "worker" if hosts else "control-plane"
            hosts.append({"name": name, "role": role, "address": address, "ssh": way})
        settings = {
            "hosts": hosts[:3],
            "ssh": {"privateKeyFile": "login-key"},
            "cluster": {"apiServer": cluster.url.removeprefix("https://")},
        }
        for namespace in ("kube-flannel", "default"):
            running.enter_context(cluster.pods_ready(namespace))
        without_agent = {name: value for name, value in variables.items() if name != "SSH_AUTH_SOCK"}
        stack = make_stack_of(project, without_agent, NAME)
        stack.language_host = True
        made = Environment(stack, settings, hosts[3], asked, dead, meetings)
        made.write(settings)
        yield made


def answer(command: str, cluster: ApiServer) -> str:
    """What a step prints on a host where all is well."""
    called = re.search(r"bash -s -- (\w+) (\w+) ", command)
    match called[2] if called else "":
        case "admin" | "kubeconfig":
            return cluster.kubeconfig
        case "token":
            return TOKEN + "\n"
        case "expected_services":
            return promises()
        case "verification":
            return "== ipvs\n== stats\n== addresses\n== sets\n== spread\n"
    return ""
