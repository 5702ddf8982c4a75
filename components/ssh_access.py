"""Checks SSH access to a host before the first step runs on it, and delivers the steps' scripts.

The provider retries after any failure, even a rejected key, and waits forever for a server that accepts a
connection and then stays silent. So a hook runs before the first step on a host. It waits for a host that is
booting, and fails at once, with the reason, if waiting can't help.

The same connection brings the scripts, if the host doesn't have this version of them. In a step's own text
they would be in the state, for every step of every host.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi

from components import ssh_agent
from model.delivery import delivery
from model.login import Login, fingerprint
from model.settings import Host, Settings
from model.steps import SCRIPTS, as_root

if TYPE_CHECKING:
    import asyncssh

PAUSE_SECONDS = 3.0
# `ufw limit` refuses an address that connects six times in 30 seconds, refused attempts included.
SLOW_AFTER_SECONDS = 30.0
SLOW_PAUSE_SECONDS = 8.0
LIMITED_PAUSE_SECONDS = 35.0
HANDSHAKE_SECONDS = 30.0  # an emulated host needs several seconds for a handshake
PROBE_SECONDS = 60.0
DELIVERY_SECONDS = 120.0
REPORT_EVERY_SECONDS = 20.0

_ANSWER = re.compile(r"kubeadm-ipvs probe 42 at (\d+), user 0, scripts (\w+)\n")

CLOCK_SECONDS = 60.0
"""How much the clocks of two hosts may differ."""

# How far each host's clock is ahead of this machine's, in seconds, as found in this run.
_clocks: dict[str, float] = {}


class UnreachableError(Exception):
    """The host can't be used; the message names the host, the cause and the next move."""


class NotAnsweringError(Exception):
    """No login is possible yet; that may change while the host boots.

    Attributes:
        endpoint: The server that doesn't answer, `10.0.0.11:22`: the host's or its jump host's.
        greeted: Whether an SSH server answered.
        limited: Whether the host turned this machine away. More attempts may prolong that.
    """

    def __init__(
        self, reason: str, endpoint: str = "", *, greeted: bool = False, limited: bool = False
    ) -> None:
        super().__init__(reason)
        self.endpoint = endpoint
        self.greeted = greeted
        self.limited = limited


@dataclass(frozen=True)
class _Server:
    """A host or its jump host."""

    role: str
    user: str
    address: str
    port: int
    host_key: str
    key_setting: str

    def __str__(self) -> str:
        return f"{self.role} ({self.user}@{self.address}:{self.port})"


@dataclass(frozen=True)
class _Keys:
    """The keys to log in with.

    Attributes:
        keys: The same keys that the provider uses, in the same order.
        source: Where they come from, for messages.
        agent: Whether they are an agent's.
        missing: What to do if there are none; empty otherwise.
    """

    keys: list[Any]
    source: str
    agent: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Answer:
    """A host's answer to the probe.

    Attributes:
        clock: How far its clock is ahead of this machine's, in seconds. The error is the probe's duration.
        scripts: The digest of the scripts that it has; `none` if they are missing or damaged.
    """

    clock: float
    scripts: str


def once(settings: Settings, host: Host) -> Callable[[Login, str], Awaitable[None]]:
    """`wait`, run once for each login and shared by all callers: a run doesn't log in before each step."""
    attempts: dict[Login, Future[None]] = {}

    async def check(login: Login, owner: str) -> None:
        if login not in attempts:
            attempts[login] = asyncio.run_coroutine_threadsafe(
                wait(settings, host, login, owner), _own_loop()
            )
        # Cancelling one step must not cancel the check for the others.
        await asyncio.shield(asyncio.wrap_future(attempts[login]))

    return check


