"""RPMs made of Debian packages, their repository, and what stands for the base system, as dnf reads them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from common.progress import Progress
from lab import image_rpm, requirements, rpmspec
from lab.artefacts import rpms
from lab.artefacts.aptrepo import Signer
from lab.artefacts.debs import kubernetes_debs
from lab.artefacts.debs import pack as pack_debs
from lab.artefacts.rpmrepo import Base, write_index
from lab.rpmspec import Version
from tests.fast.test_script_parts import part

QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def need_rpm() -> None:
    for program in ("rpmbuild", "rpmsign", "createrepo_c"):
        if requirements.find(program) is None:
            pytest.skip(f"no {program}: `python -m lab requirements --install --family rpm` for this test")


# -- names, versions, dependencies ---------------------------------------------


@pytest.mark.parametrize(
    ("debian", "rpm"),
    [
        ("1.37.2-1.1", "0:1.37.2-1.1"),
        ("1:1.31-5", "1:1.31-5"),
        ("1.7.24~ds1-6+deb13u1", "0:1.7.24~ds1-6+deb13u1"),
        ("3.0", "0:3.0-0"),
        ("2.0-rc1-3", "0:2.0_rc1-3"),
    ],
)
def test_a_debian_version_keeps_its_order_and_has_no_hyphen_within(debian: str, rpm: str) -> None:
    assert str(Version.of_debian(debian)) == rpm


def test_dependencies_have_the_familys_names_and_a_choice_stays_one() -> None:
    text = "iptables (>= 1.4.21), mount, python3:any, debconf (>= 0.5) | debconf-2.0, libx (<< 2:1-1), libx"
    assert rpmspec.relations(text) == [
        "iptables-nft >= 0:1.4.21-0",
        "util-linux",
        "python3",
        "(debconf >= 0:0.5-0 or debconf-2.0)",
        "libx < 2:1-1",
        "libx",
    ]
    assert rpmspec.relations("") == []


def test_a_relation_that_cannot_be_read_is_no_silent_omission() -> None:
    with pytest.raises(ValueError, match="no relation"):
        rpmspec.relations("libx (about 2)")


def test_a_package_under_the_familys_name_provides_debians_too() -> None:
    assert rpmspec.provisions("conntrack", "1:1.4.8-2") == ["conntrack = 1:1.4.8-2"]
    assert rpmspec.provisions("iproute2", "6.15-1") == ["iproute2 = 0:6.15-1", "iproute-tc = 0:6.15-1"]
    assert rpmspec.provisions("ipset", "7.22-1", "ipset-virtual") == ["ipset-virtual"]


def test_what_stands_for_the_base_system_provides_its_packages_the_shell_and_the_release() -> None:
    spec = image_rpm.base_spec(["kmod|34.2-2|\n", "iproute2|6.15-1|arpd\n", "mawk|1.3-1|awk (= 1.3)\n"], "13")
    assert {
        "kmod = 0:34.2-2", "iproute = 0:6.15-1", "iproute-tc = 0:6.15-1", "arpd", "awk = 0:1.3-0",
        "/bin/sh", "system-release = 13",
    } <= set(spec.provides)  # fmt: skip
    text = rpmspec.text(spec)
    assert "%transfiletriggerin -- /usr/lib/systemd/system\n/usr/bin/systemctl daemon-reload" in text
    assert text.rstrip().endswith("%files"), "it owns no file"


# -- files ---------------------------------------------------------------------


def put(root: Path, place: str, text: str = "x") -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_stand_where_the_family_has_them(tmp_path: Path) -> None:
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


def test_a_package_takes_its_folders_along_and_leaves_the_base_systems(tmp_path: Path) -> None:
    put(tmp_path, "etc/containerd/config.toml")
    put(tmp_path, "usr/bin/containerd")
    assert rpms.file_lines(tmp_path, {"etc", "usr", "usr/bin"}) == [
        '%dir "/etc/containerd"',
        '%config(noreplace) "/etc/containerd/config.toml"',
        '"/usr/bin/containerd"',
    ]


def test_what_the_base_system_has_gets_no_rpm(tmp_path: Path) -> None:
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
    assert [deb.name for deb in rpms.lacking(debs, base.packages)] == [
        "gone_1_amd64.deb",
        "ipset_7_amd64.deb",
    ]


# -- the repository --------------------------------------------------------------


def repository(tmp_path: Path) -> Path:
    need_rpm()
    programs = tmp_path / "programs"
    for name in ("kubeadm", "kubelet", "kubectl", "crictl", "bridge"):
        put(programs, name, f"#!/bin/sh\necho {name}\n").chmod(0o755)
    folder = tmp_path / "repository"
    folder.mkdir()
    (tmp_path / "debs").mkdir()
    debs = pack_debs(kubernetes_debs("1.37.2", programs, programs, programs), tmp_path / "debs")
    write_index(folder, rpms.pack(debs, folder, {"usr", "usr/bin", "etc", "var", "var/lib"}), Signer(QUIET))
    return folder


def rpm(*arguments: str | Path) -> str:
    return subprocess.run(["rpm", *arguments], capture_output=True, text=True, check=True).stdout


def test_kubernetes_rpms_have_upstreams_names_the_exact_version_and_what_debians_have(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    assert {path.name for path in folder.glob("*.rpm")} == {
        "kubeadm-1.37.2-1.1.x86_64.rpm",
        "kubelet-1.37.2-1.1.x86_64.rpm",
        "kubectl-1.37.2-1.1.x86_64.rpm",
        "cri-tools-1.36.0-1.1.x86_64.rpm",
        "kubernetes-cni-1.7.1-1.1.x86_64.rpm",
    }
    kubelet = folder / "kubelet-1.37.2-1.1.x86_64.rpm"
    assert {"iptables-nft >= 0:1.4.21-0", "kubernetes-cni >= 0:1.2.0-0"} <= {
        line.strip() for line in rpm("-qp", "--requires", kubelet).splitlines()
    }
    listed = rpm("-qp", "--qf", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\n]", kubelet).splitlines()
    assert "-rwxr-xr-x root /usr/bin/kubelet" in listed
    assert "drwxr-xr-x root /etc/kubernetes/manifests" in listed
    assert not any(line.endswith((" /usr/bin", " /var/lib")) for line in listed)


def test_the_index_and_every_rpm_are_signed_by_the_published_key(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    repodata = folder / "repodata"
    key, database = repodata / "repomd.xml.key", tmp_path / "database"
    rpm("--dbpath", database, "--import", key)
    for package in folder.glob("*.rpm"):
        checked = subprocess.run(
            ["rpmkeys", "--dbpath", database, "-Kv", package], capture_output=True, text=True, check=True
        )
        assert "Signature, key ID" in checked.stdout
    keyring = tmp_path / "key.gpg"
    gpg: list[str | Path] = ["gpg", "--homedir", tmp_path, "--batch", "--output", keyring, "--dearmor", key]
    subprocess.run(gpg, check=True, capture_output=True)
    gpgv: list[str | Path] = [
        "gpgv",
        "--keyring",
        keyring,
        repodata / "repomd.xml.asc",
        repodata / "repomd.xml",
    ]
    assert subprocess.run(gpgv, capture_output=True, check=False).returncode == 0
    index = ET.parse(repodata / "repomd.xml")
    kinds = {element.get("type") for element in index.getroot() if element.get("type")}
    assert {"primary", "filelists"} <= kinds


def test_a_key_is_known_by_its_name_in_rpms_database_before_it_is_there(tmp_path: Path) -> None:
    need_rpm()
    key = Signer(QUIET).public
    shown: list[str | Path] = ["gpg", "--homedir", tmp_path, "--batch", "--with-colons", "--show-keys", key]
    listed = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    identity = next(line.split(":")[4] for line in listed.splitlines() if line.startswith("pub:"))
    body = f"create() {{ rpm_keys {key}; }}\n"
    name = part("packages.sh", body, tmp_path, REPOSITORY_RPM="x").strip()
    assert name.startswith(f"gpg-pubkey-{identity[-8:].lower()}-")
    assert not (tmp_path / "keys").exists()
    rpm("--dbpath", tmp_path / "database", "--import", key)
    assert rpm("--dbpath", tmp_path / "database", "-qa", "gpg-pubkey").strip() == name
