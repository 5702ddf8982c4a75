"""A host's identity: a small tar archive on a separate read-only disk.

The lab's initramfs (guest-init.sh) unpacks it over the root file system at the first boot, before systemd
starts. Later boots ignore it.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

from lab.options import Family

GATEWAY = "10.0.2.2"  # this machine's address in QEMU's user network


@dataclass(frozen=True)
class Identity:
    """The settings that differ between hosts."""

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
    # Whether systemd needs longer timeouts.
    emulated: bool = False
    # Whether pods get a larger CPU share than systemd's services. On an emulated control plane, kubelet and
    # containerd would otherwise take half of the CPU time from etcd and the API server.
    pods_first: bool = False


# Where a host stores the key of the lab's package repository.
KEY_PLACE: dict[Family, str] = {"deb": "usr/share/keyrings/mirror.asc", "rpm": "etc/pki/rpm-gpg/mirror.asc"}

# On a host with two CPUs, kubelet gives kubepods.slice a weight of 79; systemd's default is 100.
_PODS_FIRST = {"etc/systemd/system/system.slice.d/pods-first.conf": (0o644, "[Slice]\nCPUWeight=20\n")}

_LONG_TIMEOUTS = {
    "etc/systemd/system.conf.d/lab.conf": (
        0o644,
        "[Manager]\nDefaultTimeoutStartSec=600s\nDefaultTimeoutStopSec=300s\nDefaultDeviceTimeoutSec=600s\n",
    )
}


def _package_source(identity: Identity) -> tuple[str, str]:
    """The path and content of the file that configures the distribution's package repository."""
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
    """Maps each file's path, relative to the root, to its mode and text."""
    source, text = _package_source(identity)
    return {
        "etc/hostname": (0o644, f"{identity.name}\n"),
        "etc/hosts": (
            0o644,
            "127.0.0.1 localhost\n"
            "::1 localhost ip6-localhost ip6-loopback\n"
            f"{identity.address} {identity.name}\n",
        ),
        # guest-init.sh renames it when everything else is in place.
        "etc/machine-id.seed": (0o444, f"{identity.machine_id}\n"),
        "etc/ssh/ssh_host_ed25519_key": (0o600, identity.host_key),
        "etc/ssh/ssh_host_ed25519_key.pub": (0o644, identity.host_key_public),
        "root/.ssh/authorized_keys": (0o600, identity.authorized_key),
        "etc/systemd/network/20-lan.network": (
            0o644,
            "# The LAN between the hosts.\n"
            "[Match]\nName=eth1\n\n"
            f"[Network]\nAddress={identity.address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        ),
        source: (0o644, text),
        KEY_PLACE[identity.family]: (0o644, identity.packages_key),
        **(_LONG_TIMEOUTS if identity.emulated else {}),
        **(_PODS_FIRST if identity.pods_first else {}),
    }


def archive(identity: Identity) -> bytes:
    """The tar archive, which is reproducible: the same identity gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, (mode, text) in contents(identity).items():
            data = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
