"""Finding the host key to pin in a known_hosts file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from pathlib import Path

import pytest

from model import knownhosts
from model.settings import Settings
from model.settings_file import load
from model.settings_problems import SettingsError
from tests.fast.sample_settings import raw_settings


def key_of(kind: str, filling: int) -> str:
    """A well-formed public key with arbitrary content."""
    blob = struct.pack(">I", len(kind)) + kind.encode() + bytes([filling]) * 36
    return f"{kind} {base64.b64encode(blob).decode()}"


ED25519 = key_of("ssh-ed25519", 1)
OTHER_ED25519 = key_of("ssh-ed25519", 2)
ECDSA = key_of("ecdsa-sha2-nistp256", 3)
ECDSA_384 = key_of("ecdsa-sha2-nistp384", 4)
RSA = key_of("ssh-rsa", 5)


def problem(text: str, host: str, port: int = 22) -> str:
    """The message of a lookup that fails."""
    with pytest.raises(knownhosts.NoKeyError) as caught:
        knownhosts.find(text, host, port, "file")
    return str(caught.value)


def load_with(tmp_path: Path, content: bytes, **ssh: str) -> Settings:
    """Settings whose first host has no key of its own unless `ssh` has one."""
    (tmp_path / "known").write_bytes(content)
    raw = raw_settings(tmp_path)
    raw["ssh"]["knownHostsFile"] = "known"
    raw["hosts"][0]["ssh"] = ssh
    return load(raw, tmp_path)


def test_ports_wildcards_negation_and_markers() -> None:
    text = "\n".join(
        [
            "# comment",
            "",
            f"a.example {ED25519} somebody",
            f"[b.example]:2222,c.example {ED25519}",
            f"*.d.example,!bad.d.example {ED25519}",
            f"@revoked e.example {ED25519}",
            f"e.example {ED25519}",
            f"@cert-authority f.example {ED25519}",
            "g.example ssh-ed25519 AAAA",
            "h.example",
            f"@unknown i.example {ED25519}",
        ]
    )
    found = [
        knownhosts.find(text, host, port)
        for host, port in [("A.example", 22), ("b.example", 2222), ("c.example", 22), ("x.d.example", 22)]
    ]
    assert found == [ED25519] * 4
    for host, port, reason in [
        ("a.example", 2222, "port 2222 (file:3 is for port 22); write"),
        ("b.example", 22, "port 22; write"),
        ("bad.d.example", 22, "port 22; write"),
        ("e.example", 22, "(file:6 revokes the ssh-ed25519 key); write"),
        ("f.example", 22, "(file:8 names a certificate authority, and host certificates aren't supported)"),
        ("g.example", 22, "(file:9 is damaged)"),
        ("h.example", 22, "port 22; write"),
        ("i.example", 22, "port 22; write"),
    ]:
        assert reason in problem(text, host, port)


def test_hashed_names() -> None:
    salt = b"0123456789abcdefghij"

    def hashed(name: str) -> str:
        digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
        return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"

    text = f"{hashed('[127.0.0.1]:22101')} {ED25519}\n{hashed('node')} {ECDSA}\n|1|broken {ED25519}\n"
    assert knownhosts.find(text, "127.0.0.1", 22101) == ED25519
    assert knownhosts.find(text, "node", 22) == ECDSA
    assert "no ed25519 or ECDSA key" in problem(text, "127.0.0.1", 22)


def test_preferred_of_several_key_types_is_pinned() -> None:
    assert knownhosts.valid(RSA)
    assert knownhosts.find(f"a {RSA}\na {ECDSA}\na {ED25519}\n", "a", 22) == ED25519
    assert knownhosts.find(f"a {RSA}\na {ECDSA_384}\na {ECDSA}\n", "a", 22) == ECDSA
    assert "(file:1 is a key of type ssh-rsa, which can't be pinned)" in problem(f"a {RSA}\n", "a")


@pytest.mark.parametrize("keys", [(ED25519, OTHER_ED25519), (OTHER_ED25519, ED25519)])
def test_two_keys_of_one_type_are_refused(keys: tuple[str, str]) -> None:
    text = f"[a]:2222 {keys[0]}\n[a]:2222 {ECDSA}\n[a]:2222,b {keys[1]} new\n"
    message = problem(text, "a", 2222)
    assert "has 2 different ssh-ed25519 keys for a port 2222" in message
    assert (
        f"file:1 ({knownhosts.fingerprint(keys[0])}), file:3 ({knownhosts.fingerprint(keys[1])})" in message
    )
    assert "`ssh-keygen -f file -R '[a]:2222'`" in message


def test_repeated_and_less_preferred_keys_are_no_ambiguity() -> None:
    text = f"a {ED25519}\na,b {ED25519} again\na {ECDSA}\na {key_of('ecdsa-sha2-nistp256', 9)}\n"
    assert knownhosts.find(text, "a", 22) == ED25519


def test_revoked_key_leaves_the_other_one() -> None:
    text = f"a {ED25519}\na {OTHER_ED25519}\n@revoked * {ED25519}\n"
    assert knownhosts.find(text, "a", 22) == OTHER_ED25519
    assert knownhosts.revoked_in(text, "a", 22, ED25519) == 3
    assert knownhosts.revoked_in(text, "a", 22, OTHER_ED25519) is None


@pytest.mark.parametrize(
    "content",
    [
        f"a {ECDSA}\r\nmaster {ED25519} schlüssel\r\n".encode("utf-8-sig"),
        f"master {ED25519} schlüssel\r\n".encode("utf-16"),
        b"\xfe\xff" + f"master {ED25519}\r\n".encode("utf-16-be"),
        f"a {ECDSA}\n".encode() + f"master {ED25519}\r\n".encode("utf-16-le"),
        f"a {ECDSA}\n".encode() + f"master {ED25519}\r\n".encode("utf-16"),
        f"master {ED25519} schl\xfcssel\n".encode("latin-1"),
    ],
    ids=["utf-8 mark", "utf-16", "utf-16-be", "utf-16 appended", "utf-16 appended with mark", "latin-1"],
)
def test_files_written_by_powershell_are_read(tmp_path: Path, content: bytes) -> None:
    settings = load_with(tmp_path, content, host="master")
    assert settings.host_key(settings.hosts[0]) == ED25519


def test_old_and_new_key_are_one_problem(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_with(tmp_path, f"master {ED25519}\nmaster {OTHER_ED25519}\n".encode(), host="master")
    (found,) = caught.value.problems
    assert found.path == "hosts[0].ssh.hostKey"
    assert f"{tmp_path}/known:1 " in found.text and f"{tmp_path}/known:2 " in found.text
    assert "-R master" in found.text


def test_hosts_own_key_must_not_be_revoked(tmp_path: Path) -> None:
    text = f"master {ED25519}\n@revoked * {OTHER_ED25519}\n".encode()
    settings = load_with(tmp_path, text, host="master", hostKey=ECDSA)
    assert settings.host_key(settings.hosts[0]) == ECDSA
    with pytest.raises(SettingsError) as caught:
        load_with(tmp_path, text, host="master", hostKey=OTHER_ED25519)
    (found,) = caught.value.problems
    assert found.path == "hosts[0].ssh.hostKey"
    assert f"{tmp_path}/known:2 revokes" in found.text
