"""The current status of a lab."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lab import seed, services, ssh
from lab.hardware import Accelerator
from lab.machine import Vm
from lab.ports import LOOPBACK
from lab.record import Record
from lab.vms import create_vms, for_each

HostState = Literal["ready", "booting", "paused", "stopped"]

# A busy emulated host has taken longer than two seconds to send its SSH banner.
_BANNER_SECONDS: dict[Accelerator, float] = {"kvm": 2.0, "uml": 5.0, "tcg": 15.0}


@dataclass(frozen=True)
class HostStatus:
    """The status of one host."""

    name: str
    role: str
    address: str  # on the lab's LAN
    ssh_host: str
    ssh_port: int
    state: HostState
    pid: int | None  # of the program that runs the guest
    cpus: int
    memory: int  # MiB that the guest may use
    resident: int | None  # MiB of this machine's memory that the guest uses now


@dataclass(frozen=True)
class ServiceStatus:
    """The status of one of the lab's servers."""

    name: str
    url: str  # for the guests
    pid: int | None
    answers: bool  # whether it is healthy


@dataclass(frozen=True)
class LabStatus:
    """The status of a lab."""

    name: str
    ready: bool  # every host and every server responds
    release: str
    family: str  # of the hosts' packages
    accelerator: str
    accelerator_reason: str
    image: str  # the image's key
    packages_from: str  # "built" or "upstream", followed by the reason
    api: str  # `host:port`, forwarded to the control plane's API server
    node_ports: tuple[str, ...]  # URLs, each forwarded to port 30080 of a host
    hosts: tuple[HostStatus, ...]
    services: tuple[ServiceStatus, ...]
    snapshots: tuple[str, ...]  # tags that all hosts have

    def to_json(self) -> str:
        """The status as JSON, for `status --json` and status.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def lab_status(folder: Path, record: Record) -> LabStatus:
    """Check the hosts and servers of a lab."""
    vms = create_vms(folder, record)
    hosts = tuple(for_each(vms, host_status))
    served = record.services()
    with ThreadPoolExecutor(2) as pool:
        health = list(pool.map(services.healthy, served))
    servers = tuple(
        ServiceStatus(
            service.name,
            f"http://{seed.GATEWAY}:{service.port}",
            services.pid(folder, service.name),
            healthy,
        )
        for service, healthy in zip(served, health, strict=True)
    )
    tags = [vm.snapshots() for vm in vms]
    return LabStatus(
        name=record.options.name,
        ready=bool(servers) and all(h.state == "ready" for h in hosts) and all(s.answers for s in servers),
        release=record.options.release,
        family=record.options.family,
        accelerator=record.accelerator,
        accelerator_reason=record.accelerator_reason,
        image=record.image,
        packages_from=record.mirror,
        api=f"{LOOPBACK}:{record.ports.api}",
        node_ports=tuple(f"http://{LOOPBACK}:{port}" for port in record.ports.node_port),
        hosts=hosts,
        services=servers,
        snapshots=tuple(tag for tag in tags[0] if all(tag in other for other in tags)),
    )


def host_status(vm: Vm) -> HostStatus:
    """Check one host."""
    pid = vm.pid
    state: HostState
    if pid is None:
        state = "stopped"
    elif ssh.sends_banner(vm.ssh_port, _BANNER_SECONDS[vm.machine.accelerator]):
        state = "ready"
    elif vm.paused_reason():
        state = "paused"
    else:
        state = "booting"
    host = vm.host
    return HostStatus(
        host.name,
        host.role,
        host.address,
        LOOPBACK,
        vm.ssh_port,
        state,
        pid,
        host.cpus,
        host.memory,
        vm.resident(),
    )
