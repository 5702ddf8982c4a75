"""Compares an environment's settings before and after a change, one line for each setting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from model.settings import Effect, effect_of, fields
from report.text import display

_ABSENT = object()


def settings_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the settings that differ as `-path: value` and `+path: value`, with the effect of the change.

    Args:
        before: The settings before the change, complete and without prefixes.
        after: The settings after it.
    """
    old, new = dict(_flatten(before)), dict(_flatten(after))
    known = fields()
    lines: list[str] = []
    for path in [*new, *(path for path in old if path not in new)]:
        if old.get(path, _ABSENT) == new.get(path, _ABSENT):
            continue
        setting, default = _find(path, known)
        # The impacts cover a host that is added or removed as a whole.
        host = re.match(r"hosts\[.*?\]", path)
        in_both = host is None or all(any(p.startswith(host[0]) for p in values) for values in (old, new))
        effect = _effect(setting) if setting and in_both else ""
        for sign, values in (("-", old), ("+", new)):
            notes = [effect] if sign == "+" or (path not in new and default is None) else []
            if path in values:
                value = values[path]
            elif default is not None:
                value, notes = default, ["default", *notes]
            else:
                continue
            note = f"  # {', '.join(notes)}" if any(notes) else ""
            lines.append(f"{sign}{path}: {_display(value)}{note}")
    return lines


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value by its path; hosts are identified by name: `hosts[node1].address`."""
    if isinstance(value, Mapping) and value and "secure" not in value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif path == "hosts" and isinstance(value, list):
        for index, host in enumerate(value):
            if isinstance(host, Mapping):
                own = {key: item for key, item in host.items() if key != "name"}
                yield from _flatten(own, f"hosts[{host.get('name', index)}]")
    elif path:
        yield path, value


def _find(path: str, known: Mapping[str, FieldInfo]) -> tuple[FieldInfo | None, Any]:
    """The setting at a path, or around it (`runtime.mirrors.docker.io`), and its default."""
    name = re.sub(r"\[.*?\]", "[]", path)
    while name and name not in known:
        name = name.rpartition(".")[0]
    if not name:
        return None, None
    setting = known[name]
    has_default = name == path and not setting.is_required() and setting.default not in ({}, ())
    return setting, setting.default if has_default else None


def _effect(setting: FieldInfo) -> str:
    effect = effect_of(setting)
    return "no effect on hosts" if effect is Effect.NOTHING else effect.label


def _display(value: Any) -> str:
    return "[secret]" if isinstance(value, Mapping) and "secure" in value else display(value)
