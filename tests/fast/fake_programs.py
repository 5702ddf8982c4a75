"""Fake programs, and folders in which nothing else is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import env
from tools.engine import Tool


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set temporary folders for the cache, the state, Pulumi's home, and PATH (`folder/bin`)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("PULUMI_HOME", str(folder / "home"))
    monkeypatch.setenv("PATH", str(folder / "bin"))
    for variable in ("SSH_AUTH_SOCK", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)


def program(path: Path, script: str = "exit 0") -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def toolbox(*plugins: Tool) -> env.Toolbox:
    """A toolbox of programs that don't exist."""
    pulumi = Tool("pulumi", "1", "PATH", Path("/usr/bin/pulumi"))
    return env.Toolbox(pulumi, Tool("pulumi-language-python", "1", "PATH", Path("/usr/bin/x")), plugins)
