"""The environment for running Pulumi: PATH, the local backend, and its passphrase."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common import paths
from common.progress import Progress
from components import ssh_agent
from tools import engine, provider_plugins
from tools.engine import Tool


@dataclass(frozen=True)
class Toolbox:
    """The programs that a run uses."""

    pulumi: Tool
    language_host: Tool
    plugins: tuple[Tool, ...]

    @property
    def all(self) -> tuple[Tool, ...]:
        """All programs: the engine, the language host, the plugins."""
        return (self.pulumi, self.language_host, *self.plugins)


def toolbox(progress: Progress | None = None, *, ask_upstream: bool = False) -> Toolbox:
    """Find the programs; download or build missing ones.

    Args:
        progress: Where progress is reported.
        ask_upstream: Try to install missing plugins. Otherwise stand-ins replace them right away.

    Raises:
        UserError: The engine can be neither downloaded nor built.
    """
    progress = progress or Progress()
    pulumi, host = engine.tools(progress)
    plugins = provider_plugins.find(progress, pulumi.path, ask_upstream=ask_upstream)
    return Toolbox(pulumi, host, tuple(plugins))


def passphrase_file() -> Path:
    """The file with the local backend's passphrase. It is created once, readable by its owner only."""
    file = paths.state_dir() / "passphrase"
    if not file.exists():
        partial = file.with_name(f".passphrase.{os.getpid()}")
        partial.touch(mode=0o600, exist_ok=False)
        partial.write_text(secrets.token_urlsafe(32) + "\n")
        try:
            # Unlike a rename, a link never replaces a file that another process has just created.
            os.link(partial, file)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return file


def backend_dir() -> Path:
    """The folder of Pulumi's local backend. It is created if it doesn't exist."""
    folder = paths.state_dir() / "pulumi"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def programs(tools: Toolbox) -> dict[str, str | None]:
    """Variables to set, or to unset (None), so that Pulumi runs with `tools`.

    They don't select a backend or a passphrase.
    """
    return {
        "PATH": os.pathsep.join(_path(tools)),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",  # all plugins are installed
        **({"SSH_AUTH_SOCK": None} if ssh_agent.unreachable_socket() else {}),
    }


def changes(tools: Toolbox) -> dict[str, str | None]:
    """Like `programs`, with this project's local backend and its passphrase."""
    return {
        **programs(tools),
        "PULUMI_BACKEND_URL": backend_dir().as_uri(),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase_file()),
        "PULUMI_CONFIG_PASSPHRASE": None,  # it would override the file
    }


def environment(tools: Toolbox | None = None) -> dict[str, str]:
    """The whole environment for Pulumi, based on this process's own."""
    return applied(changes(tools or toolbox()))


def applied(variables: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with some variables set, or unset (None)."""
    merged = {**os.environ, **variables}
    return {name: value for name, value in merged.items() if value is not None}


def exports(tools: Toolbox) -> str:
    """Like `changes`, as shell commands for `eval`."""
    return "\n".join(
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
        for name, value in changes(tools).items()
    )


def _path(tools: Toolbox) -> list[str]:
    # The engine finds plugins in its cache by itself; programs on PATH keep their place.
    ours = [str(tool.path.parent) for tool in tools.all if tool.source not in ("PATH", "plugin cache")]
    # A program that an earlier run put on PATH must not override one that is installed now.
    rest = [folder for folder in os.get_exec_path() if folder and not engine.own(Path(folder))]
    return list(dict.fromkeys([_python_dir(), *ours, *rest]))


def _python_dir() -> str:
    # The language host runs the first `python` on PATH.
    project = paths.project_dir() / ".venv" / "bin"
    return str(project if (project / "python").exists() else Path(sys.executable).parent)
