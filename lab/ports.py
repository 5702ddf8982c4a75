"""A lab's ports on 127.0.0.1: fixed ones for the default lab, free ones for any other.

Conflicts are reported before anything starts, with the process that uses the port.
"""

from __future__ import annotations

import contextlib
import pwd
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

LOOPBACK = "127.0.0.1"

# Below the kernel's range for outgoing connections (32768 and up).
_SEARCH = range(23000, 30000)


@dataclass(frozen=True)
class Ports:
    """A lab's ports: all TCP except `lan`."""

    ssh: tuple[int, ...]  # one per host, in order
    api: int  # forwarded to the control plane's 6443
    node_port: tuple[int, ...]  # forwarded to 30080 of each worker, then of the control plane
    packages: int  # the package repository on this machine
    registry: int  # the container registry on this machine
    lan: int  # UDP multicast: the hosts' LAN

    def tcp(self) -> dict[int, str]:
        """Maps each TCP port to its purpose."""
        named = {port: f"SSH of host {index}" for index, port in enumerate(self.ssh)}
        named[self.api] = "the API server"
        named |= {port: f"NodePort forward {index}" for index, port in enumerate(self.node_port)}
        named |= {self.packages: "the package repository", self.registry: "the container registry"}
        return named


def fixed(count: int) -> Ports:
    """The default lab's ports, which docs/lab.md lists."""
    return Ports(
        ssh=tuple(22101 + index for index in range(count)),
        api=22643,
        node_port=tuple(22380 + index for index in range(count)),
        packages=22080,
        registry=22500,
        lan=22166,
    )


def free(count: int, reserved: Iterable[int]) -> Ports:
    """Free ports for another lab.

    Args:
        count: The number of hosts.
        reserved: Ports of other labs, including labs that aren't running now.

    Raises:
        UserError: There aren't enough free ports.
    """
    taken = set(reserved) | set(listeners())
    found = _free_ports(taken)
    try:
        numbers = [next(found) for _ in range(2 * count + 4)]
    except StopIteration:
        raise UserError(
            f"not enough free ports between {_SEARCH.start} and {_SEARCH.stop}",
            "remove a lab that you don't need: .venv/bin/python -m lab down --name NAME",
        ) from None
    return Ports(
        ssh=tuple(numbers[:count]),
        node_port=tuple(numbers[count : 2 * count]),
        api=numbers[-4],
        packages=numbers[-3],
        registry=numbers[-2],
        lan=numbers[-1],
    )


def _free_ports(taken: set[int]) -> Iterator[int]:
    for port in _SEARCH:
        if port not in taken and can_bind(port):
            yield port


def can_bind(port: int) -> bool:
    """Whether a TCP server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # QEMU and the lab's servers set this too, so connections in TIME_WAIT don't block a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listeners(proc: Path = Path("/proc")) -> dict[int, tuple[int, int]]:
    """Maps each TCP port with a listener to the socket's inode and user ID."""
    found: dict[int, tuple[int, int]] = {}
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                found[int(fields[1].rsplit(":", 1)[1], 16)] = (int(fields[9]), int(fields[7]))
    return found


def owner(port: int, proc: Path = Path("/proc")) -> str:
    """The process that listens on a port, or its user if the process isn't visible.

    Returns:
        Text such as `process 4711 (nginx: master)`; `an unknown process` if nothing is found.
    """
    listener = listeners(proc).get(port)
    if listener is None:
        return "an unknown process"
    inode, uid = listener
    for pid in (path for path in proc.iterdir() if path.name.isdigit()):
        if f"socket:[{inode}]" in _open_files(pid):
            words = " ".join(
                (pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
            )
            return f"process {pid.name} ({words[:120]})"
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"a process of user {user}"


def _open_files(process: Path) -> Iterator[str]:
    """A process's open files as listed in /proc; empty for another user's process."""
    try:
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed in the meantime
                yield str(link.readlink())
    except OSError:
        return


def check_free(wanted: dict[int, str]) -> None:
    """Check that ports are free.

    Args:
        wanted: Maps ports to their purpose.

    Raises:
        UserError: Ports are in use; the message lists each one with its owner.
    """
    lines = [
        f"port {port} of {LOOPBACK} ({purpose}) is in use by {owner(port)}"
        for port, purpose in sorted(wanted.items())
        if not can_bind(port)
    ]
    if lines:
        raise UserError(
            "\n".join(lines),
            "stop that process, or use --name NAME for another lab, which picks free ports",
        )
