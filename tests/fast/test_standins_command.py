"""The stand-in for the command plugin, without SSH connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from standins.command import CommandPlugin
from standins.server import Failure, Urn
from standins.values import UNKNOWN, Secret

URN = Urn("urn:pulumi:dev::kubeadm-ipvs::a:b:C$command:remote:Command::master-init")
HOST = {"host": "127.0.0.1"}


def check(inputs: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    return asyncio.run(CommandPlugin("").check(URN, {}, inputs))


def preview(state: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(CommandPlugin("").update(URN, "id", state, new, 0, preview=True))


def test_connection_gets_defaults_and_is_secret() -> None:
    inputs, failures = check({"connection": {**HOST, "privateKey": "key", "proxy": {"host": "there"}}})
    assert failures == []
    connection = inputs["connection"]
    assert isinstance(connection, Secret)
    assert connection.value["privateKey"] == Secret("key")
    for hop in (connection.value, connection.value["proxy"]):
        assert (hop["user"], hop["port"], hop["dialErrorLimit"], hop["perDialTimeout"]) == (
            "root",
            22,
            10,
            15,
        )


def test_zero_overrides_a_default() -> None:
    inputs, _ = check({"connection": Secret({**HOST, "dialErrorLimit": 0.0, "perDialTimeout": 0.0})})
    assert inputs["connection"].value["dialErrorLimit"] == 0
    assert inputs["connection"].value["perDialTimeout"] == 0


def test_unknown_connection_is_accepted_in_preview() -> None:
    assert check({"connection": UNKNOWN}) == ({"connection": Secret(UNKNOWN)}, [])


@pytest.mark.parametrize(
    ("inputs", "where"),
    [
        ({"create": "true"}, "connection"),
        ({"connection": {"user": "root"}}, "connection.host"),
        ({"connection": {**HOST, "proxy": {"port": 22.0}}}, "connection.proxy.host"),
    ],
)
def test_missing_inputs_are_named(inputs: dict[str, Any], where: str) -> None:
    assert [name for name, _ in check(inputs)[1]] == [where]


def test_other_resource_types_are_rejected() -> None:
    other = Urn("urn:pulumi:dev::p::command:local:Command::x")
    with pytest.raises(Failure, match="command:local:Command"):
        asyncio.run(CommandPlugin("").check(other, {}, {}))


def test_changed_input_makes_outputs_unknown_in_preview() -> None:
    state = {"create": "a", "stdout": "out", "stderr": ""}
    assert preview(state, {"create": "b"})["stdout"] is UNKNOWN
    assert preview(state, {"create": UNKNOWN})["stdout"] is UNKNOWN


def test_added_or_removed_input_leaves_outputs_known() -> None:
    state = {"create": "a", "delete": "d", "stdout": "out", "stderr": ""}
    assert preview(state, {"create": "a", "delete": "d", "update": "u"})["stdout"] == "out"
    assert preview(state, {"create": "a"})["stdout"] == "out"


def test_only_a_new_trigger_list_replaces() -> None:
    def kinds(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
        return dict(asyncio.run(CommandPlugin("").diff(URN, "id", {}, old, new)).paths)

    assert kinds({}, {"triggers": ["a"]}) == {"triggers": "add-replace"}
    # The SDK asks the engine to replace on `triggers[*]`.
    assert kinds({"triggers": ["a"]}, {"triggers": ["b"]}) == {"triggers[0]": "update"}
    assert kinds({"create": "a"}, {"create": "b"}) == {"create": "update"}


def test_unreadable_key_fails_without_dialling() -> None:
    connection = Secret({**HOST, "port": 1.0, "privateKey": Secret("no key")})
    with pytest.raises(Failure, match="private key can't be read"):
        asyncio.run(
            CommandPlugin("").create(URN, {"connection": connection, "create": "true"}, 0, preview=False)
        )
