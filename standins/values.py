"""Conversion between the engine's property values and plain Python.

The wire format is protobuf's Struct with a few marker strings and objects (pulumi/pulumi,
`sdk/go/common/resource`: `property_values.go` and `sig.go`). In Python a value is `None`, `bool`, `float`,
`str`, `list`, `dict`, `Unknown` or `Secret`. The stand-ins don't accept output values, resource references
or assets, so the engine sends none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import struct_pb2

Value = Any
"""A decoded property value; recursive, hence `Any`."""

_SIGNATURE_KEY: Final = "4dabf18193072939515e22adb298388d"
_SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"
_UNKNOWN_BY_TYPE: Final = {
    "string": "04da6b54-80e4-46f7-96ec-b56ff0331ba9",
    "bool": "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
    "number": "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
    "array": "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
    "object": "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
}
_UNKNOWN_MARKERS: Final = frozenset(_UNKNOWN_BY_TYPE.values())
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


class Unknown:
    """A value that isn't known during a preview. The only instance, `UNKNOWN`, equals only itself."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()


@dataclass(frozen=True)
class Secret:
    """A value that the engine encrypts in the state and masks in its output."""

    value: Value

    def __repr__(self) -> str:
        return "Secret(...)"


def decode(message: struct_pb2.Struct) -> dict[str, Value]:
    """Convert a message's properties to Python values. Numbers become floats."""
    return {key: _decode(value) for key, value in message.fields.items()}


def _decode(value: struct_pb2.Value) -> Value:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "bool_value":
        return value.bool_value
    if kind == "number_value":
        return value.number_value
    if kind == "string_value":
        return UNKNOWN if value.string_value in _UNKNOWN_MARKERS else value.string_value
    if kind == "list_value":
        return [_decode(item) for item in value.list_value.values]
    fields = value.struct_value.fields
    if _SIGNATURE_KEY in fields:
        if fields[_SIGNATURE_KEY].string_value != _SECRET:
            raise ValueError("the engine sent a kind of value that this plugin doesn't accept")
        return Secret(_decode(fields["value"]))
    return {key: _decode(item) for key, item in fields.items()}


def encode(properties: Mapping[str, Value]) -> struct_pb2.Struct:
    """Convert properties to a message."""
    return struct_pb2.Struct(fields={key: _encode(value) for key, value in properties.items()})


def _encode(value: Value) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=float(value))
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, Unknown):
        return struct_pb2.Value(string_value=_UNKNOWN_BY_TYPE["string"])
    if isinstance(value, Secret):
        return struct_pb2.Value(
            struct_value=struct_pb2.Struct(
                fields={
                    _SIGNATURE_KEY: struct_pb2.Value(string_value=_SECRET),
                    "value": _encode(value.value),
                }
            )
        )
    if isinstance(value, Mapping):
        return struct_pb2.Value(struct_value=encode(value))
    if isinstance(value, list | tuple):
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[_encode(item) for item in value]))
    raise TypeError(f"a {type(value).__name__} can't be a property value")


def reveal(value: Value) -> Value:
    """Remove all `Secret` wrappers, at every depth."""
    return _map(value, lambda item: reveal(item.value) if isinstance(item, Secret) else item)


def _map(value: Value, change: Callable[[Value], Value]) -> Value:
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, change) for item in value]
    return change(value)


def has_unknown(value: Value) -> bool:
    """Whether `value` is or contains an unknown, including inside secrets."""
    return any(isinstance(item, Unknown) for item in _leaves(value))


def has_secret(value: Value) -> bool:
    """Whether `value` is or contains a secret."""
    if isinstance(value, Secret):
        return True
    if isinstance(value, dict):
        return any(has_secret(item) for item in value.values())
    if isinstance(value, list):
        return any(has_secret(item) for item in value)
    return False


def _leaves(value: Value) -> Iterator[Value]:
    if isinstance(value, Secret):
        yield from _leaves(value.value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def whole(number: Value) -> Value:
    """Convert floats without a fraction to `int`, at every depth. Kubernetes distinguishes them."""

    def change(item: Value) -> Value:
        return int(item) if isinstance(item, float) and math.isfinite(item) and item == int(item) else item

    return _map(number, change)


def path(prefix: str, part: str | int) -> str:
    """Extend a property path, in the engine's notation: `a.b[0]["c.d"]`."""
    if isinstance(part, int):
        return f"{prefix}[{part}]"
    if _PLAIN_KEY.fullmatch(part):
        return f"{prefix}.{part}" if prefix else part
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return f'{prefix}["{escaped}"]'


def difference(old: Mapping[str, Value], new: Mapping[str, Value], prefix: str = "") -> dict[str, str]:
    """Compare two property maps; return each changed path with `add`, `delete` or `update`.

    As in the engine, a secret is compared as a whole, so no path leads into one.
    """
    found: dict[str, str] = {}
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        where = path(prefix, key)
        if before is None and after is None:
            continue
        if before is None:
            found[where] = "add"
        elif after is None:
            found[where] = "delete"
        else:
            found.update(_difference(where, before, after))
    return found


def _difference(where: str, before: Value, after: Value) -> dict[str, str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return difference(before, after, where)
    if isinstance(before, list) and isinstance(after, list):
        found: dict[str, str] = {}
        for index in range(max(len(before), len(after))):
            item = path(where, index)
            if index >= len(before):
                found[item] = "add"
            elif index >= len(after):
                found[item] = "delete"
            else:
                found.update(_difference(item, before[index], after[index]))
        return found
    return {} if before == after else {where: "update"}
