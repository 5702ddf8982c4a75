"""Signed RPM repositories."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from common.progress import Progress
from lab import requirements
from lab.artefacts import rpms
from lab.artefacts.aptrepo import Signer
from lab.artefacts.debs import kubernetes_debs
from lab.artefacts.debs import pack as pack_debs
from lab.artefacts.rpmrepo import write_index
from tests.fast.shell import home_of, stdout_of

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)


def require_rpm_tools() -> None:
    for program in ("rpmbuild", "rpmsign", "createrepo_c"):
        if requirements.find(program) is None:
            pytest.skip(f"{program} is missing: .venv/bin/python -m lab requirements --install --family rpm")


def repository(tmp_path: Path) -> Path:
    require_rpm_tools()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("kubeadm", "kubelet", "kubectl", "crictl", "bridge"):
        (programs / name).write_text(f"#!/bin/sh\necho {name}\n")
        (programs / name).chmod(0o755)
    folder = tmp_path / "repository"
    folder.mkdir()
    (tmp_path / "debs").mkdir()
    debs = pack_debs(kubernetes_debs("1.37.2", programs, programs, programs), tmp_path / "debs")
    write_index(folder, rpms.pack(debs, folder, {"usr", "usr/bin", "etc", "var", "var/lib"}), Signer(QUIET))
    return folder


def rpm(*arguments: str | Path) -> str:
    return subprocess.run(["rpm", *arguments], capture_output=True, text=True, check=True).stdout


def test_kubernetes_rpms_match_upstreams_names_and_versions(tmp_path: Path) -> None:
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


def test_index_and_rpms_verify_with_the_published_key(tmp_path: Path) -> None:
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
    signed = (repodata / "repomd.xml.asc", repodata / "repomd.xml")
    gpgv: list[str | Path] = ["gpgv", "--keyring", keyring, *signed]
    assert subprocess.run(gpgv, capture_output=True, check=False).returncode == 0
    index = ET.parse(repodata / "repomd.xml")
    kinds = {element.get("type") for element in index.getroot() if element.get("type")}
    assert {"primary", "filelists"} <= kinds


def test_key_id_is_found_before_the_import(tmp_path: Path) -> None:
    require_rpm_tools()
    key = Signer(QUIET).public
    shown: list[str | Path] = ["gpg", "--homedir", tmp_path, "--batch", "--with-colons", "--show-keys", key]
    listed = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    identity = next(line.split(":")[4] for line in listed.splitlines() if line.startswith("pub:"))
    code = f"create() {{ rpm_keys {key}; }}\n"
    name = stdout_of("steps/packages.sh", code, tmp_path, REPOSITORY_RPM="x").strip()
    assert name.startswith(f"gpg-pubkey-{identity[-8:].lower()}-")
    assert not (home_of(tmp_path) / "keys").exists()
    rpm("--dbpath", tmp_path / "database", "--import", key)
    assert rpm("--dbpath", tmp_path / "database", "-qa", "gpg-pubkey").strip() == name
