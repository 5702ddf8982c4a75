"""The seed, a tar archive that gives a host its identity."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

from lab import seed

IDENTITY = seed.Identity(
    name="node1",
    address="192.168.166.102",
    machine_id="0123456789abcdef0123456789abcdef",
    host_key="PRIVATE\n",
    host_key_public="ssh-ed25519 AAAA host\n",
    authorized_key="ssh-ed25519 BBBB lab\n",
    packages_port=22080,
    packages_key="-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
    release="trixie",
)


def test_seed_has_name_keys_address_and_package_source() -> None:
    with tarfile.open(fileobj=io.BytesIO(seed.archive(IDENTITY))) as tar:
        files = {entry.name: entry for entry in tar}
        texts = {}
        for name, entry in files.items():
            content = tar.extractfile(entry)
            assert content is not None
            texts[name] = content.read().decode()
    assert texts["etc/hostname"] == "node1\n"
    assert texts["etc/ssh/ssh_host_ed25519_key"] == "PRIVATE\n"
    assert texts["root/.ssh/authorized_keys"] == "ssh-ed25519 BBBB lab\n"
    assert "Address=192.168.166.102/24" in texts["etc/systemd/network/20-lan.network"]
    assert "URIs: http://10.0.2.2:22080/debian/trixie/" in texts["etc/apt/sources.list.d/mirror.sources"]
    assert files["etc/ssh/ssh_host_ed25519_key"].mode == 0o600
    assert all(entry.uid == entry.gid == 0 for entry in files.values())


def test_pods_first_lowers_weight_of_system_services() -> None:
    path = "etc/systemd/system/system.slice.d/pods-first.conf"
    assert path not in seed.contents(IDENTITY)
    _, text = seed.contents(dataclasses.replace(IDENTITY, pods_first=True))[path]
    # Below the 79 that kubelet gives the pods of a host with two CPUs.
    assert text == "[Slice]\nCPUWeight=20\n"


def test_only_emulated_host_gets_long_service_timeouts() -> None:
    path = "etc/systemd/system.conf.d/lab.conf"
    assert path not in seed.contents(IDENTITY)
    _, text = seed.contents(dataclasses.replace(IDENTITY, emulated=True))[path]
    assert "DefaultTimeoutStartSec=600s\n" in text


def test_rpm_host_gets_repository_with_signature_checks() -> None:
    files = seed.contents(dataclasses.replace(IDENTITY, family="rpm"))
    assert not [path for path in files if "apt" in path]
    _, text = files["etc/yum.repos.d/mirror.repo"]
    assert "baseurl=http://10.0.2.2:22080/rpm/trixie/\n" in text
    assert "\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/mirror.asc\n" in text
    assert files["etc/pki/rpm-gpg/mirror.asc"] == (0o644, IDENTITY.packages_key)


def test_seed_is_reproducible_and_fits_whole_sectors() -> None:
    assert seed.archive(IDENTITY) == seed.archive(IDENTITY)
    assert len(seed.archive(IDENTITY)) % 512 == 0


def test_machine_id_is_renamed_after_unpacking() -> None:
    assert "etc/machine-id" not in seed.contents(IDENTITY)
    init = (Path(seed.__file__).parent / "guest-init.sh").read_text()
    assert init.index("tar -x") < init.index("mv /root/etc/machine-id.seed /root/etc/machine-id")
