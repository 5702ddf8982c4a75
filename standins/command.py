"""Stand-in for Pulumi's `command` provider: the resource `command:remote:Command`, over SSH.

Behaviour matches pulumi-command 1.2.1 (`provider/pkg/provider/remote`) as far as this program relies on it;
`tests/engine/test_conformance_command.py` runs the same scenarios against both. Known differences: a hanging
SSH handshake times out (Pulumi's plugin waits forever), and the connection closes when its command ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import asyncssh

from standins import values
from standins.server import WARNING, Changes, Failure, Plugin, Urn, run
from standins.values import UNKNOWN, Secret, Unknown, reveal

TYPE = "command:remote:Command"

_DEFAULTS: dict[str, Any] = {"user": "root", "port": 22.0, "dialErrorLimit": 10.0, "perDialTimeout": 15.0}
_SECRET_FIELDS = ("password", "privateKey", "privateKeyPassword")
_HANDSHAKE_SECONDS = 120.0
_RETRY_FIRST, _RETRY_FACTOR, _RETRY_LONGEST = 0.1, 1.5, 5.0  # seconds, factor, seconds: the SDK's `retry`
_SIGNALS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "ABRT": 6,
    "FPE": 8,
    "KILL": 9,
    "SEGV": 11,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
}


class _DialFailed(Exception):
    """One attempt to connect failed; a retry may succeed."""


@dataclass(frozen=True)
class _Hop:
    """One SSH hop: the target, or the proxy in front of it."""

    host: str
    port: int
    user: str
    password: str | None
    private_key: str | None
    private_key_password: str | None
    agent_socket: str | None
    host_key: str | None
    error_limit: int  # failed dials to retry; -1: no limit
    dial_seconds: float  # 0: no limit

    @staticmethod
    def of(connection: dict[str, Any]) -> _Hop:
        given = {**_DEFAULTS, **{key: value for key, value in connection.items() if value is not None}}
        return _Hop(
            host=given["host"],
            port=int(given["port"]),
            user=given["user"],
            password=given.get("password"),
            private_key=given.get("privateKey"),
            private_key_password=given.get("privateKeyPassword"),
            agent_socket=given.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK") or None,
            host_key=given.get("hostKey"),
            error_limit=int(given["dialErrorLimit"]),
            dial_seconds=float(given["perDialTimeout"]),
        )

    def options(self) -> dict[str, Any]:
        """Build asyncssh's arguments for this hop.

        Raises:
            Failure: A key can't be read, or the agent doesn't respond; retrying won't help.
        """
        options: dict[str, Any] = {
            "username": self.user,
            "config": None,  # ~/.ssh/config isn't part of a stack
            "known_hosts": None,
            "agent_path": None,
            "client_keys": None,
            "connect_timeout": _HANDSHAKE_SECONDS,
            "login_timeout": _HANDSHAKE_SECONDS,
            "password": self.password,
        }
        if self.host_key is not None:
            try:
                key = asyncssh.import_public_key(self.host_key)
            except (asyncssh.KeyImportError, ValueError) as error:
                raise Failure(f"failed to parse host key: {error}") from error
            options["known_hosts"] = ([key], [], [])
        if self.private_key is not None:
            try:
                options["client_keys"] = [
                    asyncssh.import_private_key(self.private_key, self.private_key_password)
                ]
            except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
                raise Failure(f"ssh: the private key can't be read: {error}") from error
        if self.agent_socket is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.agent_socket)
                except OSError as error:
                    raise Failure(
                        f"dial unix {self.agent_socket}: connect: {error.strerror or error}"
                    ) from error
            options["agent_path"] = self.agent_socket
            options["client_keys"] = options["client_keys"] or []
        return options


def _reason(error: BaseException) -> str:
    """Explain a failed handshake, in the words of Go's SSH client where they are known."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return f"ssh: handshake failed: ssh: host key mismatch ({error.reason})"
    if isinstance(error, asyncssh.PermissionDenied):
        return (
            "ssh: handshake failed: ssh: unable to authenticate, no supported methods remain "
            f"({error.reason})"
        )
    if isinstance(error, asyncssh.Error):
        return f"ssh: handshake failed: {error.reason}"
    if isinstance(error, TimeoutError):
        return "ssh: handshake failed: i/o timeout"
    return f"ssh: handshake failed: {error}"


