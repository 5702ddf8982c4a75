"""Building Kubernetes' Debian packages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lab.artefacts.debs import kubernetes_debs, pack


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


def test_packages_have_upstreams_names_versions_and_paths(programs: Path, tmp_path: Path) -> None:
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


def test_package_is_reproducible_under_another_umask(programs: Path, tmp_path: Path) -> None:
    first = made(programs, tmp_path / "first")["kubelet"]
    (programs / "kubelet").touch()
    before = os.umask(0o077)
    try:
        second = made(programs, tmp_path / "second")["kubelet"]
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()


def test_administrators_kubelet_arguments_come_last(programs: Path, tmp_path: Path) -> None:
    deb = made(programs, tmp_path / "out")["kubeadm"]
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path / "root"], check=True)
    text = (tmp_path / "root/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf").read_text()
    files = re.findall(r"^EnvironmentFile=(.*)$", text, re.MULTILINE)
    assert files == ["-/var/lib/kubelet/kubeadm-flags.env", "-/etc/default/kubelet"]
    starts = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert starts[0] == "", "systemd rejects a second ExecStart unless an empty one resets the first"
    assert starts[1].endswith(
        "$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS"
    )
