"""A temporary SSH server on 127.0.0.1 that acts as a host in the engine tests.

It has a host key that can be pinned, accepts one login key, and records all commands. It runs them with
`bash -c` in its folder, which is also HOME and stands in for the root file system of the steps' scripts. Or
it runs nothing and returns output that the test supplies.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh


@dataclass
class SshServer:
    """A running server.

    Attributes:
        host_key: The public host key, such as `ssh-ed25519 AAAA...`.
        private_key: The private key that may log in.
        authorized: The public keys that may log in; that of `private_key` at first.
        commands: The commands so far, in order, without the probes and deliveries of `ssh_access`.
        probes: The probes so far, in order.
        deliveries: The commands so far that deliver the steps' scripts, in order.
        scripts: The digest of the delivered scripts; `none` before the first delivery. Only for probes that
            aren't run.
        logins: The user names of the logins so far, in order.
        shell_ended: Set when a login shell that ran a probe has ended.
        shell: The login shell, which runs a probe with `-c`. If empty, probes succeed without being run.
        max_tries: How many keys a client may try.
        forwards: Whether the server can be a jump host.
        refusing: How many of the next connections are closed at once, after the first probe.
        down: Whether it closes every new connection, like a host that is off.
        clock: How far its clock is ahead of this machine's, in seconds. Only for probes that aren't run.
        latency: How long a command takes before its answer, in seconds. Only for commands that aren't run.
    """

    port: int
    folder: Path
    host_key: str
    private_key: str
    authorized: set[str] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    deliveries: list[str] = field(default_factory=list)
    scripts: str = "none"
    logins: list[str] = field(default_factory=list)
    shell_ended: threading.Event = field(default_factory=threading.Event)
    shell: str = ""
    max_tries: int = 1000
    forwards: bool = True
    refusing: int = 0
    down: bool = False
    clock: float = 0
    latency: float = 0

    def lines(self, name: str = "log") -> list[str]:
        """The lines of a file in the server's folder; empty if there is no such file."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


Answer = Callable[[str], str]
"""Returns a command's output. The command's standard input is discarded. Its exit status is 0, or 1 if the
function raises `CommandFailed`."""


class CommandFailed(Exception):
    """Makes a command exit with status 1."""


class _Server(asyncssh.SSHServer):
    def __init__(self, seen: SshServer) -> None:
        self._seen = seen
        self._user = ""
        self._tries = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        if self._seen.probes and self._seen.refusing:
            self._seen.refusing -= 1
            conn.abort()
        if self._seen.down:
            conn.abort()

    def begin_auth(self, username: str) -> bool:
        self._user = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if public(key) in self._seen.authorized:
            return True
        self._tries += 1
        if self._tries >= self._seen.max_tries:  # as OpenSSH does
            reason = "Too many authentication failures"
            self._connection.disconnect(asyncssh.DISC_PROTOCOL_ERROR, reason)
        return False

    def auth_completed(self) -> None:
        self._seen.logins.append(self._user)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        if not self._seen.forwards:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
        return True


_DIGEST = re.compile(r"^DIGEST=(\w+)$", re.MULTILINE)


