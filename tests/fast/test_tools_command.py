"""The stand-in for the command plugin, where no connection is needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tools.plugins.command import CommandPlugin
from tools.plugins.server import Failure, Urn
from tools.plugins.values import UNKNOWN, Secret

URN = Urn("urn:pulumi:dev::kubeadm-ipvs::a:b:C$command:remote:Command::master-init")
HOST = {"host": "127.0.0.1"}


def check(inputs: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    return asyncio.run(CommandPlugin("").check(URN, {}, inputs))


def preview(state: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(CommandPlugin("").update(URN, "id", state, new, 0, preview=True))


def test_the_connection_gets_its_defaults_and_is_secret_as_a_whole() -> None:
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


def test_set_values_win_over_defaults_zero_included() -> None:
    inputs, _ = check({"connection": Secret({**HOST, "dialErrorLimit": 0.0, "perDialTimeout": 0.0})})
    assert inputs["connection"].value["dialErrorLimit"] == 0
    assert inputs["connection"].value["perDialTimeout"] == 0


def test_a_connection_unknown_at_preview_is_accepted() -> None:
    assert check({"connection": UNKNOWN}) == ({"connection": Secret(UNKNOWN)}, [])


@pytest.mark.parametrize(
    ("inputs", "where"),
    [
        ({"create": "true"}, "connection"),
        ({"connection": {"user": "root"}}, "connection.host"),
        ({"connection": {**HOST, "proxy": {"port": 22.0}}}, "connection.proxy.host"),
    ],
)
def test_what_is_missing_is_named(inputs: dict[str, Any], where: str) -> None:
    assert [name for name, _ in check(inputs)[1]] == [where]


def test_other_resources_of_the_plugin_are_refused_by_name() -> None:
    other = Urn("urn:pulumi:dev::p::command:local:Command::x")
    with pytest.raises(Failure, match="command:local:Command"):
        asyncio.run(CommandPlugin("").check(other, {}, {}))


def test_a_changed_input_makes_the_outputs_unknown_in_a_preview() -> None:
    state = {"create": "a", "stdout": "out", "stderr": ""}
    assert preview(state, {"create": "b"})["stdout"] is UNKNOWN
    assert preview(state, {"create": UNKNOWN})["stdout"] is UNKNOWN


def test_a_new_or_removed_input_leaves_them_known() -> None:
    state = {"create": "a", "delete": "d", "stdout": "out", "stderr": ""}
    assert preview(state, {"create": "a", "delete": "d", "update": "u"})["stdout"] == "out"
    assert preview(state, {"create": "a"})["stdout"] == "out"


def test_a_new_list_of_triggers_replaces_and_other_changes_do_not() -> None:
    def kinds(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
        return dict(asyncio.run(CommandPlugin("").diff(URN, "id", {}, old, new)).paths)

    assert kinds({}, {"triggers": ["a"]}) == {"triggers": "add-replace"}
    # The SDK asks the engine to replace on `triggers[*]`.
    assert kinds({"triggers": ["a"]}, {"triggers": ["b"]}) == {"triggers[0]": "update"}
    assert kinds({"create": "a"}, {"create": "b"}) == {"create": "update"}


def test_an_unreadable_key_fails_without_dialling() -> None:
    connection = Secret({**HOST, "port": 1.0, "privateKey": Secret("no key")})
    with pytest.raises(Failure, match="private key can't be read"):
        asyncio.run(
            CommandPlugin("").create(URN, {"connection": connection, "create": "true"}, 0, preview=False)
        )
