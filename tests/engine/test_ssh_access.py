"""Waiting for SSH access to a host, and failing at once with the reason if waiting can't help."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import asyncssh
import pytest

from components import ssh_access
from model.settings import Settings
from tests.engine.ssh_server import (
    SshServer,
    private,
    public,
    ssh_agent,
    ssh_server,
    turn_one_away,
)
from tests.engine.ssh_settings import settings_for
from tests.local_ports import closed_port


def wait(settings: Settings) -> None:
    asyncio.run(ssh_access.wait(settings, settings.hosts[0]))


def error_message(settings: Settings) -> str:
    with pytest.raises(ssh_access.UnreachableError) as caught:
        wait(settings)
    return str(caught.value)


def new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_accessible_host_is_accepted_at_once(host: SshServer, tmp_path: Path) -> None:
    began = time.monotonic()
    wait(settings_for(host, tmp_path))
    assert time.monotonic() - began < 3
    assert host.commands == []


def test_many_steps_log_in_once(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)

    async def steps() -> None:
        access = ssh_access.once(settings, settings.hosts[0])
        await asyncio.gather(access(), access())
        await access()

    asyncio.run(steps())
    assert len(host.logins) == 1


def test_booting_host_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_access, "PAUSE_SECONDS", 0.1)
    key, login = new_key(), new_key()
    port = closed_port()
    late = SshServer(port, tmp_path / "late", public(key), private(login))
    stop = threading.Event()

    def serve() -> None:
        turn_one_away(port)
        with ssh_server(tmp_path / "late", port, key, login):
            stop.wait(30)

    thread = Thread(target=serve)
    thread.start()
    try:
        wait(settings_for(late, tmp_path, wait=20))
    finally:
        stop.set()
        thread.join()


def test_unreachable_host_is_named_with_its_address(host: SshServer, tmp_path: Path) -> None:
    host.port = closed_port()
    message = error_message(settings_for(host, tmp_path))
    assert f"node1: no SSH server answers at 127.0.0.1:{host.port} after" in message
    assert "refused" in message


def test_server_that_sends_nothing_is_reported(
    host: SshServer, tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_access, "HANDSHAKE_SECONDS", 0.5)
    host.port = silent_port
    assert "accepts the connection but stays silent" in error_message(settings_for(host, tmp_path))


def test_wrong_host_key_fails_at_once(host: SshServer, tmp_path: Path) -> None:
    for key in (new_key(), asyncssh.generate_private_key("ecdsa-sha2-nistp256")):
        host.host_key = public(key)
        began = time.monotonic()
        message = error_message(settings_for(host, tmp_path, wait=60))
        assert time.monotonic() - began < 30, "fails without waiting"
        assert "presents a host key other than the pinned one" in message
        assert key.get_fingerprint() in message
    assert host.commands == []


def test_rejected_login_keys_file_is_named_without_content(host: SshServer, tmp_path: Path) -> None:
    host.private_key = private(new_key())
    began = time.monotonic()
    message = error_message(settings_for(host, tmp_path, wait=60))
    assert time.monotonic() - began < 30, "fails without waiting"
    assert f"rejects the login with {tmp_path / 'login'}" in message
    assert host.private_key.splitlines()[1] not in message


def test_login_without_key_file_uses_the_agent(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(host, tmp_path)
    settings = settings.model_copy(update={"ssh": settings.ssh.model_copy(update={"private_key_file": None})})
    with ssh_agent(host.private_key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        wait(settings)
    with ssh_agent(private(new_key())) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        assert "rejects the login with the agent's keys" in error_message(settings)


def test_dead_agent_fails_before_the_provider_uses_it(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ssh_agent(host.private_key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        wait(settings_for(host, tmp_path))
    message = error_message(settings_for(host, tmp_path, wait=60))
    assert f"node1: no SSH agent listens on {socket_path}" in message
    assert "Unset SSH_AUTH_SOCK" in message


def test_key_with_passphrase_is_reported_with_the_fix(host: SshServer, tmp_path: Path) -> None:
    host.private_key = new_key().export_private_key("pkcs8-pem", passphrase="secret").decode()
    assert "passphrase to an agent" in error_message(settings_for(host, tmp_path, wait=60))


def test_sudo_with_password_is_reported_with_the_fix(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    sudo = folder / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    message = error_message(settings_for(host, tmp_path, user="ops", wait=60))
    assert "ops can't run commands as root: sudo: a password is required" in message
    assert "NOPASSWD" in message
    sudo.write_text("#!/bin/sh\nexec true\n")
    wait(settings_for(host, tmp_path, user="ops"))
    assert host.commands == ["sudo -n true"] * 2
