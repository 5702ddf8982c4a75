"""A throwaway SSH server on 127.0.0.1: runs what it is asked to, in a folder of its own.

It stands for a host in the engine tests: real SSH, a host key that can be pinned, one login
key, and a record of what was run. Commands run by `bash -c` with the folder as working
directory and HOME; or nothing runs, and what each prints is said by the test.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh


@dataclass
class SshServer:
    """A running server, as a test sees it."""

    port: int
    folder: Path
    host_key: str  # public, as `ssh-ed25519 AAAA...`
    private_key: str  # of the user that may log in
    commands: list[str] = field(default_factory=list)  # run so far, in order
    logins: list[str] = field(default_factory=list)  # user names, one a connection

    def lines(self, name: str = "log") -> list[str]:
        """The lines of a file in the server's folder; none if there is no such file."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


Answer = Callable[[str], str]
"""What a command prints: by its text, what it is fed is read and left. It ends with status 0, or where
this raises `CommandFailed` with 1."""


class CommandFailed(Exception):
    """The command is to end with status 1."""


class _Server(asyncssh.SSHServer):
    def __init__(self, seen: SshServer) -> None:
        self._seen = seen

    def begin_auth(self, username: str) -> bool:
        return True

    def auth_completed(self) -> None:
        self._seen.logins.append("root")

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True  # a proxy's work: direct-tcpip


async def _serve_command(process: Any, seen: SshServer, answer: Answer | None) -> None:
    command = process.command or ""
    seen.commands.append(command)
    if answer is not None:
        while await process.stdin.read(65536):
            pass
        try:
            process.stdout.write(answer(command).encode())
        except CommandFailed:
            process.exit(1)
        process.exit(0)
        return
    child = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        cwd=seen.folder,
        env={"PATH": os.environ["PATH"], "HOME": str(seen.folder), **dict(process.env)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdin and child.stdout and child.stderr

    async def feed(writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await process.stdin.read(65536):
                writer.write(chunk)
                await writer.drain()
        except (OSError, asyncssh.Error):
            return  # the command ended without reading all of it
        finally:
            writer.close()

    async def show(reader: asyncio.StreamReader, writer: Any) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()

    feeding = asyncio.create_task(feed(child.stdin))
    await asyncio.gather(show(child.stdout, process.stdout), show(child.stderr, process.stderr))
    status = await child.wait()
    feeding.cancel()
    if status < 0:
        process.exit_with_signal("KILL" if status == -9 else "TERM")
    else:
        process.exit(status)


def public(key: asyncssh.SSHKey) -> str:
    """A key's public part, in one line."""
    return key.export_public_key().decode().strip()


def private(key: asyncssh.SSHKey) -> str:
    """A key's private part, as a file holds it."""
    return key.export_private_key().decode()


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def turn_one_away(port: int) -> None:
    """Accept one connection and end it without a word, as a host may that still boots. Within a minute."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(60)
        server.accept()[0].close()


@contextmanager
def ssh_agent(key: str) -> Iterator[str]:
    """An agent that holds one private key; where its socket is."""
    # A socket's path is short: pytest's own folders may be too deep.
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        place = f"{folder}/agent"
        argv = ["ssh-agent", "-D", "-a", place]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
            try:
                # It says where it listens once it does.
                assert agent.stdout is not None and place in agent.stdout.readline()
                variables = {**os.environ, "SSH_AUTH_SOCK": place}
                subprocess.run(["ssh-add", "-q", "-"], input=key, text=True, check=True, env=variables)
                yield place
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
    """Serve until the block ends.

    :param folder: where commands run; made if it isn't there.
    :param port: 0 for a free one.
    :param host_key: the server's key; a new one if none is given.
    :param login: the user's key; a new one if none is given.
    :param answer: what commands print, where none is to run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server_key = host_key or asyncssh.generate_private_key("ssh-ed25519")
    login_key = login or asyncssh.generate_private_key("ssh-ed25519")
    started: Future[tuple[SshServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        seen = SshServer(
            port=0,
            folder=folder,
            host_key=public(server_key),
            private_key=private(login_key),
        )
        authorized = asyncssh.import_authorized_keys(login_key.export_public_key().decode())
        acceptor = await asyncssh.create_server(
            lambda: _Server(seen),
            "127.0.0.1",
            port,
            server_host_keys=[server_key],
            authorized_client_keys=authorized,
            process_factory=lambda process: _serve_command(process, seen, answer),
            encoding=None,
        )
        seen.port = acceptor.get_port()
        started.set_result((seen, asyncio.get_running_loop(), stop))
        await stop.wait()
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
    seen, loop, stop = started.result(timeout=30)
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
