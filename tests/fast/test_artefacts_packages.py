"""The packages of a mirror and their signed index, as apt reads them."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from common.progress import Progress
from lab.artefacts.aptrepo import Signer, write_index
from lab.artefacts.debs import Deb, kubernetes_debs, pack
from lab.artefacts.upstream import parse_index

QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("kubeadm", "kubelet", "kubectl", "crictl", "bridge", "host-local", "loopback", "portmap"):
        (folder / name).write_text(f"#!/bin/sh\necho {name}\n")
        (folder / name).chmod(0o755)
    (folder / "manifest.json").write_text("{}")
    return folder


def made(programs: Path, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    debs = kubernetes_debs("1.37.2", programs, programs, programs)
    return {path.name.split("_")[0]: path for path in pack(debs, folder)}


def contents(deb: Path) -> dict[str, str]:
    listed = subprocess.run(
        ["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(None, 5) for line in listed.splitlines()]
    return {fields[5]: f"{fields[0]} {fields[1]}" for fields in lines}


def test_the_packages_have_upstreams_names_versions_and_places(programs: Path, tmp_path: Path) -> None:
    debs = made(programs, tmp_path / "out")
    assert {path.name for path in debs.values()} == {
        "kubeadm_1.37.2-1.1_amd64.deb",
        "kubelet_1.37.2-1.1_amd64.deb",
        "kubectl_1.37.2-1.1_amd64.deb",
        "cri-tools_1.36.0-1.1_amd64.deb",
        "kubernetes-cni_1.7.1-1.1_amd64.deb",
    }
    assert contents(debs["kubelet"])["./usr/bin/kubelet"] == "-rwxr-xr-x root/root"
    assert contents(debs["kubelet"])["./usr/lib/systemd/system/kubelet.service"] == "-rw-r--r-- root/root"
    assert "./usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf" in contents(debs["kubeadm"])
    assert "./usr/bin/crictl" in contents(debs["cri-tools"])
    plugins = contents(debs["kubernetes-cni"])
    assert {"./opt/cni/bin/bridge", "./opt/cni/bin/portmap"} <= plugins.keys()
    assert "./opt/cni/bin/manifest.json" not in plugins


def test_a_package_is_the_same_when_it_is_made_again_under_another_umask(
    programs: Path, tmp_path: Path
) -> None:
    first = made(programs, tmp_path / "first")["kubelet"]
    (programs / "kubelet").touch()
    before = os.umask(0o077)
    try:
        second = made(programs, tmp_path / "second")["kubelet"]
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()


def test_the_kubelets_drop_in_gives_the_administrator_the_last_word(programs: Path, tmp_path: Path) -> None:
    deb = made(programs, tmp_path / "out")["kubeadm"]
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path / "root"], check=True)
    text = (tmp_path / "root/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf").read_text()
    files = re.findall(r"^EnvironmentFile=(.*)$", text, re.MULTILINE)
    assert files == ["-/var/lib/kubelet/kubeadm-flags.env", "-/etc/default/kubelet"]
    starts = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert starts[0] == "", "without an empty one first, systemd would refuse two commands"
    assert starts[1].endswith(
        "$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS"
    )


def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "amd64").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    debs = [Deb(name, "1-1", name.title(), {f"usr/bin/{name}": tmp_path / "file"}) for name in ("one", "two")]
    write_index(folder, pack(debs, folder / "amd64"), "A test", Signer(QUIET))
    return folder


def test_the_index_names_every_package_with_place_size_and_checksum(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    listed = parse_index((folder / "Packages").read_text())
    assert [entry.filename for entry in listed] == ["amd64/one_1-1_amd64.deb", "amd64/two_1-1_amd64.deb"]
    for entry in listed:
        content = (folder / entry.filename).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert gzip.decompress((folder / "Packages.gz").read_bytes()) == (folder / "Packages").read_bytes()


def test_the_release_file_pins_the_indexes(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    pinned = re.findall(r"^ ([0-9a-f]{64}) (\d+) (\S+)$", (folder / "Release").read_text(), re.MULTILINE)
    assert {name for _, _, name in pinned} == {"Packages", "Packages.gz"}
    for sha256, size, name in pinned:
        content = (folder / name).read_bytes()
        assert (sha256, int(size)) == (hashlib.sha256(content).hexdigest(), len(content))


def verify(folder: Path, *files: str) -> bool:
    keyring = folder / "keyring.gpg"
    key = subprocess.run(
        ["gpg", "--homedir", folder, "--batch", "--dearmor"],
        input=(folder / "Release.key").read_bytes(),
        capture_output=True,
        check=True,
    )
    keyring.write_bytes(key.stdout)
    paths = [str(folder / name) for name in files]
    return (
        subprocess.run(["gpgv", "--keyring", keyring, *paths], capture_output=True, check=False).returncode
        == 0
    )


def test_both_signatures_verify_with_the_published_key(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    assert verify(folder, "InRelease")
    assert verify(folder, "Release.gpg", "Release")


def test_a_changed_release_file_does_not_verify(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    for name in ("InRelease", "Release"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("A test", "A trap"))
    assert not verify(folder, "InRelease")
    assert not verify(folder, "Release.gpg", "Release")


def test_the_signing_key_is_made_once_and_its_secret_part_is_for_the_owner_only(tmp_path: Path) -> None:
    first = Signer(QUIET).public.read_bytes()
    assert Signer(QUIET).public.read_bytes() == first
    secrets = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600]
