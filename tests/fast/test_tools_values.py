"""Property values of the provider protocol, as the stand-ins see them."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from pulumi.runtime import rpc

from tools.plugins import values
from tools.plugins.command import quote
from tools.plugins.values import UNKNOWN, Secret


def test_values_survive_the_wire() -> None:
    given = {
        "null": None,
        "bool": True,
        "number": 22.5,
        "text": "ünïcödé",
        "list": [1.0, "a", [], {}],
        "deep": {"secret": Secret({"inner": Secret("x"), "unknown": UNKNOWN}), "unknown": UNKNOWN},
    }
    assert values.decode(values.encode(given)) == given


def test_markers_are_those_of_the_sdk() -> None:
    message = values.encode({"unknown": UNKNOWN, "secret": Secret("x")})
    assert message.fields["unknown"].string_value == rpc.UNKNOWN
    assert rpc.is_rpc_secret(rpc.deserialize_properties(message)["secret"])


def test_a_kind_of_value_that_is_not_accepted_is_refused() -> None:
    marked = struct_pb2.Struct()
    marked.update(
        {"asset": {"4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17", "text": "x"}}
    )
    with pytest.raises(ValueError, match="doesn't accept"):
        values.decode(marked)


def test_a_secret_shows_nothing_of_itself() -> None:
    assert "hidden" not in f"{Secret('hidden')} {[Secret('hidden')]!r}"


def test_reveal_reaches_every_depth() -> None:
    assert values.reveal(Secret({"a": [Secret("b"), {"c": Secret(UNKNOWN)}]})) == {"a": ["b", {"c": UNKNOWN}]}


def test_unknowns_and_secrets_are_found_inside_each_other() -> None:
    assert values.has_unknown({"a": [Secret({"b": UNKNOWN})]})
    assert not values.has_unknown({"a": [Secret("b")]})
    assert values.has_secret({"a": [{"b": Secret(1.0)}]})
    assert not values.has_secret({"a": [{"b": 1.0}]})


def test_whole_numbers_become_integers_and_others_stay() -> None:
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
def test_a_difference_names_the_path_that_changed(
    old: dict[str, values.Value], new: dict[str, values.Value], expected: dict[str, str]
) -> None:
    assert values.difference(old, new) == expected


def test_commands_are_quoted_in_messages_as_pulumis_own_plugin_does_it() -> None:
    assert (
        quote('echo "a\tb"\n\\ \x01 é \u2028 \U000e0001')
        == '"echo \\"a\\tb\\"\\n\\\\ \\x01 é \\u2028 \\U000e0001"'
    )