async def _serve_command(process: Any, seen: SshServer, answer: Answer | None) -> None:
    command = process.command or ""
    kind = command.rpartition("bash -s -- ")[2]
    probe, delivery = kind == "probe", kind == "deliver"
    record = seen.probes if probe else seen.deliveries if delivery else seen.commands
    record.append(command)
    if probe and not seen.shell:
        await asyncio.sleep(seen.latency)
        clock = f"{time.time() + seen.clock:.0f}"
        process.stdout.write(f"kubeadm-ipvs probe 42 at {clock}, user 0, scripts {seen.scripts}\n".encode())
        process.exit(0)
        return
    received = bytearray()
    if answer is not None:
        while chunk := await process.stdin.read(65536):
            received += chunk
        await asyncio.sleep(seen.latency)
        try:
            if not delivery:
                # In a thread, because an answer may wait for another server's.
                process.stdout.write((await asyncio.to_thread(answer, command)).encode())
            else:
                seen.scripts = _delivered(bytes(received))
        except CommandFailed:
            process.exit(1)
        process.exit(0)
        return
    child = await asyncio.create_subprocess_exec(
        seen.shell if probe else "bash",
        "-c",
        command,
        cwd=seen.folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(seen.folder),
            "KUBEADM_IPVS_ROOT": str(seen.folder),
            **dict(process.env),
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdin and child.stdout and child.stderr

    async def feed(writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await process.stdin.read(65536):
                if delivery:
                    received.extend(chunk)
                writer.write(chunk)
                await writer.drain()
        except (OSError, asyncssh.Error):
            return  # the command exited without reading all of its input
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: Any) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()

    feeding = asyncio.create_task(feed(child.stdin))
    await asyncio.gather(forward(child.stdout, process.stdout), forward(child.stderr, process.stderr))
    status = await child.wait()
    feeding.cancel()
    if probe:
        seen.shell_ended.set()
    if delivery and status == 0:
        seen.scripts = _delivered(bytes(received))
    if status < 0:
        process.exit_with_signal("KILL" if status == -9 else "TERM")
    else:
        process.exit(status)


def _delivered(text: bytes) -> str:
    """The digest of the scripts that a text delivers."""
    [digest] = _DIGEST.findall(text.decode())
    return str(digest)


def public(key: asyncssh.SSHKey) -> str:
    """A key's public part as one line."""
    return key.export_public_key().decode().strip()


def private(key: asyncssh.SSHKey) -> str:
    """A key's private part in the format of a key file."""
    return key.export_private_key().decode()


def turn_one_away(port: int) -> None:
    """Accept one connection within a minute and close it at once, like a host that is still booting."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(60)
        server.accept()[0].close()


@contextmanager
def ssh_agent(*keys: str) -> Iterator[str]:
    """Run an SSH agent that holds some private keys.

    Yields:
        The path of its socket.
    """
    # A socket's path is limited in length, and pytest's folders may be too deep.
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        path = f"{folder}/agent"
        argv = ["ssh-agent", "-D", "-a", path]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
            try:
                # The agent prints its socket's path once it listens.
                assert agent.stdout is not None and path in agent.stdout.readline()
                variables = {**os.environ, "SSH_AUTH_SOCK": path}
                for key in keys:
                    subprocess.run(["ssh-add", "-q", "-"], input=key, text=True, check=True, env=variables)
                yield path
            finally:
                agent.terminate()


@contextmanager
def ssh_server(
    folder: Path,
    port: int = 0,
    host_key: asyncssh.SSHKey | None = None,
    login: asyncssh.SSHKey | None = None,
    answer: Answer | None = None,
) -> Iterator[SshServer]:
    """Run a server until the block ends.

    Args:
        folder: Where commands run. Created if necessary.
        port: 0 for any free port.
        host_key: The server's key. A new one by default.
        login: The user's key. A new one by default.
        answer: Returns the commands' output. By default commands are run.
    """
    with ssh_servers({folder: answer}, login, port, host_key) as servers:
        yield servers[0]


@contextmanager
def ssh_servers(
    answers: Mapping[Path, Answer | None],
    login: asyncssh.SSHKey | None = None,
    port: int = 0,
    host_key: asyncssh.SSHKey | None = None,
) -> Iterator[list[SshServer]]:
    """Run several servers in one thread until the block ends; see `ssh_server`.

    Args:
        answers: What returns each server's output, by the server's folder.
        login: The key of the user of all servers. A new one by default.
        port: 0 for any free ports.
        host_key: The key of all servers. A new one for each by default.

    Yields:
        The servers, in the order of `answers`.
    """
    login_key = login or asyncssh.generate_private_key("ssh-ed25519")
    started: Future[tuple[list[SshServer], asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        acceptors: list[asyncssh.SSHAcceptor] = []
        servers: list[SshServer] = []
        for folder, answer in answers.items():
            server_key = host_key or asyncssh.generate_private_key("ssh-ed25519")
            seen, acceptor = await _listen(folder, port, server_key, login_key, answer)
            servers.append(seen)
            acceptors.append(acceptor)
        started.set_result((servers, asyncio.get_running_loop(), stop))
        await stop.wait()
        for acceptor in acceptors:
            acceptor.close()
            await acceptor.wait_closed()

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    servers, loop, stop = started.result(timeout=30)
    try:
        yield servers
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)


async def _listen(
    folder: Path,
    port: int,
    server_key: asyncssh.SSHKey,
    login_key: asyncssh.SSHKey,
    answer: Answer | None,
) -> tuple[SshServer, asyncssh.SSHAcceptor]:
    """Start one server in this event loop."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = SshServer(
        port=port,
        folder=folder,
        host_key=public(server_key),
        private_key=private(login_key),
        authorized={public(login_key)},
    )
    acceptor = await asyncssh.create_server(
        lambda: _Server(seen),
        "127.0.0.1",
        port,
        server_host_keys=[server_key],
        process_factory=lambda process: _serve_command(process, seen, answer),
        encoding=None,
    )
    seen.port = acceptor.get_port()
    return seen, acceptor
