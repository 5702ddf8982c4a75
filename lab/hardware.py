"""A lab host's virtual hardware, independent of the program that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.options import Family, Host
from lab.ports import LOOPBACK, Ports

Accelerator = Literal["kvm", "uml", "tcg"]

SSH_PORT = 22
API_PORT = 6443
NODE_PORT = 30080


@dataclass(frozen=True)
class Machine:
    """The configuration of a host's virtual machine; paths are relative to the host's folder."""

    lab: str
    host: Host
    node_port_index: int  # into `Ports.node_port`
    ports: Ports
    accelerator: Accelerator
    kernel: Path
    initrd: Path
    network_id: int  # 0 to 255, derived from the lab's folder; part of the MAC addresses
    family: Family = "deb"
    lab_memory: int = 0  # MiB that all hosts of the lab may use together

    @property
    def forwards(self) -> dict[int, int]:
        """Maps ports of 127.0.0.1 to the host's TCP ports."""
        ports = {
            self.ports.ssh[self.host.index]: SSH_PORT,
            self.ports.node_port[self.node_port_index]: NODE_PORT,
        }
        if self.host.role == "control-plane":
            ports[self.ports.api] = API_PORT
        return ports

    def mac(self, card: int) -> str:
        """The MAC address of a network card; card 0 is connected to NAT, card 1 to the LAN."""
        # 0x52 has the bit for locally administered addresses.
        return f"52:54:{self.network_id:02x}:00:{card:02x}:{self.host.index + 1:02x}"


def guest_name(lab: str, host: str) -> str:
    """The command-line word that identifies the process of a lab's host."""
    return f"kubeadm-ipvs/{lab}/{host}"


def forwarded(port: int) -> str:
    """The local address of a forwarded port."""
    return f"{LOOPBACK}:{port}"