def quote(text: str) -> str:
    """Quote text like Go's %q, which error messages use for the command."""
    short = {
        "\n": "\\n",
        "\t": "\\t",
        "\r": "\\r",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\v": "\\v",
        '"': '\\"',
        "\\": "\\\\",
    }

    def one(letter: str) -> str:
        if letter in short:
            return short[letter]
        if letter == " " or letter.isprintable():
            return letter
        code = ord(letter)
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(one(letter) for letter in text) + '"'


@dataclass
class _Output:
    """A command's output: each stream, and both interleaved."""

    stdout: bytearray
    stderr: bytearray
    both: bytearray


class CommandPlugin(Plugin):
    """The `command` provider."""

    NAME: ClassVar[str] = "command"

    # -- resources

    async def check(
        self, urn: Urn, old: dict[str, Any], new: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Fill in the connection's defaults and mark it secret."""
        if urn.type != TYPE:
            raise Failure(f"the stand-in for the plugin 'command' supports only {TYPE}, not {urn.type}")
        failures: list[tuple[str, str]] = []
        inputs = {key: value for key, value in new.items() if value is not None}
        connection = inputs.get("connection")
        plain = connection.value if isinstance(connection, Secret) else connection
        if isinstance(plain, dict):
            if plain.get("host") is None:
                failures.append(("connection.host", "missing required property 'host'"))
            plain = self._connection(plain)
            proxy = plain.get("proxy")
            inner = proxy.value if isinstance(proxy, Secret) else proxy
            if isinstance(inner, dict):
                if inner.get("host") is None:
                    failures.append(("connection.proxy.host", "missing required property 'host'"))
                inner = self._connection(inner)
                plain["proxy"] = Secret(inner) if isinstance(proxy, Secret) else inner
            inputs["connection"] = Secret(plain)
        elif isinstance(plain, Unknown):
            inputs["connection"] = Secret(UNKNOWN)
        else:
            failures.append(("connection", "missing required property 'connection'"))
        return inputs, failures

    @staticmethod
    def _connection(given: dict[str, Any]) -> dict[str, Any]:
        full = {**_DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
        for field in _SECRET_FIELDS:
            if field in full and not isinstance(full[field], Secret):
                full[field] = Secret(full[field])
        return full

    async def diff(
        self, urn: Urn, object_id: str, state: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
    ) -> Changes:
        """Report every changed input. Adding or removing `triggers` replaces the resource.

        After a change within the list, the engine replaces it on its own, because the SDK sets
        `replace_on_changes=["triggers[*]"]`.
        """
        paths = values.difference(old, new)
        return Changes(
            {where: f"{kind}-replace" if where == "triggers" else kind for where, kind in paths.items()}
        )

    async def create(
        self, urn: Urn, new: dict[str, Any], timeout: float, preview: bool
    ) -> tuple[str, dict[str, Any]]:
        """Run `create`, if set."""
        object_id = f"{urn.name}{secrets.token_hex(4)}"
        if preview:
            return object_id, {**new, "stdout": UNKNOWN, "stderr": UNKNOWN}
        state = {**new, "stdout": "", "stderr": ""}
        command = reveal(new.get("create"))
        if command is not None:
            state.update(await self._run(urn, command, state, timeout))
        return object_id, state

    async def update(
        self,
        urn: Urn,
        object_id: str,
        state: dict[str, Any],
        new: dict[str, Any],
        timeout: float,
        preview: bool,
    ) -> dict[str, Any]:
        """Run `update`, or `create` if there is no `update`."""
        after = {**new, "stdout": state.get("stdout", ""), "stderr": state.get("stderr", "")}
        if preview:
            # A newly added input leaves the outputs known, as in pulumi-go-provider.
            if any(
                (key in state and state[key] != value) or values.has_unknown(value)
                for key, value in new.items()
            ):
                after.update(stdout=UNKNOWN, stderr=UNKNOWN)
            return after
        command = reveal(new.get("update"))
        if command is None:
            command = reveal(new.get("create"))
        if command is not None:
            after.update(await self._run(urn, command, after, timeout))
        return after

    async def delete(self, urn: Urn, object_id: str, state: dict[str, Any], timeout: float) -> None:
        """Run `delete` with the stored connection."""
        command = reveal(state.get("delete"))
        if command is not None:
            await self._run(urn, command, state, timeout)

    async def read(
        self, urn: Urn, object_id: str, state: dict[str, Any], inputs: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the state unchanged: there is nothing to read for a command."""
        return object_id, state, inputs

    # -- running

    async def _run(self, urn: Urn, command: str, state: dict[str, Any], timeout: float) -> dict[str, Any]:
        state = reveal(state)
        connection = await self._dial(urn, state["connection"], timeout)
        try:
            environment = {key: str(value) for key, value in (state.get("environment") or {}).items()}
            for key, value in environment.items():
                if not await self._accepts(connection, key, value):
                    raise Failure(f'could not set environment variable "{key}": ssh: setenv failed')
            if state.get("addPreviousOutputInEnv") in (None, True):
                before = {
                    "PULUMI_COMMAND_STDOUT": state.get("stdout") or "",
                    "PULUMI_COMMAND_STDERR": state.get("stderr") or "",
                }
                for key, value in before.items():
                    if not value:
                        continue
                    if await self._accepts(connection, key, value):
                        environment[key] = value
                    else:
                        await self.log(
                            f"Unable to set '{key}': add it to AcceptEnv in the SSH server's configuration.",
                            urn,
                            WARNING,
                        )
            return await self._execute(urn, connection, command, state, environment)
        finally:
            connection.close()

    async def _accepts(self, connection: asyncssh.SSHClientConnection, key: str, value: str) -> bool:
        # asyncssh sends variables without waiting for the server's reply. A command in a separate session
        # shows whether the server accepted one.
        shown = await connection.run(f'printf %s "${key}"', env={key: value}, stdin=asyncssh.DEVNULL)
        return shown.stdout == value

    async def _execute(
        self,
        urn: Urn,
        connection: asyncssh.SSHClientConnection,
        command: str,
        state: dict[str, Any],
        environment: dict[str, str],
    ) -> dict[str, Any]:
        logging = state.get("logging") or "stdoutAndStderr"
        output = _Output(bytearray(), bytearray(), bytearray())
        try:
            process = await connection.create_process(command, env=environment, encoding=None)
        except asyncssh.ChannelOpenError as error:
            raise Failure(f"ssh: rejected: {error.reason}") from error

        async def feed() -> bool:
            """Send stdin, and return whether the server accepted all of it."""
            try:
                if state.get("stdin"):
                    process.stdin.write(state["stdin"].encode())
                    await process.stdin.drain()
                process.stdin.write_eof()
            except (OSError, asyncssh.Error):
                return False
            return True

        async def collect(reader: Any, into: bytearray, report: bool) -> None:
            rest = b""
            while chunk := await reader.read(65536):
                into += chunk
                output.both.extend(chunk)
                if report:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        await self.log(line.decode(errors="replace"), urn, status=True)
            if rest:
                await self.log(rest.decode(errors="replace"), urn, status=True)

        try:
            fed, *_ = await asyncio.gather(
                feed(),
                collect(process.stdout, output.stdout, logging in ("stdout", "stdoutAndStderr")),
                collect(process.stderr, output.stderr, logging in ("stderr", "stdoutAndStderr")),
            )
            await process.wait_closed()
        except (OSError, asyncssh.Error) as error:
            raise Failure(
                f"{error}: running {quote(command)}:\n{output.both.decode(errors='replace')}"
            ) from error
        # A command that exits with 0 before reading all of its stdin counts as failed. Pulumi's plugin does
        # the same if it is waiting for SSH window space when the command ends.
        outcome = _outcome(process.exit_status, process.exit_signal) or ("" if fed else "EOF")
        if outcome:
            raise Failure(f"{outcome}: running {quote(command)}:\n{output.both.decode(errors='replace')}")
        return {
            "stdout": output.stdout.decode(errors="replace").removesuffix("\n"),
            "stderr": output.stderr.decode(errors="replace").removesuffix("\n"),
        }

    # -- connecting

    async def _dial(
        self, urn: Urn, connection: dict[str, Any], timeout: float
    ) -> asyncssh.SSHClientConnection:
        deadline = time.monotonic() + timeout if timeout > 0 else None
        target = _Hop.of(connection)
        options = target.options()
        if not connection.get("proxy"):
            return await self._retry(urn, "Dial", target, deadline, lambda: _connect(target, options))
        proxy = _Hop.of(connection["proxy"])
        try:
            proxy_options = proxy.options()
            tunnel = await self._retry(
                urn, "Dial proxy", proxy, deadline, lambda: _connect(proxy, proxy_options)
            )
            try:
                return await self._retry(
                    urn, "Dial from proxy", target, deadline, lambda: _connect(target, options, tunnel)
                )
            except BaseException:
                tunnel.close()
                raise
        except Failure as failure:
            raise Failure(f"proxy: {failure}") from failure

    async def _retry(
        self, urn: Urn, what: str, hop: _Hop, deadline: float | None, dial: Any
    ) -> asyncssh.SSHClientConnection:
        delay = _RETRY_FIRST
        failed = 0
        while True:
            try:
                connected: asyncssh.SSHClientConnection = await dial()
                return connected
            except _DialFailed as error:
                failed += 1
                if hop.error_limit > -1 and failed > hop.error_limit:
                    raise Failure(f"after {failed - 1} failed attempts: {error}") from error
            limit = "inf" if hop.error_limit == -1 else str(hop.error_limit)
            await self.log(f"{what} {failed}/{limit} failed: retrying", urn, status=True)
            pause = delay if deadline is None else min(delay, deadline - time.monotonic())
            try:
                await asyncio.wait_for(self.cancelled.wait(), max(pause, 0.0))
                raise Failure("context canceled")
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise Failure("context deadline exceeded") from None
            delay = min(delay * _RETRY_FACTOR, _RETRY_LONGEST)


async def _connect(
    hop: _Hop, options: dict[str, Any], tunnel: asyncssh.SSHClientConnection | None = None
) -> asyncssh.SSHClientConnection:
    """Try once to connect.

    Raises:
        _DialFailed: The attempt failed.
    """
    try:
        if tunnel is not None:
            return await asyncssh.connect(hop.host, hop.port, tunnel=tunnel, **options)
        connected = await _open_socket(hop)
        try:
            return await asyncssh.connect(sock=connected, **options)
        except BaseException:
            connected.close()
            raise
    except (OSError, asyncssh.Error) as error:
        raise _DialFailed(_reason(error)) from error


async def _open_socket(hop: _Hop) -> socket.socket:
    loop = asyncio.get_running_loop()
    where = f"dial tcp {hop.host}:{hop.port}"
    try:
        addresses = await loop.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _DialFailed(f"{where}: lookup {hop.host}: {error.strerror or error}") from error
    failure = _DialFailed(f"{where}: no address")
    for family, kind, protocol, _, address in addresses:
        candidate = socket.socket(family, kind, protocol)
        candidate.settimeout(0)
        try:
            await asyncio.wait_for(loop.sock_connect(candidate, address), hop.dial_seconds or None)
        except TimeoutError:
            failure = _DialFailed(f"{where}: i/o timeout")
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            failure = _DialFailed(f"{where}: connect: {cause.lower()}")
        else:
            return candidate
        candidate.close()
    raise failure


def _outcome(status: int | None, ended_by: tuple[str, bool, str, str] | None) -> str:
    """Describe a command's failure in the words of Go's SSH client; empty if it succeeded."""
    if ended_by is not None:
        name, _, message, _ = ended_by
        described = f"Process exited with status {128 + _SIGNALS.get(name, 0)} from signal {name}"
        return f"{described}. Reason was: {message}" if message else described
    if status is None:
        return "wait: remote command exited without exit status or exit signal"
    return f"Process exited with status {status}" if status else ""


if __name__ == "__main__":
    run(CommandPlugin)
