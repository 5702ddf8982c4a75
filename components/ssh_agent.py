"""The user's SSH agent, which the command provider uses whenever SSH_AUTH_SOCK is set."""

from __future__ import annotations

import os
import socket


def unreachable_socket() -> str:
    """The socket in SSH_AUTH_SOCK if no agent listens there; empty otherwise.

    With such a socket the provider fails even if it has a key (pulumi-command 1.2.1, connection.go).
    """
    path = os.environ.get("SSH_AUTH_SOCK", "")
    if not path:
        return ""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return path
    return ""
