"""What the engine says, as the rules take it: secrets marked, the stack's settings as facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.settings import SettingsError, load
from policy.rules import Environment, Hidden

# How the engine's messages mark a value that isn't plain JSON, and that it is a secret.
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"


def marked(value: Any) -> Any:
    """A property of the engine's message, with the texts inside secrets as `Hidden`, and no secrets else."""
    return _marked(value, inside=False)


def _marked(value: Any, *, inside: bool) -> Any:
    if isinstance(value, Mapping):
        if value.get(SIGNATURE) == SECRET:
            return _marked(value.get("value"), inside=True)
        # Of an asset or an archive the signature stays what it is.
        return {
            name: inner if name == SIGNATURE else _marked(inner, inside=inside)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_marked(inner, inside=inside) for inner in value]
    return Hidden(value) if inside and isinstance(value, str) else value


def environment(stack: str, project: str, config: Mapping[str, str], folder: Path) -> Environment:
    """The facts of a stack.

    :param config: the stack's configuration as the engine hands it over, `project:name` to text.
    :param folder: what the files that the settings name are relative to.

    Settings that can't be used are the program's to report, which registers no resource then: the facts are
    the strictest ones.
    """
    prefix = f"{project}:"
    raw: dict[str, object] = {
        name.removeprefix(prefix): text for name, text in config.items() if name.startswith(prefix)
    }
    try:
        settings = load(raw, folder)
    except SettingsError:
        return Environment(stack, protected=True, kubernetes=(0, 0), proxy_mode="", control_planes=0)
    major, minor = settings.minor.split(".")
    return Environment(
        stack,
        protected=settings.production,
        kubernetes=(int(major), int(minor)),
        proxy_mode=settings.proxy.mode,
        control_planes=sum(host.role == "control-plane" for host in settings.hosts),
    )
