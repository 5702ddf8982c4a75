"""SSH to the lab's hosts with the lab's key and pinned host keys; the user's SSH configuration is ignored."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from lab import requirements
from lab.ports import LOOPBACK

# An emulated host under load needs a long time for a key exchange.
CONNECT_SECONDS = 60


def command(folder: Path, port: int, *, tty: bool = False) -> list[str]:
    """The ssh command line up to and including the destination.

    Args:
        folder: The lab's folder, which holds the key and known_hosts.
        port: The host's SSH port on 127.0.0.1.
        tty: Request a terminal.
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
    destination = ["-i", str(folder / "id_ed25519"), *flags, "-p", str(port), f"root@{LOOPBACK}"]
    return [requirements.program("ssh"), "-F", "none", *terminal, *destination]


def run(
    folder: Path,
    port: int,
    argv: Sequence[str],
    *,
    input: str | None = None,  # noqa: A002 - the name that subprocess uses
    timeout: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as root; the caller checks its exit status.

    Args:
        folder: The lab's folder.
        port: The host's SSH port on 127.0.0.1.
        argv: The command's words, quoted for the remote shell.
        input: The command's standard input.
        timeout: Seconds until the connection is closed; the command on the host may continue.

    Raises:
        UserError: ssh itself fails (status 255) or times out.
    """
    line = shlex.join(argv)
    try:
        done = subprocess.run(
            [*command(folder, port), line],
            input=input or "",
            capture_output=True,
            # The output may contain arbitrary bytes.
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"ssh to port {port}: '{line[:200]}' timed out after {timeout:.0f}s") from None
    if done.returncode == 255:
        raise UserError(f"ssh to port {port} failed: {done.stderr.strip()[-500:]}")
    return done


def sends_banner(port: int, timeout: float = 5.0) -> bool:
    """Whether an SSH server sends its banner, which costs the host much less than a login.

    A successful connection isn't enough: QEMU accepts one to a forwarded port even if nothing listens in
    the guest.
    """
    try:
        with socket.create_connection((LOOPBACK, port), timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
