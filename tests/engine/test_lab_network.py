"""The network of a lab under User Mode Linux, with sockets in the place of the hosts' cards."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.progress import Progress
from lab import network, uml
from lab.api import Lab, _Record
from lab.artefacts import gobuild
from lab.machine import Vm
from lab.options import Options
from lab.ports import free

QUIET = Progress(quiet=True)
BROADCAST = b"\xff" * 6
IPV4 = b"\x08\x00"


class Card:
    """One end of a host's network card."""

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
    """Three hosts that nobody runs, and their network, which does."""
    program = gobuild.build(gobuild.LAB_NETWORK, Progress()) / network.PROGRAM
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lab = Lab.load("net", QUIET)
    lab.folder.mkdir(parents=True)
    vms = lab._vms(_Record(Options(name="net"), free(3, ()), accelerator="uml"))
    for vm in vms:
        vm.folder.mkdir()
    # A socket's path may have 107 characters only.
    monkeypatch.chdir(lab.folder)
    network.start(lab.folder, program, vms, QUIET)
    yield vms
    network.stop(lab.folder)
    assert network.pid(lab.folder) is None


def lan(*vms: Vm) -> list[Card]:
    """The hosts' cards on the LAN, each plugged in: the next ones hear it."""
    cards: list[Card] = []
    for vm in vms:
        card = Card(Path(vm.host.name) / uml.LAN_SOCKET)
        for other in cards:
            hear(card, other)
        cards.append(card)
    for card in cards:
        with contextlib.suppress(TimeoutError):
            while card.receive(0.2):
                pass
    return cards


def hear(speaker: Card, listener: Card) -> None:
    """The listener gets a broadcast, asked for until it does, and no more of it is on its way."""
    for number in range(50):
        sent = frame(BROADCAST, mac(99), b"%04d" % number + bytes(60))
        speaker.send(sent)
        with contextlib.suppress(TimeoutError):
            while listener.receive(0.2) != sent:
                pass
            return
    pytest.fail("nothing is heard")


def test_lan_carries_broadcasts_to_all_and_answers_to_one(vms: tuple[Vm, ...]) -> None:
    first, second, third = lan(*vms)
    hello = frame(BROADCAST, mac(1), b"who is there?" * 10)
    first.send(hello)
    assert second.receive() == third.receive() == hello
    answer = frame(mac(1), mac(2), b"I am" * 10)
    second.send(answer)
    assert first.receive() == answer
    third.send(frame(mac(2), mac(3), b"third" * 10))
    assert second.receive()[12:] == IPV4 + b"third" * 10, "the answer to the first host went to it alone"


def test_host_that_stands_still_stops_nobody(vms: tuple[Vm, ...]) -> None:
    first, second, _ = lan(*vms)
    # Far more than a socket holds; the third host never reads any.
    for number in range(3000):
        sent = frame(BROADCAST, mac(1), b"%04d" % number + bytes(1000))
        first.send(sent)
        assert second.receive() == sent


def test_rebooted_host_takes_the_place_of_its_former_self(vms: tuple[Vm, ...]) -> None:
    other, former = lan(vms[1], vms[0])
    (again,) = lan(vms[0])
    hear(again, other)
    again.send(frame(BROADCAST, mac(1), b"back" * 20))
    assert other.receive().endswith(b"back" * 20)
    other.send(frame(mac(1), mac(2), b"welcome" * 20))
    assert again.receive().endswith(b"welcome" * 20)
    assert former.receive() == b"", "its former connection was closed"


def test_router_answers_for_the_addresses_of_qemus_user_network(vms: tuple[Vm, ...]) -> None:
    card = Card(Path(vms[0].host.name) / uml.NAT_SOCKET)
    own = bytes.fromhex(vms[0].machine.mac(0).replace(":", ""))
    for address in ("10.0.2.2", "10.0.2.3"):
        asked = socket.inet_aton(address)
        ethernet_arp, request, reply = b"\x00\x01\x08\x00\x06\x04", b"\x00\x01", b"\x00\x02"
        question = ethernet_arp + request + own + socket.inet_aton("10.0.2.15") + bytes(6) + asked
        card.send(BROADCAST + own + b"\x08\x06" + question)
        answer = card.receive()
        assert answer[20:22] == reply
        assert answer[28:32] == asked


def test_ports_lead_to_the_host_and_are_closed_where_nobody_answers(vms: tuple[Vm, ...]) -> None:
    ports = {port for vm in vms for port in vm.machine.forwards}
    assert len(ports) == 7, "SSH and a NodePort each, and the API server's"
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.settimeout(10)
            assert connection.recv(1) == b""


def test_network_that_cannot_start_says_why(tmp_path: Path, vms: tuple[Vm, ...]) -> None:
    config = json.loads((vms[0].lab_folder / "network/config.json").read_text())
    config["pid_file"] = str(tmp_path / "other.pid")
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = gobuild.build(gobuild.LAB_NETWORK, QUIET) / network.PROGRAM
    done = subprocess.run(
        [program, tmp_path / "config.json"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert not (tmp_path / "other.pid").exists()
