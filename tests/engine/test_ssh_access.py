"""The way in to a host: waited for where that helps, and refused in words where it doesn't."""

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
from model.settings import Host, HostSsh, Settings, Ssh
from tests.engine.ssh_server import (
    SshServer,
    closed_port,
    private,
    public,
    ssh_agent,
    ssh_server,
    turn_one_away,
)


def settings_for(server: SshServer, tmp_path: Path, *, user: str = "root", wait: int = 1) -> Settings:
    """An environment of one host, which is the server."""
    key = tmp_path / "login"
    key.write_text(server.private_key)
    way = HostSsh(host="127.0.0.1", port=server.port, host_key=server.host_key)
    host = Host(name="node1", role="control-plane", address="10.0.0.11", ssh=way)
    return Settings(
        hosts=(host,),
        ssh=Ssh(user=user, private_key_file=str(key), dial_timeout_seconds=2, wait_seconds=wait),
    )


def wait(settings: Settings) -> None:
    asyncio.run(ssh_access.wait(settings, settings.hosts[0]))


def refusal(settings: Settings) -> str:
    with pytest.raises(ssh_access.UnreachableError) as caught:
        wait(settings)
    return str(caught.value)


def other_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections, and where nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_host_that_lets_us_in_is_not_kept_waiting(host: SshServer, tmp_path: Path) -> None:
    began = time.monotonic()
    wait(settings_for(host, tmp_path))
    assert time.monotonic() - began < 3
    assert host.commands == []


def test_many_steps_log_in_once(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)

    async def steps() -> None:
        reached = ssh_access.once(settings, settings.hosts[0])
        await asyncio.gather(reached(), reached())
        await reached()

    asyncio.run(steps())
    assert len(host.logins) == 1


def test_a_host_that_boots_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_access, "PAUSE_SECONDS", 0.1)
    key, login = other_key(), other_key()
    port = closed_port()
    late = SshServer(port, tmp_path / "late", public(key), private(login))
    stop = threading.Event()

    def serve() -> None:
        turn_one_away(port)
        with ssh_server(tmp_path / "late", port, key, login):
            stop.wait(30)

    start = Thread(target=serve)
    start.start()
    try:
        wait(settings_for(late, tmp_path, wait=20))
    finally:
        stop.set()
        start.join()


def test_a_host_that_does_not_answer_is_named_with_its_address_and_the_bound(
    host: SshServer, tmp_path: Path
) -> None:
    host.port = closed_port()
    said = refusal(settings_for(host, tmp_path))
    assert f"node1: no SSH server answers at 127.0.0.1:{host.port} after" in said
    assert "refused" in said


def test_a_server_that_accepts_and_says_nothing_is_told_from_one_that_is_down(
    host: SshServer, tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_access, "HANDSHAKE_SECONDS", 0.5)
    host.port = silent_port
    assert "accepts connections and says nothing" in refusal(settings_for(host, tmp_path))


def test_another_host_key_is_refused_at_once_and_nothing_runs(host: SshServer, tmp_path: Path) -> None:
    for key in (other_key(), asyncssh.generate_private_key("ecdsa-sha2-nistp256")):
        host.host_key = public(key)
        began = time.monotonic()
        said = refusal(settings_for(host, tmp_path, wait=60))
        assert time.monotonic() - began < 30, "it is not waited for"
        assert "shows another host key than the one that is pinned" in said
        assert key.get_fingerprint() in said
    assert host.commands == []


def test_a_login_key_that_is_refused_is_told_at_once_without_the_key(host: SshServer, tmp_path: Path) -> None:
    host.private_key = private(other_key())
    began = time.monotonic()
    said = refusal(settings_for(host, tmp_path, wait=60))
    assert time.monotonic() - began < 30, "it is not waited for"
    assert f"refuses the login with {tmp_path / 'login'}" in said
    assert host.private_key.splitlines()[1] not in said


def test_a_login_without_a_key_file_is_by_the_agents(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(host, tmp_path)
    settings = settings.model_copy(update={"ssh": settings.ssh.model_copy(update={"private_key_file": None})})
    with ssh_agent(host.private_key) as place:
        monkeypatch.setenv("SSH_AUTH_SOCK", place)
        wait(settings)
    with ssh_agent(private(other_key())) as place:
        monkeypatch.setenv("SSH_AUTH_SOCK", place)
        assert "refuses the login with the agent's keys" in refusal(settings)


def test_an_agent_that_is_gone_is_told_before_the_provider_trips_over_it(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ssh_agent(host.private_key) as place:
        monkeypatch.setenv("SSH_AUTH_SOCK", place)
        wait(settings_for(host, tmp_path))
    said = refusal(settings_for(host, tmp_path, wait=60))
    assert f"node1: no SSH agent answers at {place}" in said
    assert "Unset SSH_AUTH_SOCK" in said


def test_a_login_key_with_a_passphrase_is_sent_to_the_agent(host: SshServer, tmp_path: Path) -> None:
    host.private_key = other_key().export_private_key("pkcs8-pem", passphrase="secret").decode()
    assert "belongs into an agent" in refusal(settings_for(host, tmp_path, wait=60))


def test_a_sudo_that_asks_for_a_password_is_told_with_what_to_write(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    sudo = folder / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    said = refusal(settings_for(host, tmp_path, user="ops", wait=60))
    assert "ops may not run commands as root: sudo: a password is required" in said
    assert "NOPASSWD" in said
    sudo.write_text("#!/bin/sh\nexec true\n")
    wait(settings_for(host, tmp_path, user="ops"))
    assert host.commands == ["sudo -n true"] * 2
