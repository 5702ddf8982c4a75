"""Ports on 127.0.0.1 for tests."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def closed_port() -> int:
    """A port on which nothing listens."""
    return free_ports(1)[0]
