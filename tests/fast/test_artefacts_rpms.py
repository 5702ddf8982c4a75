"""RPMs converted from Debian packages."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from lab.artefacts import rpms
from lab.artefacts.rpmrepo import Base
from tests.fast.shell import put


def test_files_move_to_the_rpm_familys_paths(tmp_path: Path) -> None:
    put(tmp_path, "lib/systemd/system/one.service")
    put(tmp_path, "usr/share/doc/one/copyright")
    put(tmp_path, "usr/sbin/xtables-nft-multi")
    drop_in = put(
        tmp_path,
        "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
        "EnvironmentFile=-/etc/default/kubelet\n",
    )
    rpms.arrange(tmp_path)
    assert (tmp_path / "usr/lib/systemd/system/one.service").is_file()
    assert not (tmp_path / "lib").exists()
    assert not (tmp_path / "usr/share/doc").exists()
    assert drop_in.read_text() == "EnvironmentFile=-/etc/sysconfig/kubelet\n"
    for link in ("iptables", "ip6tables-restore", "iptables-save"):
        assert (tmp_path / "usr/sbin" / link).readlink() == Path("xtables-nft-multi")


def test_package_owns_only_folders_outside_the_base_system(tmp_path: Path) -> None:
    put(tmp_path, "etc/containerd/config.toml")
    put(tmp_path, "usr/bin/containerd")
    assert rpms.file_lines(tmp_path, {"etc", "usr", "usr/bin"}) == [
        '%dir "/etc/containerd"',
        '%config(noreplace) "/etc/containerd/config.toml"',
        '"/usr/bin/containerd"',
    ]


def test_packages_of_the_base_system_get_no_rpm(tmp_path: Path) -> None:
    status = (
        "Package: kmod\nStatus: install ok installed\nVersion: 1\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    archive = tmp_path / "base.tar"
    with tarfile.open(archive, "w") as tar:
        folder = tarfile.TarInfo("./usr/bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        entry = tarfile.TarInfo("./var/lib/dpkg/status")
        entry.size = len(status)
        tar.addfile(entry, io.BytesIO(status.encode()))
    base = Base.read(archive)
    assert base.folders == {"usr/bin"}
    debs = [Path("kmod_34_amd64.deb"), Path("gone_1_amd64.deb"), Path("ipset_7_amd64.deb")]
    assert [deb.name for deb in rpms.missing(debs, base.packages)] == [
        "gone_1_amd64.deb",
        "ipset_7_amd64.deb",
    ]
