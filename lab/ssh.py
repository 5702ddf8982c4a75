"""SSH to the lab's hosts: the lab's key, the pinned host key, nothing of the user's own setup."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from lab import requirements
from lab.ports import LOOPBACK

# An emulated host under load takes its time for a key exchange.
CONNECT_SECONDS = 60


def command(folder: Path, port: int, *, tty: bool = False) -> list[str]:
    """The ssh command line up to and including the destination.

    :param folder: the lab's folder, with key and known_hosts.
    """
    options = {
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": f'"{folder / "known_hosts"}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ServerAliveInterval": "30",
        "ServerAliveCountMax": "10",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    terminal = ["-t"] if tty else ["-T"]
    way = ["-i", str(folder / "id_ed25519"), *flags, "-p", str(port), f"root@{LOOPBACK}"]
    return [requirements.program("ssh"), "-F", "none", *terminal, *way]


def run(
    folder: Path,
    port: int,
    argv: Sequence[str],
    *,
    input: str | None = None,  # noqa: A002 - as subprocess names it
    timeout: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as root, each word passed as it is; its status is for the caller to judge.

    :param timeout: seconds until the connection is given up (the command on the host may go on).
    :raises UserError: ssh itself fails (status 255) or takes too long.
    """
    line = shlex.join(argv)
    try:
        done = subprocess.run(
            [*command(folder, port), line],
            input=input or "",
            capture_output=True,
            # A log may hold any bytes.
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"ssh to port {port}: '{line[:200]}' is not done after {timeout:.0f}s") from None
    if done.returncode == 255:
        raise UserError(f"ssh to port {port} fails: {done.stderr.strip()[-500:]}")
    return done


def greets(port: int, timeout: float = 5.0) -> bool:
    """Whether an SSH server sends its greeting: much cheaper for the host than a login.

    QEMU accepts a forwarded connection also when nobody listens in the guest.
    """
    try:
        with socket.create_connection((LOOPBACK, port), timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
