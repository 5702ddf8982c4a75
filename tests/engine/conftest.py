"""Fixtures for the engine tests: an empty stack, SSH hosts, an API server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.progress import Progress
from tests.engine.api_server import ApiServer, api_server, programs
from tests.engine.ssh_server import SshServer, ssh_server
from tests.engine.stack import Stack, make_stack
from tools import env


@pytest.fixture(scope="session")
def toolbox() -> env.Toolbox:
    """The engine and the plugins, found in the same order as for users."""
    return env.toolbox(Progress())


@pytest.fixture(scope="session")
def stand_ins(toolbox: env.Toolbox) -> set[str]:
    """The names of the plugins that this project's stand-ins replace."""
    return {tool.name.rpartition("-")[2] for tool in toolbox.plugins if "stand-in" in tool.source}


@pytest.fixture
def stack(tmp_path: Path, toolbox: env.Toolbox) -> Stack:
    """An empty stack for the real engine."""
    environment = env.environment(toolbox)
    environment.pop("SSH_AUTH_SOCK", None)  # the developer's agent
    return make_stack(tmp_path / "pulumi", environment)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SshServer]:
    """A host with an SSH server."""
    with ssh_server(tmp_path / "host") as server:
        yield server


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[str], SshServer]]:
    """A function that starts another host by name."""
    with ExitStack() as running:
        yield lambda name: running.enter_context(ssh_server(tmp_path / name))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A Kubernetes control plane without anything that runs pods."""
    found = programs(Progress(), build=os.environ.get("KUBEADM_IPVS_TEST_BUILD") != "never")
    if found is None:
        pytest.skip("no control plane on PATH or in the cache, and building is off")
    with api_server(tmp_path_factory.mktemp("cluster"), found) as server:
        yield server


@pytest.fixture
def namespace(cluster: ApiServer) -> str:
    """A new namespace for the test."""
    return cluster.namespace()
