"""Reaching hosts through a jump host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.settings import JumpServer, Settings
from model.settings_file import load
from model.settings_problems import SettingsError
from tests.fast.recorded_run import run
from tests.fast.sample_settings import HOST_KEY, raw_settings
from tests.fast.test_knownhosts import ECDSA, ED25519


def loaded(tmp_path: Path, known_hosts: str, ssh: dict[str, Any], host: dict[str, Any]) -> Settings:
    """Settings with additions to `ssh` and to the last host's `ssh`."""
    (tmp_path / "known").write_text(known_hosts)
    raw = raw_settings(tmp_path)
    raw["ssh"] |= {"knownHostsFile": "known", **ssh}
    raw["hosts"][2]["ssh"] |= host
    return load(raw, tmp_path)


def jumps(settings: Settings) -> list[JumpServer | None]:
    return [settings.jump_host(host) for host in settings.hosts]


def test_jump_hosts_key_comes_from_known_hosts(tmp_path: Path) -> None:
    known = f"bastion.example.com {ED25519}\n[10.0.0.1]:2222 {ECDSA}\n"
    ssh = {"proxyJump": "bastion.example.com", "user": "ops"}
    settings = loaded(tmp_path, known, ssh, {"proxyJump": "me@corp.example.com@10.0.0.1:2222"})
    assert jumps(settings) == [
        JumpServer("ops", "bastion.example.com", 22, ED25519),
        JumpServer("ops", "bastion.example.com", 22, ED25519),
        JumpServer("me@corp.example.com", "10.0.0.1", 2222, ECDSA),
    ]


def test_jump_hosts_key_can_be_a_setting(tmp_path: Path) -> None:
    ssh = {"proxyJump": "bastion", "proxyJumpHostKey": ED25519}
    settings = loaded(tmp_path, f"bastion {ECDSA}\n", ssh, {"proxyJump": "none"})
    bastion = JumpServer("root", "bastion", 22, ED25519)
    assert jumps(settings) == [bastion, bastion, None]
    settings = loaded(tmp_path, "", {}, {"proxyJump": "bastion", "proxyJumpHostKey": ED25519})
    assert jumps(settings) == [None, None, bastion]


def test_shared_jump_host_without_key_is_one_problem(tmp_path: Path) -> None:
    for known, key, reason in (
        ("", None, "no ed25519 or ECDSA key for bastion port 22"),
        (f"@revoked * {ED25519}\n", ED25519, "known:1 revokes"),
    ):
        with pytest.raises(SettingsError) as caught:
            loaded(tmp_path, known, {"proxyJump": "bastion", "proxyJumpHostKey": key}, {})
        (problem,) = caught.value.problems
        assert problem.path == "ssh.proxyJumpHostKey"
        assert reason in problem.text


def test_steps_connect_through_the_jump_host(tmp_path: Path) -> None:
    ssh = {"proxyJump": "ops@bastion:2222", "proxyJumpHostKey": ED25519}
    direct = run(loaded(tmp_path, "", {}, {}))
    recorded = run(loaded(tmp_path, "", ssh, {"proxyJump": "none"}))
    proxy = recorded.inputs["master-claim"]["connection"]["proxy"]
    assert (proxy["host"], proxy["port"], proxy["user"]) == ("bastion", 2222, "ops")
    assert (proxy["hostKey"], proxy["perDialTimeout"], proxy["dialErrorLimit"]) == (ED25519, 5, 12)
    assert proxy["privateKey"] == recorded.inputs["master-claim"]["connection"]["privateKey"]
    assert recorded.inputs["master-claim"]["connection"]["hostKey"] == HOST_KEY
    for inputs in (direct.inputs["master-claim"], recorded.inputs["node2-claim"]):
        assert "proxy" not in inputs["connection"]
