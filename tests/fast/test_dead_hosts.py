"""Finding dead workers at the start of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from components import api_requests, dead_hosts, ssh_access
from components.api_requests import ApiError
from model.settings import Host, Settings
from model.settings_file import load
from tests.fast.sample_settings import raw_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(raw_settings(tmp_path), tmp_path)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", found.append)
    monkeypatch.setattr(pulumi.log, "debug", lambda _: None)
    return found


def nodes(monkeypatch: pytest.MonkeyPatch, **ready: str) -> None:
    """The cluster's nodes and their `Ready` conditions; without a condition if it is empty."""
    items = [
        {
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": status}] if status else []},
        }
        for name, status in ready.items()
    ]
    response = SimpleNamespace(data=json.dumps({"items": items}))
    monkeypatch.setattr(api_requests, "send", lambda *_, **__: response)


def logins(monkeypatch: pytest.MonkeyPatch, **failures: Exception) -> list[str]:
    """Hosts accept logins except with these errors; returns the list of hosts that were tried."""
    tried: list[str] = []

    async def connect(_: Settings, host: Host, *__: Any) -> Any:
        tried.append(host.name)
        if host.name in failures:
            raise failures[host.name]
        return SimpleNamespace(abort=lambda: None)

    monkeypatch.setattr(ssh_access, "connect", connect)
    return tried


SILENT = ssh_access.NotAnsweringError("no response")
OTHER_KEY = ssh_access.UnreachableError("node1 presents a host key other than the pinned one")


@pytest.mark.parametrize(
    ("ready", "failures", "tried", "dead"),
    [
        ({"node1": "True", "node2": "True"}, {"node1": SILENT}, set(), set()),
        ({"node1": "Unknown", "node2": "True"}, {"node1": SILENT}, {"node1"}, {"node1"}),
        ({"node1": "False", "node2": ""}, {"node1": OTHER_KEY}, {"node1", "node2"}, {"node1"}),
        # The control plane, a host that isn't in the settings, and one that never joined.
        ({"master": "Unknown", "node9": "Unknown"}, {"master": SILENT, "node1": SILENT}, set(), set()),
    ],
)
def test_dead_workers_arent_ready_and_accept_no_login(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    ready: dict[str, str],
    failures: dict[str, Exception],
    tried: set[str],
    dead: set[str],
) -> None:
    nodes(monkeypatch, **ready)
    asked = logins(monkeypatch, **failures)
    assert dead_hosts.find(settings, "kubeconfig") == dead
    assert set(asked) == tried
    assert len(warnings) == len(dead)
    for name, warning in zip(sorted(dead), warnings, strict=True):
        assert warning.startswith(f"{name} is dead: ")
        assert str(failures[name]) in warning


def test_unreachable_api_server_means_no_dead_hosts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ApiError("connection refused")

    monkeypatch.setattr(api_requests, "send", fail)
    assert dead_hosts.find(settings, "kubeconfig") == frozenset()
    assert warnings == []


@pytest.mark.parametrize(("kubeconfig", "preview"), [(None, False), ("kubeconfig", True)])
def test_first_runs_and_previews_ask_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kubeconfig: str | None, preview: bool
) -> None:
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: preview)
    monkeypatch.setattr(api_requests, "send", lambda *_, **__: pytest.fail("a request was sent"))
    assert dead_hosts.find(settings, kubeconfig) == frozenset()
