"""Fixtures for the fast tests: temporary folders, a fake upstream, a fake forge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fast.forge_server import FakeForge, serving
from tests.fast.upstream_server import FakeUpstream, fake_upstream


@pytest.fixture
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder for the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def temporary_folders(temporary_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders for the cache and the state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def isolated(temporary_folders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders, also for Pulumi's home; only programs in the temporary folder `bin` are found."""
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for variable in ("SSH_AUTH_SOCK", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    """A fake upstream for packages and images."""
    with fake_upstream() as fake:
        yield fake


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeForge]:
    """A fake GitHub and GitLab."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as service:
        yield service
