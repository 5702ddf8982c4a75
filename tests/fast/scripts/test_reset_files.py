"""Removing and restoring files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, record, run

FILES = "lib/reset/files.sh"
TOOLS = """
have() { true; }
restore_file_if_present() { :; }
tar() { :; }
systemctl() { :; }
"""


def files(root: Path, function: str, **recorded: str) -> str:
    """Run a function with this record and return its messages."""
    record(root, **({"copied": "", "absent": "", "present": "", "units": ""} | recorded))
    return run(FILES, f"{TOOLS}create() {{ {function}; }}\n", root).stderr


def test_shared_folder_loses_only_empty_folders(tmp_path: Path) -> None:
    cni = tmp_path / "var/lib/cni"
    (cni / "networks/cbr0").mkdir(parents=True)
    lease = put(tmp_path, "var/lib/cni/networks/bridge/10.4.0.2")
    files(tmp_path, "remove_if_empty /var/lib/cni", absent="/var/lib/cni\n")
    assert sorted(path.name for path in cni.rglob("*")) == ["10.4.0.2", "bridge", "networks"]
    lease.unlink()
    files(tmp_path, "remove_if_empty /var/lib/cni", absent="/var/lib/cni\n")
    assert not cni.exists()


def test_folder_that_existed_before_stays(tmp_path: Path) -> None:
    cni = tmp_path / "var/lib/cni"
    cni.mkdir(parents=True)
    files(tmp_path, "remove_if_empty /var/lib/cni", absent="/elsewhere\n")
    assert cni.exists()


def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    unfinished = put(tmp_path, "etc/apt/keyrings/.kubeadm-ipvs.key.asc")
    users = put(tmp_path, "etc/apt/.kubeadm")
    files(tmp_path, "remove_unfinished_files /etc")
    assert not unfinished.exists()
    assert users.exists()


@pytest.mark.parametrize("before", [False, True])
def test_cni_folder_that_containerd_watches_stays(tmp_path: Path, before: bool) -> None:
    for name in ("10-flannel.conflist", "10-theirs.conflist"):
        put(tmp_path, f"etc/cni/net.d/{name}")
    folder = tmp_path / "etc/cni/net.d"
    inode = folder.stat().st_ino
    files(tmp_path, "remove_node_files", absent="" if before else "/etc/cni\n")
    assert [path.name for path in folder.iterdir()] == ["10-theirs.conflist"]
    assert folder.stat().st_ino == inode


def test_etcd_data_is_removed_from_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "var/lib/etcd/member/snap").mkdir(parents=True)
    put(tmp_path, "var/lib/etcd/mine")
    messages = files(tmp_path, "remove_node_files", present="/var/lib/etcd\n")
    assert "/var/lib/etcd existed before and stays" in messages
    assert [path.name for path in (tmp_path / "var/lib/etcd").iterdir()] == ["mine"]


def test_files_of_a_failed_kubeadm_reset_are_removed(tmp_path: Path) -> None:
    node = (
        "etc/kubernetes/pki/ca.key",
        "etc/kubernetes/manifests/etcd.yaml",
        "etc/kubernetes/admin.conf",
        "var/lib/kubelet/pki/kubelet.key",
        "var/lib/kubelet/config.yaml",
        "var/lib/kubelet/kubeadm-flags.env",
    )
    users = ("etc/kubernetes/mine.yaml", "var/lib/kubelet/mine")
    for name in (*node, *users):
        put(tmp_path, name)
    files(tmp_path, "remove_node_files")
    assert [name for name in (*node, *users) if (tmp_path / name).exists()] == list(users)
    assert (tmp_path / "etc/kubernetes/manifests").is_dir()


@pytest.mark.parametrize(("unit", "stays"), [("disabled inactive", False), ("not-found inactive", True)])
def test_data_of_a_foreign_containerd_stays(tmp_path: Path, unit: str, stays: bool) -> None:
    folder = tmp_path / "var/lib/containerd"
    folder.mkdir(parents=True)
    recorded = {"absent": "/var/lib/containerd\n", "units": f"containerd {unit}\n"}
    messages = files(tmp_path, "remove_unfinished_files() { :; }; restore_files", **recorded)
    assert folder.exists() == stays
    assert ("somebody else has installed containerd" in messages) == stays


def test_files_are_restored_or_removed_as_recorded(tmp_path: Path) -> None:
    config = put(tmp_path, "etc/selinux/config", "before\n")
    code = """
create() {
  tar -cf "$RECORD/files.tar" -C "$ROOT" etc/selinux/config
  echo after >"$ROOT/etc/selinux/config"
  restore_file /etc/selinux/config
  restore_file /etc/crictl.yaml
}
"""
    added = put(tmp_path, "etc/crictl.yaml")
    record(tmp_path, absent="/etc/crictl.yaml\n")
    run("lib/record.sh", code, tmp_path)
    assert config.read_text() == "before\n"
    assert not added.exists()
