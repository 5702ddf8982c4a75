"""The login in the state: how it is kept, used and replaced."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import asyncssh
import pulumi
import pytest

from common.errors import UserError
from components import ssh_access
from components.remote import RetryWhenTurnedAway
from model.login import Login, fingerprint
from model.settings import JumpServer, Settings
from model.settings_file import load
from tests.fast.recorded_run import commands, run
from tests.fast.sample_settings import HOST_KEY, PRIVATE_KEY, raw_settings, settings_with
from tools import credentials

OLD = "-----BEGIN OPENSSH PRIVATE KEY-----\nold\n-----END OPENSSH PRIVATE KEY-----\n"
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}


def sealed(value: Any) -> dict[str, Any]:
    """A secret in an exported state; its ciphertext must not outlive a change."""
    return {**SECRET, "ciphertext": "v1:old", "plaintext": json.dumps(value)}


def command(host: str, *, user: str = "root", verbs: tuple[str, ...] = ("create",), **more: Any) -> Any:
    """A step in an exported state, with the old key."""
    sudo = "" if user == "root" else "sudo -n "
    texts = {verb: f"{sudo}timeout 60 bash -s -- {verb} preparation {host}" for verb in verbs}
    connection = {"host": "10.0.0.1", "port": 22, "user": user, "privateKey": sealed(OLD), **more}
    part = {**texts, "connection": sealed(connection), "stdin": "text"}
    urn = f"urn:pulumi:dev::kubeadm-ipvs::command:remote:Command::{host}-preparation"
    return {"type": "command:remote:Command", "urn": urn, "inputs": part, "outputs": {**part, "stdout": ""}}


def stash(name: str, value: Any) -> Any:
    """A stash in an exported state."""
    urn = f"urn:pulumi:dev::kubeadm-ipvs::pulumi:index:Stash::{name}"
    return {
        "type": "pulumi:index:Stash",
        "urn": urn,
        "inputs": {"input": value},
        "outputs": {"input": value, "output": value},
    }


def state_of(*resources: Any) -> dict[str, Any]:
    """An exported state."""
    return {"version": 3, "deployment": {"resources": deepcopy(list(resources))}}


def settings_for(tmp_path: Path, **ssh: Any) -> Settings:
    raw = raw_settings(tmp_path)
    raw["ssh"] |= ssh
    return load(raw, tmp_path)


def opened(value: Any) -> Any:
    return json.loads(value["plaintext"])


def test_replaced_login_is_in_every_part_of_the_state(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, user="ops")
    state = state_of(
        command("node1", verbs=("create", "update", "delete")),
        stash("node1-login", sealed({"user": "root", "privateKey": OLD})),
        stash("owner", "dev 4fd10a2b"),
        {"type": "kubernetes:core/v1:Service", "urn": "urn::nginx", "inputs": {"create": "x"}},
    )
    untouched = deepcopy(state["deployment"]["resources"][2:])
    changes = credentials.replace(state, settings)
    assert [(change.host, change.before.user, change.after.user) for change in changes] == [
        ("node1", "root", "ops"),
        ("node1", "root", "ops"),
    ]
    step, login, *rest = state["deployment"]["resources"]
    assert rest == untouched
    for part in (step["inputs"], step["outputs"]):
        for verb in ("create", "update", "delete"):
            assert part[verb] == f"sudo -n timeout 60 bash -s -- {verb} preparation node1"
        connection = opened(part["connection"])
        assert (connection["user"], opened(connection["privateKey"])) == ("ops", PRIVATE_KEY)
        assert (connection["host"], connection["port"], part["stdin"]) == ("10.0.0.1", 22, "text")
    for value in (login["inputs"]["input"], login["outputs"]["input"], login["outputs"]["output"]):
        assert opened(value) == {"user": "ops", "privateKey": PRIVATE_KEY}
    assert OLD.splitlines()[1] not in json.dumps(state).replace("v1:old", "")
    assert "ciphertext" not in json.dumps(step)
    assert credentials.replace(state, settings) == []


@pytest.mark.parametrize("verbs", [("delete",), ("create",), ("create", "update")])
def test_step_with_any_verbs_gets_the_login(tmp_path: Path, verbs: tuple[str, ...]) -> None:
    """Some resources have only a deletion, such as a host's claim."""
    state = state_of(command("node1", verbs=verbs))
    [change] = credentials.replace(state, settings_for(tmp_path, user="ops"))
    assert (change.host, change.after.user) == ("node1", "ops")
    [step] = state["deployment"]["resources"]
    for part in (step["inputs"], step["outputs"]):
        assert {verb: part[verb] for verb in ("create", "update", "delete") if verb in part} == {
            verb: f"sudo -n timeout 60 bash -s -- {verb} preparation node1" for verb in verbs
        }


