"""The report's comparison of settings, and masking of secrets."""

from __future__ import annotations

import pytest

from report.page import Environment, render
from report.settings_diff import settings_diff
from report.text import mask


def test_diff_shows_defaults_and_effects() -> None:
    after = {"proxy": {"scheduler": "wrr"}, "runtime": {"mirrors": {"docker.io": ["https://m"]}}}
    assert settings_diff({}, after) == [
        "-proxy.scheduler: rr  # default",
        "+proxy.scheduler: wrr  # rolling",
        '+runtime.mirrors.docker.io: ["https://m"]  # in place',
    ]
    assert settings_diff(after, {"runtime": after["runtime"]}) == [
        "-proxy.scheduler: wrr",
        "+proxy.scheduler: rr  # default, rolling",
    ]


def test_hosts_are_compared_by_name() -> None:
    before = {"hosts": [{"name": "a", "address": "1"}, {"name": "b", "address": "2"}]}
    after = {"hosts": [{"name": "b", "address": "2", "labels": {"disk": "ssd"}}]}
    assert settings_diff(before, after) == [
        "+hosts[b].labels.disk: ssd  # in place",
        "-hosts[a].address: 1",
    ]


def test_encrypted_values_are_hidden() -> None:
    before, after = ({"packages": {"key": {"secure": f"v1:abc:{n}"}}} for n in "12")
    assert settings_diff(before, after) == ["-packages.key: [secret]", "+packages.key: [secret]  # in place"]


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hush@mirror.example.com/x",
        "join --token abcdef.0123456789hushab",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nhush\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhush, cut short",
        "password=hush",
        "passphrase: hush",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    assert "hush" not in mask(text)
    assert "hush" not in render([Environment("prod", None, errors=text)], approved=False).text


def test_ordinary_text_isnt_masked() -> None:
    text = (
        "ssh.privateKeyFile: is /home/me/.ssh/id_ed25519, 10.244.0.0/16 -> 10.200.0.0/16, https://a.example/b"
    )
    assert mask(text) == text