@functools.cache
def _own_loop() -> asyncio.AbstractEventLoop:
    """An event loop for the checks, in a thread of its own.

    In the program's loop, all threads may be waiting for resources, and the engine for this check: with 30
    hosts and two cores, no thread is left to connect with.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ssh-access", daemon=True).start()
    return loop


async def wait(settings: Settings, host: Host, login: Login, owner: str) -> None:
    """Wait until the host accepts the login and runs commands as root; then deliver the scripts.

    Args:
        settings: The environment.
        host: The host.
        login: The login that steps use.
        owner: The stack's owner, as steps know it.

    Raises:
        UnreachableError: The host isn't usable within `ssh.waitSeconds`, or waiting can't help.
    """
    given = Login.of(settings, host)
    try:
        await _wait(settings, host, login, owner)
    except UnreachableError as error:
        if login.same_as(given):
            raise
        raise UnreachableError(f"{error}. {replacement_hint(login, given)}") from None


def replacement_hint(kept: Login, given: Login) -> str:
    """What to do if the state's login is no longer the one in the settings."""
    return (
        f"The state's login is {kept}; the settings' is {given}. To put the settings' login into the state, "
        f"run `.venv/bin/python -m tools credentials --stack {pulumi.get_stack()} --write`"
    )


async def _wait(settings: Settings, host: Host, login: Login, owner: str) -> None:
    dead_socket = ssh_agent.unreachable_socket()
    if dead_socket:
        raise UnreachableError(
            f"{host.name}: no SSH agent listens on {dead_socket}, and the provider uses the agent even if "
            "ssh.privateKeyFile is set. Unset SSH_AUTH_SOCK or start the agent"
        )
    began = reported = time.monotonic()
    greeted = False
    while True:
        try:
            connection = await connect(settings, host, login)
            break
        except NotAnsweringError as error:
            greeted = greeted or error.greeted
            # A server that answered before and doesn't now has probably blocked this machine.
            limited = error.limited or (greeted and not error.greeted)
            now = time.monotonic()
            left = began + settings.ssh.wait_seconds - now
            if left <= 0:
                raise UnreachableError(
                    _gave_up(host, error.endpoint, now - began, str(error), error.greeted, limited)
                ) from None
            if now - reported >= REPORT_EVERY_SECONDS or limited:
                why = f"{error}; a rate limit?" if limited else str(error)
                pulumi.log.info(f"{host.name}: waiting for the SSH server at {error.endpoint} ({why})")
                reported = now
            if limited:
                pause = LIMITED_PAUSE_SECONDS
            elif now - began < SLOW_AFTER_SECONDS:
                pause = PAUSE_SECONDS
            else:
                pause = SLOW_PAUSE_SECONDS
            await asyncio.sleep(min(pause, left))
    async with connection:
        answer = await check_commands(connection, host, login)
        _clocks[host.name] = answer.clock
        if answer.scripts != delivery().digest:
            await _deliver(connection, host, login, owner)


def check_clock(host: Host) -> None:
    """Compare a host's clock with those of the hosts that were checked earlier in this run.

    With different clocks, certificates and tokens of one host aren't valid yet on another, and a lease of the
    control plane may seem to have expired.

    Raises:
        UnreachableError: It differs from another host's by more than `CLOCK_SECONDS`.
    """
    if host.name not in _clocks:
        return
    clock = _clocks[host.name]
    name, other = max([*_clocks.items()], key=lambda item: abs(item[1] - clock))
    if abs(other - clock) <= CLOCK_SECONDS:
        return
    raise UnreachableError(
        f"{host.name}: its clock and that of {name} differ by {abs(other - clock):.0f} s ({host.name} is "
        f"{_ahead(clock)} this machine, {name} {_ahead(other)}). Set both with NTP (timedatectl set-ntp "
        "true), and run the same command again"
    )


def _ahead(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds >= 0 else 'behind'}"


def _gave_up(host: Host, endpoint: str, waited: float, reason: str, greeted: bool, limited: bool) -> str:
    after = f"after {waited:.0f} s: {reason}"
    if greeted:
        return (
            f"{host.name}: the SSH server at {endpoint} still accepts no login {after}. Its log "
            "(journalctl -u ssh -u sshd) has the cause"
        )
    if limited:
        return (
            f"{host.name}: the SSH server at {endpoint} turns this machine away {after}. It probably limits "
            "connections (ufw limit, fail2ban, MaxStartups or PerSourcePenalties in sshd_config): exempt "
            "this machine, or wait until the block ends"
        )
    return (
        f"{host.name}: no SSH server answers at {endpoint} {after}. Start the host, correct its address or "
        "port, or open the firewall. If it answers other machines, a rate limit (ufw limit, fail2ban) may "
        "block this one"
    )


