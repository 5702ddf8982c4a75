"""What a host of a lab is as a machine, whichever program runs it."""

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
    """Everything that is decided about a host; paths are relative to the host's folder."""

    lab: str
    host: Host
    workers_first: int  # the host's place in `Ports.node_port`
    ports: Ports
    accelerator: Accelerator
    kernel: Path
    initrd: Path
    network_id: int  # 0 to 255, differs between labs: part of the hardware addresses
    family: Family = "deb"
    lab_memory: int = 0  # MiB that all hosts of the lab may use together

    @property
    def forwards(self) -> dict[int, int]:
        """Ports of 127.0.0.1 and the TCP ports of the host that they lead to."""
        ports = {
            self.ports.ssh[self.host.index]: SSH_PORT,
            self.ports.node_port[self.workers_first]: NODE_PORT,
        }
        if self.host.role == "control-plane":
            ports[self.ports.api] = API_PORT
        return ports

    def mac(self, card: int) -> str:
        """A card's hardware address, unique per lab, host and card: 0 leads out, 1 is the LAN."""
        # 0x52 has the bit for locally administered addresses.
        return f"52:54:{self.network_id:02x}:00:{card:02x}:{self.host.index + 1:02x}"


def guest_name(lab: str, host: str) -> str:
    """A word of the command line by which a process is recognized as a lab's host."""
    return f"kubeadm-ipvs/{lab}/{host}"


def forwarded(port: int) -> str:
    """The address of a forwarded port on this machine."""
    return f"{LOOPBACK}:{port}"
