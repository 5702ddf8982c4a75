"""The network process of a lab under User Mode Linux."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lab import network
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.record import Record
from lab.vms import create_vms
from tests.fast.saved_lab import QUIET


def test_settings_have_each_hosts_sockets_and_ports(tmp_path: Path) -> None:
    vms = create_vms(tmp_path, Record(Options(name="blue"), fixed(3), accelerator="uml"))
    hosts = json.loads(network.settings(tmp_path, vms))["hosts"]
    assert [host["nat"] for host in hosts] == ["master/nat.sock", "node1/nat.sock", "node2/nat.sock"]
    assert hosts[0]["forwards"] == {
        "127.0.0.1:22101": 22, "127.0.0.1:22382": 30080, "127.0.0.1:22643": 6443,
    }  # fmt: skip
    assert hosts[1]["forwards"] == {"127.0.0.1:22102": 22, "127.0.0.1:22380": 30080}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("# nameserver 9.9.9.9\nnameserver ::1\nnameserver 127.0.0.53\nnameserver 1.1.1.1\n", "127.0.0.53"),
        ("nameserver\nsearch example.com\n", ""),
        (None, ""),
    ],
)
def test_resolver_is_first_ipv4_nameserver(tmp_path: Path, text: str | None, address: str) -> None:
    if text is not None:
        (tmp_path / "resolv.conf").write_text(text)
    assert network.resolver(tmp_path / "resolv.conf") == address


class Host:
    """The parts of a host that the network uses."""

    host = SimpleNamespace(name="master")
    machine = SimpleNamespace(forwards={22101: 22}, mac=lambda card: "52:54:00:00:00:01")
    pid: int | None = 4711

    def stop(self) -> None:
        self.pid = None


def test_hosts_restart_only_with_new_network(tmp_path: Path) -> None:
    program = tmp_path / "lab-network"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\n"
        "pid_file = json.load(open(sys.argv[1]))['pid_file']\n"
        "open(pid_file, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    host = Host()
    vms = [cast("Vm", host)]
    network.start(tmp_path, program, vms, QUIET)
    try:
        assert host.pid is None
        host.pid = 4712
        first = network.pid(tmp_path)
        network.start(tmp_path, program, vms, QUIET)
        assert network.pid(tmp_path) == first is not None
        assert host.pid == 4712
    finally:
        network.stop(tmp_path)
