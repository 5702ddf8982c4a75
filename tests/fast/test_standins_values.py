"""Conversion of the provider protocol's property values."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from pulumi.runtime import rpc

from standins import values
from standins.command import quote
from standins.values import UNKNOWN, Secret


def test_values_survive_a_round_trip() -> None:
    given = {
        "null": None,
        "bool": True,
        "number": 22.5,
        "text": "ünïcödé",
        "list": [1.0, "a", [], {}],
        "deep": {"secret": Secret({"inner": Secret("x"), "unknown": UNKNOWN}), "unknown": UNKNOWN},
    }
    assert values.decode(values.encode(given)) == given


def test_markers_match_the_sdk() -> None:
    message = values.encode({"unknown": UNKNOWN, "secret": Secret("x")})
    assert message.fields["unknown"].string_value == rpc.UNKNOWN
    assert rpc.is_rpc_secret(rpc.deserialize_properties(message)["secret"])


def test_unsupported_kind_of_value_is_rejected() -> None:
    marked = struct_pb2.Struct()
    marked.update(
        {"asset": {"4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17", "text": "x"}}
    )
    with pytest.raises(ValueError, match="doesn't accept"):
        values.decode(marked)


def test_secret_is_not_in_its_repr() -> None:
    assert "hidden" not in f"{Secret('hidden')} {[Secret('hidden')]!r}"


def test_reveal_reaches_every_depth() -> None:
    assert values.reveal(Secret({"a": [Secret("b"), {"c": Secret(UNKNOWN)}]})) == {"a": ["b", {"c": UNKNOWN}]}


def test_nested_unknowns_and_secrets_are_found() -> None:
    assert values.has_unknown({"a": [Secret({"b": UNKNOWN})]})
    assert not values.has_unknown({"a": [Secret("b")]})
    assert values.has_secret({"a": [{"b": Secret(1.0)}]})
    assert not values.has_secret({"a": [{"b": 1.0}]})


def test_only_whole_floats_become_integers() -> None:
    found = values.whole({"a": 1.0, "b": [0.5, float("inf"), True]})
    assert found == {"a": 1, "b": [0.5, float("inf"), True]}
    assert isinstance(found["a"], int)
    assert found["b"][2] is True


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": "x"}, {"a": "x"}, {}),
        ({}, {"a": "x"}, {"a": "add"}),
        ({"a": "x"}, {}, {"a": "delete"}),
        ({"a": None}, {}, {}),
        ({"triggers": ["x", "y"]}, {"triggers": ["x", "z"]}, {"triggers[1]": "update"}),
        ({"triggers": ["x"]}, {"triggers": ["x", "y"]}, {"triggers[1]": "add"}),
        ({"a": {"b.c": "1"}}, {"a": {"b.c": "2"}}, {'a["b.c"]': "update"}),
        ({"a": Secret({"b": 1.0})}, {"a": Secret({"b": 2.0})}, {"a": "update"}),
        ({"a": Secret("x")}, {"a": "x"}, {"a": "update"}),
        ({"a": "x"}, {"a": UNKNOWN}, {"a": "update"}),
        ({"a": UNKNOWN}, {"a": UNKNOWN}, {}),
        ({"a": ["x"]}, {"a": {"x": "y"}}, {"a": "update"}),
    ],
)
def test_difference_names_the_changed_path(
    old: dict[str, values.Value], new: dict[str, values.Value], expected: dict[str, str]
) -> None:
    assert values.difference(old, new) == expected


def test_commands_are_quoted_like_go() -> None:
    assert (
        quote('echo "a\tb"\n\\ \x01 é \u2028 \U000e0001')
        == '"echo \\"a\\tb\\"\\n\\\\ \\x01 é \\u2028 \\U000e0001"'
    )
