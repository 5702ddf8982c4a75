"""The versions of Pulumi's programs.

The SDK packages are pinned in the requirements files. The plugins must have the versions that those packages
require.
"""

from __future__ import annotations

from typing import Final

ENGINE: Final = "3.259.0"
"""The engine to download or build if PATH has no suitable one."""

MINIMUM_ENGINE: Final = "3.250.0"
"""The oldest engine on PATH to use: resource hooks and `replace_with` must work."""

LANGUAGE_HOST: Final = "3.78.1"
"""`pulumi-language-python`, if it is built: the last version of the SDK's Go module that contains it."""

PLUGINS: Final[dict[str, str]] = {"command": "1.2.1", "kubernetes": "4.34.2"}
"""Provider plugins by name."""
