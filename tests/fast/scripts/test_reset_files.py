"""Removing and restoring files."""

from __future__ import annotations

import os
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


PODS = (
    "var/log/pods/kube-system_etcd-master_0a1b",
    "var/log/pods/default_web_77",
    "var/log/containers/web.log",
)


@pytest.mark.parametrize("before", [False, True])
def test_pod_logs_are_removed_except_earlier_ones(tmp_path: Path, before: bool) -> None:
    theirs = "var/log/pods/default_theirs_1"
    for name in (*PODS, *([theirs] if before else [])):
        (tmp_path / name).mkdir(parents=True)
    record(tmp_path, pod_logs=f"/{theirs}\n" if before else "")
    absent = "" if before else "/var/log/pods\n/var/log/containers\n"
    files(tmp_path, "remove_pod_logs", absent=absent)
    left = [path.relative_to(tmp_path) for path in (tmp_path / "var/log").rglob("*")]
    assert sorted(map(str, left)) == ["var/log/containers", "var/log/pods", theirs] * before
    files(tmp_path, "remove_pod_logs", absent=absent)


def test_pod_logs_are_removed_by_age_without_a_list(tmp_path: Path) -> None:
    theirs = tmp_path / "var/log/pods/default_theirs_1"
    ours = tmp_path / "var/log/pods/default_web_77"
    for folder, age in ((theirs, 1000), (ours, 3000)):
        folder.mkdir(parents=True)
        os.utime(folder, (age, age))
    os.utime(record(tmp_path, packages="bash\n") / "packages", (2000, 2000))
    files(tmp_path, "remove_pod_logs")
    assert (theirs.exists(), ours.exists()) == (True, False)


SYSTEMCTL = 'systemctl() { echo "$*" >"$ROOT/called"; }'
LOGIND = "etc/systemd/logind.conf.d/99-kubelet.conf"


@pytest.mark.parametrize(
    ("recorded", "written", "left"),
    [("absent", 3000, False), ("unknown", 3000, False), ("unknown", 1000, True)],
)
def test_kubelets_logind_file_is_removed(tmp_path: Path, recorded: str, written: int, left: bool) -> None:
    file = put(tmp_path, LOGIND)
    os.utime(file, (written, written))
    os.utime(record(tmp_path, packages="bash\n") / "packages", (2000, 2000))
    absent = f"/{LOGIND}\n/etc/systemd/logind.conf.d\n" if recorded == "absent" else ""
    files(tmp_path, f"{SYSTEMCTL}; restore_logind", absent=absent)
    assert file.exists() == left
    assert file.parent.exists() == (recorded == "unknown")
    assert (tmp_path / "called").exists() != left


def test_recorded_logind_file_is_restored(tmp_path: Path) -> None:
    file = put(tmp_path, LOGIND, "before\n")
    record(tmp_path, present=f"/{LOGIND}\n", absent="")
    code = f"""
create() {{
  tar -cf "$RECORD/files.tar" -C "$ROOT" {LOGIND}
  {SYSTEMCTL}
  restore_logind
  [[ ! -e $ROOT/called ]]
  echo after >"$ROOT/{LOGIND}"
  restore_logind
}}
"""
    run(FILES, code, tmp_path)
    assert (tmp_path / "called").read_text() == "kill --signal=HUP systemd-logind\n"
    assert file.read_text() == "before\n"
