"""The keys that the command provider logs in with besides `ssh.privateKeyFile`: those of the user's agent."""

from __future__ import annotations

import os
import socket
from pathlib import Path

# The keys that ssh uses by itself (ssh_config(5), IdentityFile). The provider doesn't.
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def socket_path() -> str:
    """The socket in SSH_AUTH_SOCK, which the provider uses whenever it is set; empty if it isn't."""
    return os.environ.get("SSH_AUTH_SOCK", "")


def unreachable_socket() -> str:
    """The socket in SSH_AUTH_SOCK if no agent listens there; empty otherwise.

    With such a socket the provider fails even if it has a key (pulumi-command 1.2.1, connection.go).
    """
    path = socket_path()
    if not path:
        return ""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return path
    return ""


def default_key() -> str:
    """The first key that ssh would use by itself, such as `~/.ssh/id_ed25519`; empty if there is none."""
    names = (f"~/.ssh/{name}" for name in _DEFAULT_KEYS)
    return next((name for name in names if Path(name).expanduser().is_file()), "")
