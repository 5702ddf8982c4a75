"""Waiting for SSH access to a host, failing at once if waiting can't help, and delivering the scripts."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import asyncssh
import pytest

from components import ssh_access
from model.delivery import delivery
from model.login import Login
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

OWNER = "test 4fd10a2b"


def wait(settings: Settings, login: Login | None = None) -> None:
    host = settings.hosts[0]
    asyncio.run(ssh_access.wait(settings, host, login or Login.of(settings, host), OWNER))


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
    assert host.probes == ["timeout --kill-after=5 60 bash -s -- probe"]
    assert host.deliveries == ["timeout --kill-after=5 120 bash -s -- deliver"]
    assert len(host.logins) == 1


def test_access_is_checked_while_the_loops_threads_are_busy(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)
    released = threading.Event()

    async def check() -> None:
        # As in a run: a thread waits for each resource, and the engine waits for this check.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        registration = loop.run_in_executor(None, released.wait)
        try:
            access = ssh_access.once(settings, settings.hosts[0])
            await asyncio.wait_for(access(Login("root", host.private_key), OWNER), 10)
        finally:
            released.set()
            await registration

    asyncio.run(check())
    assert len(host.logins) == 1


@pytest.mark.parametrize(
    ("ahead", "problem"),
    [
        (0, ""),
        (55, ""),
        (
            600,
            "node1: its clock and that of node2 differ by N s (node1 is N s ahead of this machine, node2 N s",
        ),
        (
            -90,
            "node1: its clock and that of node2 differ by N s (node1 is N s behind this machine, node2 N s",
        ),
    ],
)
def test_clocks_of_two_hosts_are_compared(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, problem: str
) -> None:
    monkeypatch.setattr(ssh_access, "_clocks", {"node2": 1.0})
    settings = settings_for(host, tmp_path)
    host.clock = ahead
    wait(settings)
    first = settings.hosts[0]
    if problem:
        with pytest.raises(ssh_access.UnreachableError) as caught:
            ssh_access.check_clock(first)
        assert re.sub(r"\d+ s", "N s", str(caught.value)).startswith(problem)
    else:
        ssh_access.check_clock(first)


def test_many_steps_log_in_once(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)
    root, ops = (Login(user, host.private_key) for user in ("root", "ops"))

    async def steps() -> None:
        access = ssh_access.once(settings, settings.hosts[0])
        await asyncio.gather(access(root, OWNER), access(root, OWNER))
        await access(Login("root", host.private_key), OWNER)
        await asyncio.gather(access(ops, OWNER), access(ops, OWNER))

    asyncio.run(steps())
    assert host.logins == ["root", "ops"]


def test_rejected_login_of_the_state_is_named(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(host, tmp_path, wait=60)
    old = new_key()
    with pytest.raises(ssh_access.UnreachableError) as caught:
        wait(settings, Login("root", private(old)))
    message = str(caught.value)
    assert f"rejects the login with the key in the state ({old.get_fingerprint()})" in message
    current = asyncssh.import_private_key(host.private_key).get_fingerprint()
    assert f"the settings' is root with the key {current}. To put" in message
    assert "python -m tools credentials --stack" in message
    assert private(old).splitlines()[1] not in message
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(ssh_access.UnreachableError) as caught:
        wait(settings, Login("root"))
    assert "the state has none, and SSH_AUTH_SOCK (the SSH agent) isn't set" in str(caught.value)


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
    assert "rate limit" in message


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
        assert "rejects the login with the agent's keys (1)" in error_message(settings)


def without_key_file(host: SshServer, tmp_path: Path) -> Settings:
    settings = settings_for(host, tmp_path, wait=60)
    return settings.model_copy(update={"ssh": settings.ssh.model_copy(update={"private_key_file": None})})


def test_default_key_isnt_used_without_the_provider(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = without_key_file(host, tmp_path)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    message = error_message(settings)
    assert "rejects a login without a key: ssh.privateKeyFile and SSH_AUTH_SOCK" in message
    assert message.endswith("Set ssh.privateKeyFile, or add a key to an agent (ssh-add)")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text(host.private_key)
    (tmp_path / ".ssh/id_ed25519").chmod(0o600)
    assert "Set ssh.privateKeyFile: ~/.ssh/id_ed25519" in error_message(settings)
    with ssh_agent() as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        message = error_message(settings)
    assert f"the SSH agent on {socket_path} has no keys" in message
    assert "Set ssh.privateKeyFile: ~/.ssh/id_ed25519" in message
    assert host.logins == []


def test_too_many_keys_in_the_agent_fail_at_once(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.max_tries = 6
    settings = without_key_file(host, tmp_path)
    others = [private(new_key()) for _ in range(5)]
    with ssh_agent(*others, host.private_key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        wait(settings)
    with ssh_agent(*others, private(new_key()), host.private_key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        began = time.monotonic()
        message = error_message(settings)
    assert time.monotonic() - began < 30, "fails without waiting"
    assert "too many failures" in message
    assert "the agent's keys (7)" in message
    assert "Set ssh.privateKeyFile" in message
    monkeypatch.delenv("SSH_AUTH_SOCK")
    host.max_tries = 1
    host.private_key = private(new_key())
    assert "rejects the login with" in error_message(settings_for(host, tmp_path, wait=60))


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
    host: SshServer, tmp_path: Path, programs: Callable[..., Path]
) -> None:
    sudo = programs(sudo="echo 'sudo: a password is required' >&2; exit 1", id="echo 0") / "sudo"
    host.shell = "bash"
    message = error_message(settings_for(host, tmp_path, user="ops", wait=60))
    assert "ops can't run commands as root: sudo: a password is required" in message
    assert "'ops ALL=(ALL) NOPASSWD: ALL'" in message
    message = error_message(settings_for(host, tmp_path, user=r"CORP\ops", wait=60))
    assert r"'CORP\\ops ALL=(ALL)" in message
    sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    wait(settings_for(host, tmp_path, user="ops@corp.example.com"))
    assert host.logins == ["ops", r"CORP\ops", "ops@corp.example.com"]
    assert host.probes[-1] == "sudo -n timeout --kill-after=5 60 bash -s -- probe"
    assert host.deliveries == ["sudo -n timeout --kill-after=5 120 bash -s -- deliver"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that puts shell scripts on the host's PATH and returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(**scripts: str) -> Path:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    return write


CLOUD_IMAGE = """echo 'Please login as the user "debian" rather than the user "root".'; echo; exit 142"""


@pytest.mark.parametrize(
    ("shell", "reported"),
    [
        (CLOUD_IMAGE, ['only gets the message \'Please login as the user "debian"', "ssh.user: debian"]),
        (
            'echo "Welcome to the lab:"; exec bash "$@"',
            ["prints text of its own ('Welcome to the lab:')", "~/.bashrc"],
        ),
        ('bash "$@"; echo bye', ["prints text of its own ('bye')"]),
        ("cat >/dev/null", ["doesn't run commands: it prints nothing", "ForceCommand"]),
        ("cat", ["doesn't run commands: it prints \"# shellcheck shell=bash # Shows that the login"]),
        (
            "echo 'This account is currently not available.'; exit 1",
            ["currently not available", "login shell"],
        ),
        ("echo 'bash: line 1: timeout: command not found' >&2; exit 127", ["Install bash and coreutils"]),
        ('exec bash "$@" | sed "s/user 0/user 1000/"', ["run with the user ID 1000, not as root"]),
        ('exec bash "$@" 2>&1 | tr -d p', ["doesn't run commands: it prints 'kubeadm-ivs robe 42 at "]),
        ("printf '\\377\\n'", ["doesn't run commands"]),
        ("echo; kill -9 $$", ["doesn't run commands: it prints nothing"]),
    ],
)
def test_host_that_doesnt_run_commands_is_reported(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path], shell: str, reported: list[str]
) -> None:
    host.shell = str(programs(shell=shell, id="echo 0") / "shell")
    message = error_message(settings_for(host, tmp_path, wait=60))
    assert message.startswith("node1: ")
    for text in reported:
        assert text in message


def test_login_shell_that_warns_is_accepted(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path]
) -> None:
    host.shell = str(programs(shell='echo "locale?" >&2; exec bash "$@"', id="echo 0") / "shell")
    wait(settings_for(host, tmp_path))


def test_hanging_login_shell_is_reported(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_access, "PROBE_SECONDS", 0.3)
    host.shell = str(programs(shell="echo 'Password expired'; exec sleep 1") / "shell")
    message = error_message(settings_for(host, tmp_path))
    # The server must not be stopped before its child has ended.
    assert host.shell_ended.wait(30)
    assert "doesn't end within" in message
    assert "'Password expired'" in message


def with_shell(host: SshServer, programs: Callable[..., Path]) -> None:
    """Let the host run probes, as root."""
    host.shell = str(programs(shell='exec bash "$@"', id="echo 0") / "shell")


def delivered(folder: Path) -> list[str]:
    """The names in a folder with delivered scripts, and the digest that it is named after."""
    return [(folder / "scripts").readlink().name, *sorted(path.name for path in folder.iterdir())]


def test_scripts_are_delivered_once(host: SshServer, tmp_path: Path, programs: Callable[..., Path]) -> None:
    with_shell(host, programs)
    settings = settings_for(host, tmp_path)
    wait(settings)
    folder = host.folder / "run/kubeadm-ipvs"
    name = f"scripts.{delivery().digest}"
    assert delivered(folder) == [name, "scripts", name]
    assert {"claim.sh", "run.sh", "SHA256SUMS"} < {path.name for path in (folder / name).iterdir()}
    wait(settings)
    assert (len(host.probes), len(host.deliveries)) == (2, 1)
    assert not (host.folder / "var/lib/kubeadm-ipvs").exists(), "the host isn't claimed yet"


@pytest.mark.parametrize(
    "damage",
    [
        lambda scripts: (scripts / "claim.sh").unlink(),
        lambda scripts: (scripts / "claim.sh").write_text(""),
        lambda scripts: (scripts / "SHA256SUMS").write_text(""),
        lambda scripts: shutil.rmtree(scripts),
    ],
    ids=["missing", "empty", "no checksums", "no scripts"],
)
def test_damaged_scripts_are_delivered_again(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path], damage: Callable[[Path], object]
) -> None:
    with_shell(host, programs)
    settings = settings_for(host, tmp_path)
    wait(settings)
    damage(host.folder / f"run/kubeadm-ipvs/scripts.{delivery().digest}")
    wait(settings)
    wait(settings)
    assert (len(host.probes), len(host.deliveries)) == (3, 2)


def test_newer_scripts_replace_those_of_a_claimed_host(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path]
) -> None:
    with_shell(host, programs)
    home = host.folder / "var/lib/kubeadm-ipvs"
    (home / "scripts.0123456789abcdef").mkdir(parents=True)
    (home / "scripts").symlink_to("scripts.0123456789abcdef")
    (home / "owner").write_text(f"{OWNER}\n")
    wait(settings_for(host, tmp_path))
    name = f"scripts.{delivery().digest}"
    assert delivered(home) == [name, "owner", "scripts", name]
    assert not (host.folder / "run/kubeadm-ipvs").exists()


def test_host_of_another_stack_keeps_its_scripts(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path]
) -> None:
    """This stack's steps need theirs to refuse the host, so they are in another place."""
    with_shell(host, programs)
    home = host.folder / "var/lib/kubeadm-ipvs"
    (home / "scripts.0123456789abcdef").mkdir(parents=True)
    (home / "scripts").symlink_to("scripts.0123456789abcdef")
    (home / "owner").write_text("other 11111111\n")
    wait(settings_for(host, tmp_path))
    assert delivered(home) == ["scripts.0123456789abcdef", "owner", "scripts", "scripts.0123456789abcdef"]
    assert delivered(host.folder / "run/kubeadm-ipvs")[0] == f"scripts.{delivery().digest}"


