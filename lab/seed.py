"""A host's identity, as a small tar archive on a read-only disk of its own.

The lab's initramfs (guest-init.sh) unpacks it over the root file system at the first boot,
before systemd starts; later boots don't look at it.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

from lab.options import Family

GATEWAY = "10.0.2.2"  # the developer's machine, as QEMU's user network shows it to guests


@dataclass(frozen=True)
class Identity:
    """What makes one host differ from the others."""

    name: str
    address: str  # IPv4 on the LAN
    machine_id: str  # 32 hexadecimal digits
    host_key: str  # OpenSSH private key, ed25519
    host_key_public: str
    authorized_key: str  # the lab's login key, public
    packages_port: int  # of the lab's package repository
    packages_key: str  # its armored public key
    release: str
    family: Family = "deb"
    # Whether it is emulated: what takes long there hasn't failed.
    emulated: bool = False
    # Whether the pods' share of the CPU comes before that of systemd's services: an emulated control plane,
    # where kubelet and containerd would otherwise take half of it from etcd and the API server.
    pods_first: bool = False


# Where a host keeps the key of the lab's package repository.
KEY_PLACE: dict[Family, str] = {"deb": "usr/share/keyrings/mirror.asc", "rpm": "etc/pki/rpm-gpg/mirror.asc"}

# kubelet gives kubepods.slice 79 on a host with two CPUs; systemd's default is 100.
_PODS_FIRST = {"etc/systemd/system/system.slice.d/pods-first.conf": (0o644, "[Slice]\nCPUWeight=20\n")}


_PATIENT = {
    "etc/systemd/system.conf.d/lab.conf": (
        0o644,
        "[Manager]\nDefaultTimeoutStartSec=600s\nDefaultTimeoutStopSec=300s\nDefaultDeviceTimeoutSec=600s\n",
    )
}


def _package_source(identity: Identity) -> tuple[str, str]:
    """The file that names the distribution's packages, and its text."""
    url = f"http://{GATEWAY}:{identity.packages_port}"
    key = f"/{KEY_PLACE[identity.family]}"
    if identity.family == "rpm":
        return "etc/yum.repos.d/mirror.repo", (
            "[mirror]\nname=The mirror's packages\n"
            f"baseurl={url}/rpm/{identity.release}/\n"
            f"enabled=1\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file://{key}\n"
        )
    return "etc/apt/sources.list.d/mirror.sources", (
        f"Types: deb\nURIs: {url}/debian/{identity.release}/\nSuites: ./\nSigned-By: {key}\n"
    )


def contents(identity: Identity) -> dict[str, tuple[int, str]]:
    """The files: path relative to the root -> (mode, text)."""
    source, text = _package_source(identity)
    return {
        "etc/hostname": (0o644, f"{identity.name}\n"),
        "etc/hosts": (
            0o644,
            "127.0.0.1 localhost\n"
            "::1 localhost ip6-localhost ip6-loopback\n"
            f"{identity.address} {identity.name}\n",
        ),
        # guest-init.sh renames it once everything else is in place.
        "etc/machine-id.seed": (0o444, f"{identity.machine_id}\n"),
        "etc/ssh/ssh_host_ed25519_key": (0o600, identity.host_key),
        "etc/ssh/ssh_host_ed25519_key.pub": (0o644, identity.host_key_public),
        "root/.ssh/authorized_keys": (0o600, identity.authorized_key),
        "etc/systemd/network/20-lan.network": (
            0o644,
            "# The hosts' own network.\n"
            "[Match]\nName=eth1\n\n"
            f"[Network]\nAddress={identity.address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        ),
        source: (0o644, text),
        KEY_PLACE[identity.family]: (0o644, identity.packages_key),
        **(_PATIENT if identity.emulated else {}),
        **(_PODS_FIRST if identity.pods_first else {}),
    }


def archive(identity: Identity) -> bytes:
    """The tar archive: the same bytes for the same identity."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, (mode, text) in contents(identity).items():
            data = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
