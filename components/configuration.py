"""Reads the stack's configuration. A configuration with errors ends the run with one message."""

from __future__ import annotations

from pathlib import Path

import pulumi
from pulumi.runtime import config

from model.settings import Settings
from model.settings_file import load
from model.settings_problems import SettingsError

PROJECT = Path(__file__).resolve().parent.parent


def settings_of_stack(previous_version: str | None) -> Settings:
    """The settings of the current stack.

    Args:
        previous_version: The existing cluster's Kubernetes version, or None. An existing cluster keeps its
            version if the setting isn't written (docs/decisions/0028).

    Raises:
        pulumi.RunError: The configuration has problems; the message lists all of them.
    """
    project = pulumi.get_project()
    raw: dict[str, object] = {}
    secret: list[str] = []
    # Read every key instead of known names, so that a misspelt one is found.
    for key, text in {**config.get_config_env(), **config.CONFIG.get()}.items():
        namespace, _, name = key.partition(":")
        if namespace == project:
            raw[name] = text
            if config.is_config_secret(key):
                secret.append(name)
    if secret:
        raise pulumi.RunError(
            "The configuration contains secrets, but settings aren't kept secret: they are written to the "
            "hosts and stored in plain text in the state. Nothing was changed. Set without --secret: "
            f"{', '.join(secret)}"
        )
    try:
        settings = load(raw, PROJECT)
        if settings.version_is_written:
            return settings
        return load(raw, PROJECT, previous_version)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
