"""The way in to a host, tried before the first step on it and by whoever looks at it from outside a run.

The provider dials again and again whatever the reason, a wrong key included, and has no bound for
a server that accepts a connection and then says nothing. So a hook comes before the first step that
runs on a host, whichever that is: it waits for one that boots, and says at once, in words, what no waiting
will mend.
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

# Between two attempts, and for one: an emulated host needs seconds for a handshake.
PAUSE_SECONDS = 3.0
HANDSHAKE_SECONDS = 30.0
SAY_EVERY_SECONDS = 20.0


class UnreachableError(Exception):
    """A host that can't be worked on; the text names it, the cause and the next move."""


class NotAnsweringError(Exception):
    """Nobody answers, or not like an SSH server; that may mend itself."""


def hooks(settings: Settings, host: Host) -> pulumi.ResourceHookBinding:
    """For every step on a host: none runs before the host can be worked on."""
    reached = once(settings, host)

    async def log_in(_: pulumi.ResourceHookArgs) -> None:
        await reached()

    hook = pulumi.ResourceHook(f"{host.name}-ssh-access", log_in)
    return pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])


def once(settings: Settings, host: Host) -> Callable[[], Awaitable[None]]:
    """`wait`, whose outcome holds for all who ask: a run logs in once, not before each step."""
    attempt: asyncio.Task[None] | None = None

    async def reached() -> None:
        nonlocal attempt
        if attempt is None:
            attempt = asyncio.create_task(wait(settings, host))
        # One step that is cancelled doesn't cancel it for the others.
        await asyncio.shield(attempt)

    return reached


async def wait(settings: Settings, host: Host) -> None:
    """Return when the host lets us in and run commands as root.

    Raises:
        UnreachableError: It doesn't within `ssh.wait_seconds`, or never will.
    """
    dead = ssh_agent.dead()
    if dead:
        raise UnreachableError(
            f"{host.name}: no SSH agent answers at {dead}, and the provider asks it, whatever "
            "ssh.privateKeyFile says. Unset SSH_AUTH_SOCK, or start the agent (a new login has another one)"
        )
    address, port = settings.ssh_endpoint(host)
    began = said = time.monotonic()
    while True:
        try:
            connection = await connect(settings, host)
            break
        except NotAnsweringError as error:
            now = time.monotonic()
            if now - began >= settings.ssh.wait_seconds:
                raise UnreachableError(
                    f"{host.name}: no SSH server answers at {address}:{port} after {now - began:.0f} s: "
                    f"{error}. Start the host, correct its address or port, or open a firewall in between"
                ) from None
            if now - said >= SAY_EVERY_SECONDS:
                pulumi.log.info(f"{host.name}: waiting for its SSH server at {address}:{port} ({error})")
                said = now
            await asyncio.sleep(PAUSE_SECONDS)
    async with connection:
        await _check_root(connection, settings, host)


async def connect(settings: Settings, host: Host) -> asyncssh.SSHClientConnection:
    """One attempt to log in, with the host's key pinned; bounded in time.

    Raises:
        UnreachableError: The host's key or ours is refused.
        NotAnsweringError: Nobody answers, or not like an SSH server.
    """
    # Imported where it is needed: a run that changes nothing should not wait for it.
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
                f"{settings.ssh.private_key_file} can't be used as a login key: {error}. A key with a "
                "passphrase belongs into an agent (ssh-add), with ssh.privateKeyFile not set"
            ) from None
        options |= {"client_keys": [key], "agent_path": None}
    sock: socket.socket | None = None
    try:
        sock = await asyncio.to_thread(
            socket.create_connection, (address, port), settings.ssh.dial_timeout_seconds
        )
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        return await asyncssh.connect(sock=sock, **options)
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed):
        raise UnreachableError(
            f"{where} shows another host key than the one that is pinned ({pinned.get_fingerprint()}). If it "
            "was installed anew, put its new key into ssh.knownHostsFile or the host's ssh.hostKey; if not, "
            "somebody else answers in its place"
        ) from None
    except asyncssh.PermissionDenied:
        ours = settings.ssh.private_key_file or "the agent's keys"
        raise UnreachableError(
            f"{where} refuses the login with {ours}. Add its public half to ~/.ssh/authorized_keys there, "
            "or correct ssh.user or ssh.privateKeyFile"
        ) from None
    except TimeoutError:
        if sock is not None:
            raise NotAnsweringError("it accepts connections and says nothing; its sshd may hang") from None
        raise NotAnsweringError("no answer") from None
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
        said = str(done.stderr or done.stdout or "").strip().splitlines()
        raise UnreachableError(
            f"{host.name}: {user} may not run commands as root: {said[-1] if said else 'sudo failed'}. "
            f"Allow it without a password: '{user} ALL=(ALL) NOPASSWD: ALL' in /etc/sudoers.d/"
        )
