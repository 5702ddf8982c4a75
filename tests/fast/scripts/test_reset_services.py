"""Restoring services and containerd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, record, run, stdout_of

SERVICES = "lib/reset/services.sh"


def test_existing_containerd_keeps_its_own_mirrors(tmp_path: Path) -> None:
    for registry, text in (("docker.io", "# kubeadm-ipvs\n"), ("example.com", "# mine\n")):
        put(tmp_path, f"etc/containerd/certs.d/{registry}/hosts.toml", text)
    record(tmp_path, units="containerd disabled inactive\n", image_list="")
    code = """
unit_active() { false; }
restore_file() { :; }
systemctl() { echo "$*"; }
create() { restore_runtime; }
"""
    assert stdout_of(SERVICES, code, tmp_path).splitlines() == [
        "stop containerd",
        "disable --quiet containerd",
    ]
    assert [path.name for path in (tmp_path / "etc/containerd/certs.d").iterdir()] == ["example.com"]


@pytest.mark.parametrize(
    ("unit", "recorded"),
    [("containerd disabled inactive", True), ("kubelet not-found inactive", False), ("ufw  inactive", False)],
)
def test_missing_unit_is_not_recorded(tmp_path: Path, unit: str, recorded: bool) -> None:
    record(tmp_path, units=f"{unit}\n")
    code = f"create() {{ unit_recorded {unit.split()[0]}; }}\n"
    run(SERVICES, code, tmp_path, 0 if recorded else 1)


@pytest.mark.parametrize(
    ("namespaces", "removed"),
    [("default\n", True), ("default\nk8s.io\n", False), (None, False)],
)
def test_existing_containerd_keeps_its_images_and_namespaces(
    tmp_path: Path, namespaces: str | None, removed: bool
) -> None:
    files = {} if namespaces is None else {"containerd_namespaces": namespaces}
    record(tmp_path, image_list="mine\n", **files)
    code = """
ctr() {
  case $* in
    'namespaces ls -q') printf '%s\\n' default k8s.io ;;
    '-n k8s.io images ls -q') printf '%s\\n' mine pause nginx ;;
    *) echo "$*" >&3 ;;
  esac
}
create() { remove_images 3>&1; }
"""
    calls = stdout_of(SERVICES, code, tmp_path).splitlines()
    assert calls == ["-n k8s.io images rm --sync pause nginx"] + ["namespaces rm k8s.io"] * removed
