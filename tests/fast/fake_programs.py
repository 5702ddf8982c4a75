"""Fake programs."""

from __future__ import annotations

from pathlib import Path

from tools import env
from tools.engine import Tool


def program(path: Path, script: str = "exit 0") -> Path:
    """Write an executable shell script, in a new folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def toolbox(*plugins: Tool) -> env.Toolbox:
    """A toolbox whose programs don't exist."""
    pulumi = Tool("pulumi", "1", "PATH", Path("/usr/bin/pulumi"))
    return env.Toolbox(pulumi, Tool("pulumi-language-python", "1", "PATH", Path("/usr/bin/x")), plugins)