async def connect(settings: Settings, host: Host, login: Login) -> asyncssh.SSHClientConnection:
    """Try once to log in, with pinned host keys, the keys that the provider would use, and a time limit.

    A connection to a jump host ends with the returned one.

    Raises:
        UnreachableError: The host's key or our key is rejected.
        NotAnsweringError: No login is possible yet.
    """
    address, port = settings.ssh_endpoint(host)
    server = _Server(host.name, login.user, address, port, settings.host_key(host), "the host's ssh.hostKey")
    jump = settings.jump_host(host)
    async with _keys_of(settings, login) as keys:
        if jump is None:
            return await _connect(settings, server, keys)
        jump_server = _Server(
            f"{host.name}: the jump host",
            login.jump_user(jump),
            jump.address,
            jump.port,
            jump.host_key,
            "ssh.proxyJumpHostKey",
        )
        tunnel = await _connect(settings, jump_server, keys)
        try:
            return await _connect(settings, server, keys, tunnel)
        except BaseException:
            tunnel.abort()
            raise


async def _connect(
    settings: Settings, server: _Server, keys: _Keys, tunnel: asyncssh.SSHClientConnection | None = None
) -> asyncssh.SSHClientConnection:
    """Log in to one server, directly or through the connection to a jump host."""
    # Imported here because it is slow to load and a run that changes nothing doesn't need it.
    import asyncssh

    endpoint = f"{server.address}:{server.port}{' (through the jump host)' if tunnel else ''}"
    pinned = asyncssh.import_public_key(server.host_key)
    banner: list[str] = []

    class Client(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            banner.extend(msg.strip().splitlines())

        def connection_lost(self, exc: Exception | None) -> None:
            if tunnel is not None:
                tunnel.abort()

    options: dict[str, Any] = {
        "client_factory": Client,
        "username": server.user,
        "known_hosts": ([pinned], [], []),
        "config": None,
        "agent_path": None,
        # asyncssh would use ~/.ssh/id_* for an empty list, which the provider doesn't.
        "client_keys": keys.keys or None,
        "preferred_auth": "publickey",
        "connect_timeout": HANDSHAKE_SECONDS,
        "login_timeout": HANDSHAKE_SECONDS,
    }
    sock: socket.socket | None = None
    greeted = False
    try:
        if tunnel is not None:
            return await asyncssh.connect(server.address, server.port, tunnel=tunnel, **options)
        sock = await asyncio.to_thread(
            socket.create_connection, (server.address, server.port), settings.ssh.dial_timeout_seconds
        )
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        await _check_greeting(sock)
        greeted = True
        return await asyncssh.connect(sock=sock, **options)
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed):
        raise UnreachableError(
            f"{server} presents a host key other than the pinned one ({pinned.get_fingerprint()}). If the "
            f"host was reinstalled, put its new key into ssh.knownHostsFile or {server.key_setting}; if it "
            "wasn't, another machine is answering in its place"
        ) from None
    except asyncssh.PermissionDenied:
        if keys.missing:
            raise UnreachableError(f"{server} rejects a login without a key: {keys.missing}") from None
        raise UnreachableError(f"{server} {_rejected(keys)}") from None
    except NotAnsweringError as error:
        raise NotAnsweringError(str(error), endpoint, limited=error.limited) from None
    except TimeoutError:
        if sock is None:
            raise NotAnsweringError("no response", endpoint) from None
        raise NotAnsweringError(
            "it accepts the connection but stays silent; its sshd may hang", endpoint, greeted=greeted
        ) from None
    except OSError as error:
        raise NotAnsweringError(error.strerror or str(error), endpoint, greeted=greeted) from None
    except asyncssh.ChannelOpenError as error:
        if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            raise UnreachableError(
                f"{server}: the jump host doesn't forward connections to it: {error.reason}. Allow that "
                "there (AllowTcpForwarding and PermitOpen in sshd_config)"
            ) from None
        raise NotAnsweringError(error.reason, endpoint) from None
    except asyncssh.Error as error:
        if "too many authentication failures" in error.reason.lower():
            if not keys.agent:
                raise UnreachableError(f"{server} {_rejected(keys)}") from None
            raise UnreachableError(
                f"{server} ended the login after too many failures (MaxAuthTries in sshd_config, 6 by "
                f"default), while trying {keys.source}. Set ssh.privateKeyFile to the key that may log in, "
                "or remove other keys from the agent (ssh-add -d)"
            ) from None
        reason = ": ".join([error.reason, *banner[-1:]])
        raise NotAnsweringError(reason, endpoint, greeted=greeted) from None
    finally:
        if sock is not None and not greeted:
            sock.close()


