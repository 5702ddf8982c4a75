"""Finds dead workers at the start of a run, so that no other host waits for them (docs/decisions/0032)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pulumi

from components import api_requests, ssh_access
from model.kubeconfig import KubeconfigError
from model.login import Login
from model.settings import Host, Settings

# A control plane that needs longer is the run's real problem, which its own steps report.
_API_SECONDS = 20.0


def find(settings: Settings, kubeconfig: str | None) -> frozenset[str]:
    """The names of the workers whose Node isn't Ready and that accept no login; each gets a warning.

    A host that accepts a login isn't dead: the run may be what makes its Node Ready again.

    Args:
        settings: The environment.
        kubeconfig: The administrator's kubeconfig of the last completed run; None before the first.
    """
    # A preview runs no steps, and must not depend on the hosts.
    if not kubeconfig or pulumi.runtime.is_dry_run():
        return frozenset()
    not_ready = _nodes_not_ready(kubeconfig)
    suspects = [host for host in settings.workers if host.name in not_ready]
    if not suspects:
        return frozenset()
    # Pulumi's event loop already runs in this thread.
    with ThreadPoolExecutor(1) as executor:
        failures = executor.submit(asyncio.run, _login_failures(settings, suspects)).result()
    for name, failure in failures.items():
        pulumi.log.warn(
            f"{name} is dead: its node isn't Ready, and it accepts no login ({failure}). The other hosts "
            "don't wait for it; its own steps come last"
        )
    return frozenset(failures)


def _nodes_not_ready(kubeconfig: str) -> set[str]:
    try:
        response = api_requests.send(kubeconfig, "GET", "/api/v1/nodes", timeout_seconds=_API_SECONDS)
        nodes = json.loads(response.data)["items"]
    except (api_requests.ApiError, KubeconfigError, ValueError, KeyError) as error:
        pulumi.log.debug(f"can't read the nodes' conditions: {error}")
        return set()
    return {node["metadata"]["name"] for node in nodes if not _ready(node.get("status") or {})}


def _ready(status: dict[str, list[dict[str, str]]]) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or []}
    return conditions.get("Ready") == "True"


async def _login_failures(settings: Settings, hosts: Sequence[Host]) -> dict[str, str]:
    """Why hosts accept no login, by name; those that do are missing."""

    async def failure(host: Host) -> str:
        try:
            connection = await ssh_access.connect(settings, host, Login.of(settings, host))
        except (ssh_access.UnreachableError, ssh_access.NotAnsweringError) as error:
            return str(error)
        connection.abort()
        return ""

    failures = await asyncio.gather(*(failure(host) for host in hosts))
    return {host.name: text for host, text in zip(hosts, failures, strict=True) if text}
