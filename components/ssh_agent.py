"""The login's SSH agent, which the command provider asks wherever the environment names one."""

from __future__ import annotations

import os
import socket


def dead() -> str:
    """The socket that SSH_AUTH_SOCK names, where no agent answers; else empty.

    The provider fails on such a one even where it has a key (pulumi-command 1.2.1, connection.go).
    """
    where = os.environ.get("SSH_AUTH_SOCK", "")
    if not where:
        return ""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(where)
        except OSError:
            return where
    return ""