def _rejected(keys: _Keys) -> str:
    return (
        f"rejects the login with {keys.source}. Add the public key to ~/.ssh/authorized_keys there, or "
        "correct ssh.user or ssh.privateKeyFile"
    )


@contextlib.asynccontextmanager
async def _keys_of(settings: Settings, login: Login) -> AsyncIterator[_Keys]:
    """The keys that the provider would log in with. An agent's keys can be used until the block ends."""
    import asyncssh

    file = settings.ssh.private_key_file
    if login.private_key:
        source = file
        if file is None or Path(file).read_text(encoding="utf-8").split() != login.private_key.split():
            source = f"the key in the state ({fingerprint(login.private_key)})"
        try:
            key = asyncssh.import_private_key(login.private_key)
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise UnreachableError(
                f"{source} can't be used as a login key: {error}. Add a key with a passphrase to an agent "
                "(ssh-add) and leave ssh.privateKeyFile unset"
            ) from None
        yield _Keys([key], str(source))
        return
    default = ssh_agent.default_key()
    if default:
        fix = (
            f"{default} exists, but isn't used by default. Set ssh.privateKeyFile: {default}, or if it has "
            "a passphrase, add it to an agent (ssh-add)"
        )
    else:
        fix = "Set ssh.privateKeyFile, or add a key to an agent (ssh-add)"
    path = ssh_agent.socket_path()
    if not path:
        unset = "ssh.privateKeyFile and SSH_AUTH_SOCK (the SSH agent) aren't set"
        if file is not None:
            unset = "the state has none, and SSH_AUTH_SOCK (the SSH agent) isn't set"
        yield _Keys([], "", agent=True, missing=f"{unset}. {fix}")
        return
    try:
        agent = await asyncssh.connect_agent(path)
    except OSError as error:
        raise UnreachableError(
            f"no SSH agent listens on {path} ({error.strerror or error}). Start the agent, or set "
            "ssh.privateKeyFile"
        ) from None
    async with agent:
        try:
            keys = list(await agent.get_keys())
        except ValueError as error:
            raise UnreachableError(f"the SSH agent on {path} doesn't list its keys: {error}") from None
        missing = "" if keys else f"the SSH agent on {path} has no keys, or is locked. {fix}"
        yield _Keys(keys, f"the agent's keys ({len(keys)})", agent=True, missing=missing)


