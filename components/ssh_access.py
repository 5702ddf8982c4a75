"""Checks SSH access to a host before the first step runs on it.

The provider retries after any failure, even a rejected key, and waits forever for a server that accepts a
connection and then stays silent. So a hook runs before the first step on a host. It waits for a host that is
booting, and fails at once, with the reason, if waiting can't help.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi

from components import ssh_agent
from model.settings import Host, Settings

if TYPE_CHECKING:
    import asyncssh

PAUSE_SECONDS = 3.0
HANDSHAKE_SECONDS = 30.0  # an emulated host needs several seconds for a handshake
REPORT_EVERY_SECONDS = 20.0


class UnreachableError(Exception):
    """The host can't be used; the message names the host, the cause and the next move."""


class NotAnsweringError(Exception):
    """No SSH server answers; that may change while the host boots."""


def hooks(settings: Settings, host: Host) -> pulumi.ResourceHookBinding:
    """Hooks that keep a step from running before its host is usable."""
    check_access = once(settings, host)

    async def check(_: pulumi.ResourceHookArgs) -> None:
        await check_access()

    hook = pulumi.ResourceHook(f"{host.name}-ssh-access", check)
    return pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])


def once(settings: Settings, host: Host) -> Callable[[], Awaitable[None]]:
    """`wait`, run once and shared by all callers: a run logs in once, not before each step."""
    attempt: asyncio.Task[None] | None = None

    async def check() -> None:
        nonlocal attempt
        if attempt is None:
            attempt = asyncio.create_task(wait(settings, host))
        # Cancelling one step must not cancel the check for the others.
        await asyncio.shield(attempt)

    return check


async def wait(settings: Settings, host: Host) -> None:
    """Wait until the host accepts the login and runs commands as root.

    Raises:
        UnreachableError: The host isn't usable within `ssh.waitSeconds`, or waiting can't help.
    """
    dead_socket = ssh_agent.unreachable_socket()
    if dead_socket:
        raise UnreachableError(
            f"{host.name}: no SSH agent listens on {dead_socket}, and the provider uses the agent even if "
            "ssh.privateKeyFile is set. Unset SSH_AUTH_SOCK or start the agent"
        )
    address, port = settings.ssh_endpoint(host)
    began = reported = time.monotonic()
    while True:
        try:
            connection = await connect(settings, host)
            break
        except NotAnsweringError as error:
            now = time.monotonic()
            if now - began >= settings.ssh.wait_seconds:
                raise UnreachableError(
                    f"{host.name}: no SSH server answers at {address}:{port} after {now - began:.0f} s: "
                    f"{error}. Start the host, correct its address or port, or open the firewall"
                ) from None
            if now - reported >= REPORT_EVERY_SECONDS:
                pulumi.log.info(f"{host.name}: waiting for its SSH server at {address}:{port} ({error})")
                reported = now
            await asyncio.sleep(PAUSE_SECONDS)
    async with connection:
        await _check_root(connection, settings, host)


async def connect(settings: Settings, host: Host) -> asyncssh.SSHClientConnection:
    """Try once to log in, with the host key pinned and a time limit.

    Raises:
        UnreachableError: The host's key or our key is rejected.
        NotAnsweringError: No SSH server answers.
    """
    # Imported here because it is slow to load and a run that changes nothing doesn't need it.
    import asyncssh

    address, port = settings.ssh_endpoint(host)
    where = f"{host.name} ({settings.ssh_user(host)}@{address}:{port})"
    pinned = asyncssh.import_public_key(settings.host_key(host))
    options: dict[str, Any] = {
        "username": settings.ssh_user(host),
        "known_hosts": ([pinned], [], []),
        "config": None,
        "connect_timeout": HANDSHAKE_SECONDS,
        "login_timeout": HANDSHAKE_SECONDS,
    }
    if settings.ssh.private_key_file is not None:
        try:
            key = asyncssh.import_private_key(Path(settings.ssh.private_key_file).read_text(encoding="utf-8"))
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise UnreachableError(
                f"{settings.ssh.private_key_file} can't be used as a login key: {error}. Add a key with a "
                "passphrase to an agent (ssh-add) and leave ssh.privateKeyFile unset"
            ) from None
        options |= {"client_keys": [key], "agent_path": None}
    sock: socket.socket | None = None
    try:
        sock = await asyncio.to_thread(
            socket.create_connection, (address, port), settings.ssh.dial_timeout_seconds
        )
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return await asyncssh.connect(sock=sock, **options)
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed):
        raise UnreachableError(
            f"{where} presents a host key other than the pinned one ({pinned.get_fingerprint()}). If the "
            "host was reinstalled, put its new key into ssh.knownHostsFile or the host's ssh.hostKey; if it "
            "wasn't, another machine is answering in its place"
        ) from None
    except asyncssh.PermissionDenied:
        ours = settings.ssh.private_key_file or "the agent's keys"
        raise UnreachableError(
            f"{where} rejects the login with {ours}. Add the public key to ~/.ssh/authorized_keys there, "
            "or correct ssh.user or ssh.privateKeyFile"
        ) from None
    except TimeoutError:
        if sock is not None:
            raise NotAnsweringError("it accepts the connection but stays silent; its sshd may hang") from None
        raise NotAnsweringError("no response") from None
    except OSError as error:
        raise NotAnsweringError(error.strerror or str(error)) from None
    except asyncssh.Error as error:
        raise NotAnsweringError(error.reason) from None


async def _check_root(connection: asyncssh.SSHClientConnection, settings: Settings, host: Host) -> None:
    user = settings.ssh_user(host)
    if user == "root":
        return
    done = await connection.run("sudo -n true", check=False, timeout=HANDSHAKE_SECONDS)
    if done.exit_status != 0:
        output = str(done.stderr or done.stdout or "").strip().splitlines()
        raise UnreachableError(
            f"{host.name}: {user} can't run commands as root: {output[-1] if output else 'sudo failed'}. "
            f"Allow it without a password: '{user} ALL=(ALL) NOPASSWD: ALL' in /etc/sudoers.d/"
        )
