"""Converts the engine's values for the rules: marks secrets, reads the facts from the stack's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.settings_file import load
from model.settings_problems import SettingsError
from policy.rules import Environment, Hidden

# The key that marks special values in the engine's messages, and its value for secrets.
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"


def marked(value: Any) -> Any:
    """Unwrap the secrets in a property of the engine's message; their strings become `Hidden`."""
    return _marked(value, secret=False)


def _marked(value: Any, *, secret: bool) -> Any:
    if isinstance(value, Mapping):
        if value.get(SIGNATURE) == SECRET:
            return _marked(value.get("value"), secret=True)
        # The signature of an asset or archive stays as it is.
        return {
            name: inner if name == SIGNATURE else _marked(inner, secret=secret)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_marked(inner, secret=secret) for inner in value]
    return Hidden(value) if secret and isinstance(value, str) else value


def environment(stack: str, project: str, config: Mapping[str, str], folder: Path) -> Environment:
    """Read the facts about a stack from its settings.

    If the settings are invalid, the program reports that and registers no resource. The facts are then the
    strictest ones.

    Args:
        stack: The stack's name.
        project: The Pulumi project's name.
        config: The stack's configuration as the engine passes it, `project:name` to text.
        folder: The base of relative file names in the settings.
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
