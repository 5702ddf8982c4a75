"""Finds the provider plugins for a run and installs missing ones.

Sources, in order: Pulumi's own plugin on PATH; Pulumi's own plugin in its cache, where `pulumi plugin
install` puts it; a fresh installation, if upstream is reachable; else a stand-in from `standins/`. A run that
uses a stand-in reports it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from common import paths, versions
from common.files import write_atomic
from common.progress import Progress
from tools import engine
from tools.engine import Tool

STAND_IN = "stand-in of this project"

_INSTALL_SECONDS = 600


def find(progress: Progress, pulumi: Path, *, ask_upstream: bool) -> list[Tool]:
    """Find every plugin that the program needs; each one exists afterwards.

    Args:
        progress: Reports installations.
        pulumi: The engine, which installs Pulumi's own plugins.
        ask_upstream: Try to install missing plugins. Otherwise stand-ins replace them right away.
    """
    found: list[Tool] = []
    upstream: bool | None = None if ask_upstream else False
    for name, version in versions.PLUGINS.items():
        tool = _installed(name, version)
        if tool is None:
            if upstream is None:
                # Plugins come from two hosts; every download goes through this one first.
                upstream = engine.reachable(engine.UPSTREAM_HOST)
            if upstream and _install(progress, pulumi, name, version):
                tool = _installed(name, version)
        found.append(tool or _stand_in(name, version))
    return found


def _installed(name: str, version: str) -> Tool | None:
    program = f"pulumi-resource-{name}"
    path = engine.on_path(program)
    if path is not None:
        return Tool(program, "not checked", "PATH", path)
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    cached = home / "plugins" / f"resource-{name}-v{version}" / program
    return Tool(program, version, "plugin cache", cached) if cached.exists() else None


def _install(progress: Progress, pulumi: Path, name: str, version: str) -> bool:
    with progress.step(f"installing the plugin {name} {version}"):
        try:
            done = subprocess.run(
                [str(pulumi), "plugin", "install", "resource", name, version, "--non-interactive"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            progress.say(f"not installed within {_INSTALL_SECONDS} s; using the stand-in")
            return False
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        progress.say(f"not installed: {last}; using the stand-in")
    return done.returncode == 0


def _stand_in(name: str, version: str) -> Tool:
    program = f"pulumi-resource-{name}"
    return Tool(program, f"for {version}", STAND_IN, launcher(name) / program)


def launcher(name: str) -> Path:
    """Write a script `pulumi-resource-NAME` that starts the stand-in, and return its folder.

    The script contains the paths of this checkout and this Python, so it works from any folder and in any
    environment. Other checkouts have their own.
    """
    text = (
        "#!/bin/sh\n"
        f"export PYTHONPATH={shlex.quote(str(paths.project_dir()))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
        f'exec {shlex.quote(sys.executable)} -P -m standins.{name} "$@"\n'
    )
    return cached_script(name, f"pulumi-resource-{name}", text)


def cached_script(name: str, program: str, text: str) -> Path:
    """Write a script into a cache folder of its own, for the engine to find by its name.

    Args:
        name: The first part of the folder's name; a hash of the content follows.
        program: The script's name.
        text: The script.

    Returns:
        The folder.
    """
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = paths.cache_dir() / "plugins" / f"{name}-{key}" / program
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be writing or starting the same script.
        write_atomic(file, text, 0o755)
    return file.parent