def test_failed_delivery_is_reported_with_the_fix(
    host: SshServer, tmp_path: Path, programs: Callable[..., Path]
) -> None:
    with_shell(host, programs)
    (host.folder / "run").touch()
    message = error_message(settings_for(host, tmp_path, wait=60))
    assert message.startswith("node1: the host doesn't accept the steps' scripts: mkdir: ")
    assert "Not a directory" in message
    assert "df -h /run /var/lib" in message
    assert message.endswith("nothing was changed")


@contextmanager
def greeting_port(text: bytes, times: int) -> Iterator[tuple[int, list[float]]]:
    """A port that sends a text to each connection and closes it; it refuses connections after some.

    Yields:
        The port, and the times of the connections so far.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        seen: list[float] = []

        def serve() -> None:
            while len(seen) < times:
                connection = server.accept()[0]
                seen.append(time.monotonic())
                if len(seen) == times:
                    server.close()
                with connection:
                    connection.sendall(text)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        thread.join(20)


def test_turned_away_client_pauses_and_names_the_limit(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_access, "PAUSE_SECONDS", 0.05)
    for text, times, expected in (
        (b"Exceeded MaxStartups\r\n", 2, "it closes the connection with 'Exceeded MaxStartups'"),
        (b"SSH-2.0-x\r\n", 1, "Connection refused"),
    ):
        with greeting_port(text, times) as (host.port, seen):
            message = error_message(settings_for(host, tmp_path))
        assert len(seen) == times
        assert (
            f"the SSH server at 127.0.0.1:{host.port} turns this machine away after 1 s: {expected}"
            in message
        )
        assert "ufw limit, fail2ban, MaxStartups" in message


def test_closed_connections_are_no_sign_of_a_limit(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_access, "PAUSE_SECONDS", 0.1)
    with greeting_port(b"", 3) as (host.port, seen):
        message = error_message(settings_for(host, tmp_path))
    assert len(seen) == 3
    assert "no SSH server answers" in message


def test_probing_slows_down(host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PAUSE", 0.05), ("SLOW_AFTER", 0.2), ("SLOW_PAUSE", 0.35)):
        monkeypatch.setattr(ssh_access, f"{name}_SECONDS", seconds)
    with greeting_port(b"", 4) as (host.port, seen):
        error_message(settings_for(host, tmp_path))
    assert seen[1] - seen[0] < 0.3
    assert len(seen) == 4


def test_ssh_server_that_accepts_no_login_is_named(host: SshServer, tmp_path: Path) -> None:
    with greeting_port(b"SSH-2.0-x\r\n", 2) as (host.port, _):
        message = error_message(settings_for(host, tmp_path))
    assert f"the SSH server at 127.0.0.1:{host.port} still accepts no login after" in message


def through(jump: SshServer, settings: Settings, *, user: str = "ops") -> Settings:
    """The settings with a jump host in front of the host."""
    ssh = settings.ssh.model_copy(
        update={"proxy_jump": f"{user}@127.0.0.1:{jump.port}", "proxy_jump_host_key": jump.host_key}
    )
    return settings.model_copy(update={"ssh": ssh})


def test_host_is_reached_through_its_jump_host(
    host: SshServer, tmp_path: Path, hosts: Callable[[str], SshServer]
) -> None:
    jump = hosts("jump")
    settings = through(jump, settings_for(host, tmp_path))
    assert "the jump host (ops@127.0.0.1:" in error_message(settings)
    login = asyncssh.import_private_key(host.private_key)
    with ssh_server(tmp_path / "other", login=login) as jump:
        settings = through(jump, settings_for(host, tmp_path))
        wait(settings)
        assert (jump.logins, jump.probes, host.logins) == (["ops"], [], ["root"])
        host.host_key = public(new_key())
        message = error_message(through(jump, settings_for(host, tmp_path, wait=60)))
        assert message.startswith("node1 (root@127.0.0.1:") and "other than the pinned one" in message
        host.port = closed_port()
        message = error_message(through(jump, settings_for(host, tmp_path)))
        assert f"no SSH server answers at 127.0.0.1:{host.port} (through the jump host) after" in message
        jump.host_key = public(new_key())
        message = error_message(through(jump, settings_for(host, tmp_path, wait=60)))
        assert message.startswith("node1: the jump host (ops@127.0.0.1:")
        assert "other than the pinned one" in message and "ssh.proxyJumpHostKey" in message
        jump.port = closed_port()
        message = error_message(through(jump, settings_for(host, tmp_path)))
        assert f"no SSH server answers at 127.0.0.1:{jump.port} after" in message


def test_jump_host_without_forwarding_fails_at_once(host: SshServer, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "jump", login=asyncssh.import_private_key(host.private_key)) as jump:
        jump.forwards = False
        message = error_message(through(jump, settings_for(host, tmp_path, wait=60)))
    assert "the jump host doesn't forward connections to it" in message
    assert "AllowTcpForwarding" in message
