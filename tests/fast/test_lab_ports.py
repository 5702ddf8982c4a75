"""The lab's ports on 127.0.0.1."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import UserError
from lab import ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port with a listener."""
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def test_labs_get_distinct_ports() -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    numbers = [*first.tcp(), first.lan, *second.tcp(), second.lan]
    assert len(numbers) == len(set(numbers)) == 20


def test_port_in_use_is_reported_with_its_owner(taken: int) -> None:
    with pytest.raises(UserError) as caught:
        ports.check_free({taken: "the API server"})
    message = str(caught.value)
    assert f"port {taken} of 127.0.0.1 (the API server) is in use" in message
    assert f"process {os.getpid()} (" in message


def test_owner_of_invisible_process_is_its_user(tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = (
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
    )
    (net / "tcp").write_text(head + row)
    assert ports.owner(8080, tmp_path) == "a process of user root"
    assert ports.owner(8081, tmp_path) == "an unknown process"


def test_free_ports_pass_the_check(taken: int) -> None:
    free = ports.free(1, ())
    assert taken not in free.tcp()
    ports.check_free(free.tcp())
