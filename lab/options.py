"""The options of a lab, and the hosts that they describe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError
from common.paths import DEFAULT_LAB, lab_dir

Role = Literal["control-plane", "worker"]
Family = Literal["deb", "rpm"]
RELEASES = ("trixie", "bookworm")
FAMILIES: tuple[Family, ...] = ("deb", "rpm")
# The rpm family needs this release's versions of dnf and of the SELinux policy.
_RPM_RELEASE = "trixie"

# kubeadm requires two CPUs for a control plane. With one emulated CPU the API server takes minutes to become
# healthy; a worker boots faster with one.
_MEMORY: dict[Role, int] = {"control-plane": 3072, "worker": 2048}
_CPUS: dict[Role, int] = {"control-plane": 2, "worker": 1}

_LAN = "192.168.166"
_FIRST = 101
_MOST_HOSTS = 20


def debian_mirror() -> str:
    """The URL of Debian's packages: KUBEADM_IPVS_DEBIAN_MIRROR if set, else deb.debian.org."""
    return os.environ.get("KUBEADM_IPVS_DEBIAN_MIRROR", "http://deb.debian.org/debian")


@dataclass(frozen=True)
class Host:
    """The specification of one virtual machine."""

    name: str
    role: Role
    index: int  # from 0; the control plane is first
    address: str  # IPv4 on the lab's LAN
    memory: int  # MiB
    cpus: int


@dataclass(frozen=True)
class Options:
    """The options of a lab, which can't be changed while the lab exists.

    Raises:
        UserError: A value is out of range.
    """

    name: str = DEFAULT_LAB
    count: int = 3  # hosts: one control plane, the rest workers
    memory: int | None = None  # MiB per host; None: 3072 for a control plane, 2048 for a worker
    cpus: int | None = None  # per host; None: 2 for a control plane, 1 for a worker
    release: str = "trixie"  # Debian's code name
    family: Family = "deb"  # the hosts' package family; `rpm` has RPMs, dnf and SELinux

    def __post_init__(self) -> None:
        lab_dir(self.name)  # validates the name
        problems = []
        if not 1 <= self.count <= _MOST_HOSTS:
            problems.append(f"count: {self.count} is not between 1 and {_MOST_HOSTS}")
        if self.memory is not None and not 512 <= self.memory <= 65536:
            problems.append(f"memory: {self.memory} MiB is not between 512 and 65536")
        if self.cpus is not None and not 1 <= self.cpus <= 64:
            problems.append(f"cpus: {self.cpus} is not between 1 and 64")
        if self.release not in RELEASES:
            problems.append(f"release: {self.release!r} is not one of {', '.join(RELEASES)}")
        if self.family not in FAMILIES:
            problems.append(f"family: {self.family!r} is not one of {', '.join(FAMILIES)}")
        elif self.family == "rpm" and self.release != _RPM_RELEASE:
            problems.append(f"family: rpm needs release {_RPM_RELEASE}, not {self.release}")
        if problems:
            raise UserError("the lab can't be created with these options:\n" + "\n".join(problems))

    def hosts(self) -> tuple[Host, ...]:
        """The hosts, the control plane first."""

        def host(index: int) -> Host:
            role: Role = "control-plane" if index == 0 else "worker"
            return Host(
                name="master" if index == 0 else f"node{index}",
                role=role,
                index=index,
                address=f"{_LAN}.{_FIRST + index}",
                memory=self.memory or _MEMORY[role],
                cpus=self.cpus or _CPUS[role],
            )

        return tuple(host(index) for index in range(self.count))
