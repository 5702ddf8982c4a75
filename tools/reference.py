"""`python -m tools.reference`, or `make docs`: what the settings' types say, for people and for editors.

Writes docs/settings.md, and docs/stack.schema.json, by which editors complete and check stack files
(JSON schema draft 7, which all of them know). Meaning, default and effect of a setting are in
model/settings.py, its type's name in model/field_types.py.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from common.paths import project_dir
from model.field_types import Kind
from model.settings import PREFIX, Effect, Section, Settings, effect_of, fields, section_of

_GROUPS: dict[str, tuple[str, ...]] = {
    "The file itself": ("extends",),
    "Hosts": ("hosts", "ssh", "preflight", "firewall", "production"),
    "Cluster": ("cluster", "network"),
    "kube-proxy": ("proxy",),
    "Packages and images": ("packages", "registry"),
    "Application, verification, timeouts": ("nginx", "drain", "verification", "stepTimeouts"),
}

_HEAD = """\
# Every setting

<!-- Written by `make docs` from model/settings.py: change it there. -->

In `Pulumi.<stack>.yaml`, under `config:`, each first name with the project's prefix: `{prefix}cluster:`.
All are checked at once, before anything is touched; one message lists every problem with its path. A name
that isn't known is a problem too. Relative paths start at the stack file's folder. Only `hosts` and a way to
know the host keys are required. What several environments share is written once
([environments.md](environments.md)).

An editor with a YAML language server completes and checks these names by `docs/stack.schema.json`, which the
first line of a stack file names: `# yaml-language-server: $schema=docs/stack.schema.json`.

What a change does to a cluster that lives:

{effects}
"""

_COLUMNS = "| setting | type | default | meaning | a change |\n|---|---|---|---|---|\n"


def settings_page() -> str:
    """docs/settings.md."""
    effects = "\n".join(f"- **{effect.label}**: {effect.value}" for effect in Effect)
    parts = [_HEAD.format(prefix=PREFIX, effects=effects)]
    for title, names in _GROUPS.items():
        parts.append(f"\n## {title}\n\n{_COLUMNS}")
        for name in names:
            parts += [
                f"| `{path}` | {kind(field.annotation, field.metadata)} | {_default(field)} "
                f"| {field.description} | {effect_of(field).label} |\n"
                for path, field in fields().items()
                if path.partition(".")[0].removesuffix("[]") == name
            ]
    return "".join(parts)


def kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a setting's type is called."""
    for marker in metadata:
        if isinstance(marker, Kind):
            return marker.name
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list: {kind(arguments[0])}"
    if origin in (types.UnionType, typing.Union):
        return kind(next(part for part in arguments if part is not type(None)))
    raise TypeError(f"{annotation} has no name: give it a Kind in model/field_types.py")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    return f"`{json.dumps(field.default)}`" if not isinstance(field.default, str) else f"`{field.default}`"


def stack_schema() -> dict[str, Any]:
    """docs/stack.schema.json: of a stack file, and of a file that stack files extend."""
    settings = Settings.model_json_schema()
    definitions = settings.pop("$defs")
    _describe(Settings, settings, definitions)
    text = {"type": "string"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A stack file of kubeadm-ipvs",
        "description": "Written by `make docs` from model/settings.py.",
        "type": "object",
        "required": ["config"],
        "properties": {
            "config": {
                "type": "object",
                "properties": {
                    f"{PREFIX}{name}": property_ for name, property_ in settings["properties"].items()
                },
                # Pulumi's and the providers' own.
                "patternProperties": {f"^(?!{PREFIX})[^:]+:.": {}},
                "additionalProperties": False,
            },
            # What Pulumi itself writes there.
            "encryptionsalt": text,
            "encryptedkey": text,
            "secretsprovider": text,
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


def _describe(model: type[Section], schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Puts meaning and effect of each setting where an editor shows them, and takes out what says nothing."""
    schema.pop("title", None)
    for name, field in model.model_fields.items():
        property_ = schema["properties"][field.alias or name]
        property_.pop("title", None)
        section, _ = section_of(field.annotation)
        if section is not None:
            property_.pop("default", None)
            _describe(section, definitions[section.__name__], definitions)
        else:
            effect = effect_of(field)
            property_["description"] = f"{field.description}. A change: {effect.label} ({effect.value})"


def pages() -> dict[Path, str]:
    """Each written file with its text."""
    docs = project_dir() / "docs"
    return {
        docs / "settings.md": settings_page(),
        docs / "stack.schema.json": json.dumps(stack_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def main() -> None:
    """Write them."""
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
