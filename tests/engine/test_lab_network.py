"""The network of a lab under User Mode Linux, with sockets in place of the hosts' network cards."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import gobuild
from common.progress import Progress
from lab import network, uml
from lab.artefacts import targets
from lab.lab import Lab
from lab.machine import Vm
from lab.options import Options
from lab.ports import free
from lab.record import Record
from lab.vms import create_vms

QUIET = Progress(quiet=True)
BROADCAST = b"\xff" * 6
IPV4 = b"\x08\x00"


class Card:
    """A host's network card, as the host sees it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(str(path))

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, seconds: float = 5) -> bytes:
        self._socket.settimeout(seconds)
        return self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


def mac(number: int) -> bytes:
    return bytes((0x52, 0x54, 0, 0, 0, number))


def frame(destination: bytes, source: bytes, text: bytes) -> bytes:
    return destination + source + IPV4 + text


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Vm, ...]]:
    """Three VMs that don't run, on a network that does."""
    program = gobuild.build(targets.LAB_NETWORK, Progress()) / network.PROGRAM
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lab = Lab.load("net", QUIET)
    lab.folder.mkdir(parents=True)
    vms = create_vms(lab.folder, Record(Options(name="net"), free(3, ()), accelerator="uml"))
    for vm in vms:
        vm.folder.mkdir()
    # A socket's path can have at most 107 characters.
    monkeypatch.chdir(lab.folder)
    network.start(lab.folder, program, vms, QUIET)
    yield vms
    network.stop(lab.folder)
    assert network.pid(lab.folder) is None


def lan(*vms: Vm) -> list[Card]:
    """Connect the hosts' cards to the LAN and wait until they receive each other's frames."""
    cards: list[Card] = []
    for vm in vms:
        card = Card(Path(vm.host.name) / uml.LAN_SOCKET)
        for other in cards:
            wait_until_received(card, other)
        cards.append(card)
    for card in cards:
        with contextlib.suppress(TimeoutError):
            while card.receive(0.2):
                pass
    return cards


def wait_until_received(sender: Card, receiver: Card) -> None:
    """Send broadcasts until the receiver gets one; discard the earlier ones."""
    for number in range(50):
        sent = frame(BROADCAST, mac(99), b"%04d" % number + bytes(60))
        sender.send(sent)
        with contextlib.suppress(TimeoutError):
            while receiver.receive(0.2) != sent:
                pass
            return
    pytest.fail("the receiver got no broadcast")


def test_lan_delivers_broadcasts_to_all_and_unicast_once(vms: tuple[Vm, ...]) -> None:
    first, second, third = lan(*vms)
    hello = frame(BROADCAST, mac(1), b"who is there?" * 10)
    first.send(hello)
    assert second.receive() == third.receive() == hello
    answer = frame(mac(1), mac(2), b"I am" * 10)
    second.send(answer)
    assert first.receive() == answer
    third.send(frame(mac(2), mac(3), b"third" * 10))
    assert second.receive()[12:] == IPV4 + b"third" * 10, "only the first host received the answer"


def test_hung_host_does_not_block_others(vms: tuple[Vm, ...]) -> None:
    first, second, _ = lan(*vms)
    # Far more than fits into a socket's buffer. The third host reads nothing.
    for number in range(3000):
        sent = frame(BROADCAST, mac(1), b"%04d" % number + bytes(1000))
        first.send(sent)
        assert second.receive() == sent


def test_rebooted_host_replaces_its_old_connection(vms: tuple[Vm, ...]) -> None:
    other, before = lan(vms[1], vms[0])
    (after,) = lan(vms[0])
    wait_until_received(after, other)
    after.send(frame(BROADCAST, mac(1), b"back" * 20))
    assert other.receive().endswith(b"back" * 20)
    other.send(frame(mac(1), mac(2), b"welcome" * 20))
    assert after.receive().endswith(b"welcome" * 20)
    assert before.receive() == b"", "the old connection was closed"


def test_router_has_the_addresses_of_qemus_network(vms: tuple[Vm, ...]) -> None:
    card = Card(Path(vms[0].host.name) / uml.NAT_SOCKET)
    own = bytes.fromhex(vms[0].machine.mac(0).replace(":", ""))
    for address in ("10.0.2.2", "10.0.2.3"):
        target = socket.inet_aton(address)
        ethernet_arp, request, reply = b"\x00\x01\x08\x00\x06\x04", b"\x00\x01", b"\x00\x02"
        question = ethernet_arp + request + own + socket.inet_aton("10.0.2.15") + bytes(6) + target
        card.send(BROADCAST + own + b"\x08\x06" + question)
        answer = card.receive()
        assert answer[20:22] == reply
        assert answer[28:32] == target


def test_forwarded_connections_close_if_the_host_is_down(vms: tuple[Vm, ...]) -> None:
    ports = {port for vm in vms for port in vm.machine.forwards}
    assert len(ports) == 7, "SSH and a NodePort for each host, and one API server"
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.settimeout(10)
            assert connection.recv(1) == b""


def test_failed_start_reports_the_reason(tmp_path: Path, vms: tuple[Vm, ...]) -> None:
    config = json.loads((vms[0].lab_folder / "network/config.json").read_text())
    config["pid_file"] = str(tmp_path / "other.pid")
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = gobuild.build(targets.LAB_NETWORK, QUIET) / network.PROGRAM
    done = subprocess.run(
        [program, tmp_path / "config.json"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert not (tmp_path / "other.pid").exists()
