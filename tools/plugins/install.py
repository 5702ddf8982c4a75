"""Which provider plugins a run uses, and making them be there.

The order: Pulumi's own on PATH; Pulumi's own in its plugin cache, where `pulumi plugin
install` puts them; such an installation now, where upstream can be reached; else the
stand-ins of this package, of which every run says that they are such.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from common import paths
from common.files import write_atomic
from common.progress import Progress
from tools import engine, versions
from tools.engine import Tool

STAND_IN = "stand-in of this project"

_INSTALL_SECONDS = 600


def plugins(progress: Progress, pulumi: Path, *, ask_upstream: bool) -> list[Tool]:
    """The plugins that the program needs, each there afterwards.

    :param pulumi: the engine, which installs Pulumi's own.
    :param ask_upstream: try to install what is missing; without it, missing ones are stand-ins at once.
    """
    found: list[Tool] = []
    upstream: bool | None = None if ask_upstream else False
    for name, version in versions.PLUGINS.items():
        tool = _there(name, version)
        if tool is None:
            if upstream is None:
                # A plugin comes from one of two places, by way of the first.
                upstream = engine.reachable(engine.UPSTREAM_HOST)
            if upstream and _installed(progress, pulumi, name, version):
                tool = _there(name, version)
        found.append(tool or _stand_in(name, version))
    return found


def _there(name: str, version: str) -> Tool | None:
    program = f"pulumi-resource-{name}"
    path = engine.on_path(program)
    if path is not None:
        return Tool(program, "not checked", "PATH", path)
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    cached = home / "plugins" / f"resource-{name}-v{version}" / program
    return Tool(program, version, "plugin cache", cached) if cached.exists() else None


def _installed(progress: Progress, pulumi: Path, name: str, version: str) -> bool:
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
            progress.say(f"not installed within {_INSTALL_SECONDS} s: the stand-in is used")
            return False
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        progress.say(f"not installed: {last}; the stand-in is used")
    return done.returncode == 0


def _stand_in(name: str, version: str) -> Tool:
    program = f"pulumi-resource-{name}"
    return Tool(program, f"for {version}", STAND_IN, launcher(name) / program)


def launcher(name: str) -> Path:
    """The folder that holds only the program `pulumi-resource-<name>`, the start of the stand-in.

    It names this checkout and this Python, so that it works from any folder and in any
    environment; others have launchers of their own.
    """
    text = (
        "#!/bin/sh\n"
        f"export PYTHONPATH={shlex.quote(str(paths.project_dir()))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
        f'exec {shlex.quote(sys.executable)} -P -m tools.plugins.{name} "$@"\n'
    )
    return placed(name, f"pulumi-resource-{name}", text)


def placed(name: str, program: str, text: str) -> Path:
    """A folder of the cache, by its content, that holds only a script that the engine finds by its name.

    :param name: the folder's, before the content's hash.
    :param program: the script's.
    """
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = paths.cache_dir() / "plugins" / f"{name}-{key}" / program
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Another process may make the same one at the same time, or be starting it.
        write_atomic(file, text, 0o755)
    return file.parent
