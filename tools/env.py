"""The environment in which Pulumi runs here: programs first on PATH, local state, its passphrase."""

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
from tools import engine
from tools.engine import Tool
from tools.plugins import install


@dataclass(frozen=True)
class Toolbox:
    """The programs of a run."""

    pulumi: Tool
    language_host: Tool
    plugins: tuple[Tool, ...]

    @property
    def all(self) -> tuple[Tool, ...]:
        """Each of them, in the order in which a person thinks of them."""
        return (self.pulumi, self.language_host, *self.plugins)


def toolbox(progress: Progress | None = None, *, ask_upstream: bool = False) -> Toolbox:
    """Find the programs, and make those that are missing.

    :param ask_upstream: try to get missing plugins from upstream; else stand-ins serve.
    :raises UserError: the engine can't be had.
    """
    progress = progress or Progress()
    pulumi, host = engine.tools(progress)
    return Toolbox(pulumi, host, tuple(install.plugins(progress, pulumi.path, ask_upstream=ask_upstream)))


def passphrase_file() -> Path:
    """The file with the passphrase of local state: made once, readable by its owner only."""
    file = paths.state_dir() / "passphrase"
    if not file.exists():
        partial = file.with_name(f".passphrase.{os.getpid()}")
        partial.touch(mode=0o600, exist_ok=False)
        partial.write_text(secrets.token_urlsafe(32) + "\n")
        try:
            # Unlike a rename, a link never takes the place of one that another process has just made.
            os.link(partial, file)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return file


def backend_dir() -> Path:
    """The folder of Pulumi's file backend. Made if it isn't there."""
    folder = paths.state_dir() / "pulumi"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def programs(tools: Toolbox) -> dict[str, str | None]:
    """Variables to set, and those to unset (`None`), for Pulumi to run with `tools`.

    Where its state is, and its passphrase, is not among them.
    """
    return {
        "PATH": os.pathsep.join(_path(tools)),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",  # they are here; don't ask the network
        **({"SSH_AUTH_SOCK": None} if ssh_agent.dead() else {}),
    }


def changes(tools: Toolbox) -> dict[str, str | None]:
    """The same, with this project's local backend and its passphrase."""
    return {
        **programs(tools),
        "PULUMI_BACKEND_URL": backend_dir().as_uri(),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase_file()),
        "PULUMI_CONFIG_PASSPHRASE": None,  # it would win over the file
    }


def environment(tools: Toolbox | None = None) -> dict[str, str]:
    """The whole environment for a child process, from this process's own."""
    return applied(changes(tools or toolbox()))


def applied(variables: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with variables set, and those unset that are `None`."""
    merged = {**os.environ, **variables}
    return {name: value for name, value in merged.items() if value is not None}


def exports(tools: Toolbox) -> str:
    """The same for a shell: lines for `eval`."""
    return "\n".join(
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
        for name, value in changes(tools).items()
    )


def _path(tools: Toolbox) -> list[str]:
    # The plugin cache is the engine's own; what is on PATH already keeps its place there.
    made = [str(tool.path.parent) for tool in tools.all if tool.source not in ("PATH", "plugin cache")]
    # A launcher or an engine of last time must not win over one that is now on PATH.
    rest = [folder for folder in os.get_exec_path() if folder and not engine.own(Path(folder))]
    return list(dict.fromkeys([_python_dir(), *made, *rest]))


def _python_dir() -> str:
    # The language host runs the first `python` on PATH.
    project = paths.project_dir() / ".venv" / "bin"
    return str(project if (project / "python").exists() else Path(sys.executable).parent)