def test_matching_state_isnt_touched(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    before = state_of(
        command("node1", privateKey=sealed(PRIVATE_KEY)),
        stash("node1-login", sealed(Login.of(*host(settings)).values)),
    )
    state = deepcopy(before)
    assert credentials.replace(state, settings) == []
    assert state == before


def host(settings: Settings, number: int = 1) -> Any:
    return settings, settings.hosts[number]


def test_jump_hosts_login_is_replaced_only_on_the_same_jump_host(tmp_path: Path) -> None:
    ssh = {"proxyJump": "ops@bastion:2222", "proxyJumpHostKey": HOST_KEY}
    settings = settings_for(tmp_path, **ssh)
    proxies = [
        {"host": name, "port": 2222.0, "user": "old", "privateKey": sealed(OLD)}
        for name in ("bastion", "another")
    ]
    state = state_of(command("node1", proxy=proxies[0]), command("node2", proxy=sealed(proxies[1])))
    rows = credentials.table(credentials.replace(state, settings))
    assert "through old@bastion:2222" in rows and "through ops@bastion:2222" in rows
    first, second = (
        opened(resource["inputs"]["connection"])["proxy"] for resource in state["deployment"]["resources"]
    )
    assert (first["user"], opened(first["privateKey"])) == ("ops", PRIVATE_KEY)
    assert (opened(second)["user"], opened(opened(second)["privateKey"])) == ("old", PRIVATE_KEY)


def test_removed_host_gets_the_login_for_all_hosts(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path)
    raw["hosts"][0]["ssh"]["user"] = "own"
    state = state_of(command("gone", user="ops"), command("master", user="ops"))
    changes = credentials.replace(state, load(raw, tmp_path))
    assert [(change.host, change.after.user) for change in changes] == [("gone", "root"), ("master", "own")]
    assert state["deployment"]["resources"][0]["outputs"]["create"].startswith("timeout ")


def test_state_in_another_form_is_refused(tmp_path: Path) -> None:
    encrypted = command("node1")
    encrypted["inputs"]["connection"] = {**SECRET, "ciphertext": "v1:x"}
    for state in ({}, state_of({"type": "command:remote:Command"}), state_of(encrypted)):
        with pytest.raises(UserError, match="isn't in the expected form; nothing was changed"):
            credentials.replace(state, settings_for(tmp_path))
    assert credentials.replace({"deployment": {}}, settings_for(tmp_path)) == []


def test_login_survives_the_state_and_hides_its_key() -> None:
    for login in (Login("root"), Login("ops", PRIVATE_KEY), Login("ops", PRIVATE_KEY, "me@bastion:22")):
        assert Login.stored(login.values) == login
        assert "private-login-key" not in f"{login} {login!r}"
    kept = Login("ops", jump="me@corp.example.com@bastion:22")
    assert kept.jump_user(JumpServer("now", "bastion", 22, "")) == "me@corp.example.com"
    assert kept.jump_user(JumpServer("now", "bastion", 23, "")) == "now"
    assert Login("a", "x\n").same_as(Login("a", "x")) and not Login("a", "x").same_as(Login("a", "y"))


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
@pytest.mark.parametrize("form", ["openssh", "pkcs8-pem"])
def test_fingerprint_is_that_of_ssh_keygen(kind: str, form: str) -> None:
    key = asyncssh.generate_private_key(kind)
    assert fingerprint(key.export_private_key(form).decode()) == key.get_fingerprint()


def test_fingerprint_of_another_text_is_unreadable() -> None:
    for text in (PRIVATE_KEY, "", "key"):
        assert fingerprint(text) == "(unreadable)"


def test_state_keeps_the_login_of_each_host(tmp_path: Path) -> None:
    recorded = run(settings_for(tmp_path))
    for name in ("master", "node1", "node2"):
        login = recorded.requests[f"{name}-login"]
        assert list(login.ignoreChanges) == ["input"]
        assert recorded.plain[f"{name}-login"] == {"input": "[secret]"}
        assert recorded.inputs[f"{name}-login"]["input"] == {"user": "root", "privateKey": PRIVATE_KEY}
    for name, request in commands(recorded).items():
        assert [other for other in recorded.names(request.dependencies) if other.endswith("-login")], name
        assert recorded.plain[name]["connection"] == "[secret]"
        verbs = {verb for verb in ("create", "update", "delete") if verb in recorded.plain[name]}
        assert verbs, name
        for verb in verbs:
            assert recorded.plain[name][verb].startswith("timeout "), "the command isn't secret"


REFUSED = (
    "after 12 failed attempts: dial tcp 10.0.0.12:22: connect: connection refused",
    "rpc error: code = Unknown desc = after 12 failed attempts: ssh: handshake failed: EOF",
    "proxy: after 3 failed attempts: read tcp: connection reset by peer",
)
OTHERS = (
    "after 12 failed attempts: ssh: handshake failed: ssh: unable to authenticate, no supported methods",
    "after 12 failed attempts: ssh: handshake failed: ssh: host key mismatch",
    'Process exited with status 1: running "timeout 60 bash":\nafter 3 failed attempts: x',
    'after 3 failed attempts: x: running "true":\n',
)


@pytest.mark.parametrize(
    ("error", "operation", "retried"),
    [
        *((error, "update", True) for error in REFUSED),
        *((error, "create", False) for error in OTHERS),
        (REFUSED[0], "delete", False),
    ],
)
def test_only_refused_connections_are_retried(
    monkeypatch: pytest.MonkeyPatch, error: str, operation: str, retried: bool
) -> None:
    monkeypatch.setattr(ssh_access, "LIMITED_PAUSE_SECONDS", 0)
    monkeypatch.setattr(pulumi.log, "info", lambda _: None)
    failure = pulumi.ErrorHookArgs(
        "urn", "", "node1-preparation", "", failed_operation=operation, errors=[error]
    )
    assert asyncio.run(RetryWhenTurnedAway(settings_with())(failure)) == retried


def test_retries_end_after_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(ssh_access, "LIMITED_PAUSE_SECONDS", 0.4)
    monkeypatch.setattr(pulumi.log, "info", printed.append)
    failure = pulumi.ErrorHookArgs(
        "urn", "", "node1-preparation", "", failed_operation="create", errors=[REFUSED[0]]
    )

    async def retries() -> int:
        retry, count = RetryWhenTurnedAway(settings_with(ssh={"waitSeconds": 1})), 0
        while await retry(failure):
            count += 1
        return count

    assert asyncio.run(retries()) == 3
    assert "node1-preparation: the host no longer accepts connections (dial tcp 10.0.0.12:22" in printed[0]
    assert "a rate limit?" in printed[0]
