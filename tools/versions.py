"""The one place that pins the versions of Pulumi's parts.

The SDK packages themselves are pinned in the requirements files; the plugins must be of
the versions that those packages ask for.
"""

from __future__ import annotations

from typing import Final

ENGINE: Final = "3.259.0"
"""The Pulumi engine that is downloaded or built where PATH has none that will do."""

MINIMUM_ENGINE: Final = "3.250.0"
"""The oldest engine on PATH that is used as it is: resource hooks and `replace_with` must work."""

LANGUAGE_HOST: Final = "3.78.1"
"""`pulumi-language-python` when it is built: the last SDK module that holds it."""

PLUGINS: Final[dict[str, str]] = {"command": "1.2.1", "kubernetes": "4.34.2"}
"""Provider plugins by name, of the versions of the SDK packages in use."""