async def _check_greeting(sock: socket.socket) -> None:
    """Wait for the server's first bytes, and leave them to the SSH client.

    A server that turns a client away (MaxStartups, PerSourcePenalties) prints one line of text instead of its
    version, which asyncssh reports only as a lost connection.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await readable.wait()
    finally:
        loop.remove_reader(sock)
    start = sock.recv(255, socket.MSG_PEEK)
    if not start:
        raise NotAnsweringError("it closes the connection at once")
    if b"SSH-" not in start:
        line = start.decode(errors="replace").strip().partition("\n")[0]
        raise NotAnsweringError(f"it closes the connection with {line!r}", limited=True)


async def check_commands(connection: asyncssh.SSHClientConnection, host: Host, login: Login) -> Answer:
    """Run `scripts/probe.sh` as a step would, and require that it returns exactly what it prints.

    Raises:
        UnreachableError: The host runs no commands as root, or adds text of its own.
    """
    import asyncssh

    user = login.user
    try:
        # Not `async with`, which would wait forever for a host that hangs.
        process = await connection.create_process(probe_command(user), errors="replace")
        with contextlib.suppress(OSError):  # the command ended without reading, which its output explains
            process.stdin.write((SCRIPTS / "probe.sh").read_text(encoding="utf-8"))
            process.stdin.write_eof()
        done = await process.wait(timeout=PROBE_SECONDS)
    except asyncssh.TimeoutError as error:
        printed = _printed(str(error.stdout or ""), str(error.stderr or ""))
        raise UnreachableError(
            f"{host.name}: {user} can log in, but a command doesn't end within {PROBE_SECONDS:.0f} s"
            f"{printed and f'; it prints {printed!r}'}. Try it there: ssh {user}@... true"
        ) from None
    except (OSError, asyncssh.Error) as error:
        raise UnreachableError(
            f"{host.name}: {user} can log in, but can't run a command: {error}. Try it: ssh {user}@... true"
        ) from None
    answer = _ANSWER.fullmatch(str(done.stdout))
    if done.exit_status == 0 and answer is not None:
        return Answer(int(answer[1]) - time.time(), answer[2])
    raise UnreachableError(f"{host.name}: {_no_answer(user, str(done.stdout), str(done.stderr))}")


async def _deliver(connection: asyncssh.SSHClientConnection, host: Host, login: Login, owner: str) -> None:
    """Deliver the scripts (`scripts/deliver.sh`).

    Raises:
        UnreachableError: The host doesn't accept them.
    """
    import asyncssh

    command = as_root(f"timeout --kill-after=5 {DELIVERY_SECONDS:.0f} bash -s -- deliver", login.user)
    try:
        done = await connection.run(
            command, input=delivery().text(owner), timeout=DELIVERY_SECONDS + PROBE_SECONDS, errors="replace"
        )
    except asyncssh.TimeoutError:
        reason = f"no answer within {DELIVERY_SECONDS:.0f} s"
    except (OSError, asyncssh.Error) as error:
        reason = str(error)
    else:
        if done.exit_status == 0:
            return
        reason = _printed(str(done.stdout), str(done.stderr)) or f"it ends with status {done.exit_status}"
    raise UnreachableError(
        f"{host.name}: the host doesn't accept the steps' scripts: {reason}. Check its disk (df -h /run "
        "/var/lib, df -i /run /var/lib), and that tar, gzip and base64 are installed; nothing was changed"
    )


def probe_command(user: str) -> str:
    """The command that runs the probe on standard input, in the form of a step's command."""
    return as_root(f"timeout --kill-after=5 {PROBE_SECONDS:.0f} bash -s -- probe", user)


def _no_answer(user: str, output: str, errors: str) -> str:
    """The cause and the next move for a probe that didn't return its answer."""
    printed = _printed(output, errors)
    other = re.search(r"log ?in as (?:the )?user [\"'\u201c]?([\w.@\\-]*\w)", output + errors, re.IGNORECASE)
    if other is not None:
        return (
            f"{user} can log in, but only gets the message {printed!r}. Set ssh.user, or the host's own "
            f"ssh.user: {other[1]}"
        )
    if _ANSWER.search(output):
        extra = _printed(_ANSWER.sub("", output), "")
        return (
            f"the login shell of {user} prints text of its own ({extra!r}), which would end up in the "
            "results of steps. Let ~/.bashrc print only in interactive shells (after "
            "`[[ $- == *i* ]] || return`), and let /etc/ssh/sshrc and ~/.ssh/rc print nothing"
        )
    if user != "root" and re.search(r"^sudo:|\bsudoers\b|sudo: (command )?not found", errors, re.MULTILINE):
        escaped = re.sub(r"([\\!=:,()])", r"\\\1", user)
        return (
            f"{user} can't run commands as root: {errors.strip().splitlines()[-1]}. Allow it without a "
            f"password: '{escaped} ALL=(ALL) NOPASSWD: ALL' in /etc/sudoers.d/"
        )
    wrong_user = re.search(r"^kubeadm-ipvs probe 42 at \d+, user (\d+), ", output, re.MULTILINE)
    if wrong_user is not None:
        return (
            f"commands of {user} run with the user ID {wrong_user[1]}, not as root. Set ssh.user to root, or "
            "to a user who can become root with sudo"
        )
    if re.search(r"(timeout|bash)\W.*not found|unknown command", errors, re.IGNORECASE):
        return f"{user} can't run a script: {printed}. Install bash and coreutils"
    return (
        f"{user} can log in, but the host doesn't run commands: it prints "
        f"{repr(printed) if printed else 'nothing'}. Check the user's login shell, exec in its "
        "~/.bashrc, ForceCommand in sshd_config and command= in ~/.ssh/authorized_keys"
    )


def _printed(output: str, errors: str) -> str:
    """The end of what a host printed, on one short line."""
    text = " ".join((output.strip() or errors).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
