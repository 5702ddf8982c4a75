"""The stack's configuration as settings; a configuration that can't be used ends the run in one message."""

from __future__ import annotations

from pathlib import Path

import pulumi
from pulumi.runtime import config

from model.settings import Settings, SettingsError, load

PROJECT = Path(__file__).resolve().parent.parent


def settings_of_stack() -> Settings:
    """The settings of the stack that runs.

    Raises:
        pulumi.RunError: The configuration has problems; the message lists all of them.
    """
    project = pulumi.get_project()
    raw: dict[str, object] = {}
    secret: list[str] = []
    # All keys, not those asked for by name: a misspelt one must be found.
    for key, text in {**config.get_config_env(), **config.CONFIG.get()}.items():
        namespace, _, name = key.partition(":")
        if namespace == project:
            raw[name] = text
            if config.is_config_secret(key):
                secret.append(name)
    if secret:
        raise pulumi.RunError(
            "The configuration has secrets, and no setting is kept secret: all are written to hosts, and "
            f"stand in the state in the open. Nothing was touched. Set without --secret: {', '.join(secret)}"
        )
    try:
        return load(raw, PROJECT)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
