"""Resetting a node."""

from __future__ import annotations

from pathlib import Path

from tests.fast.shell import home_of, put, run, stdout_of

KUBEADM = "lib/reset/kubeadm.sh"


def test_only_pod_mounts_are_unmounted(tmp_path: Path) -> None:
    (home_of(tmp_path) / "node.started").touch()
    pods = (
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/0a1b/rootfs",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/9cea/shm",
        "/var/lib/kubelet/pods/7/volumes/token",
    )
    others = (
        "/run/containerd/io.containerd.runtime.v2.task/default/mine/rootfs",
        "/run/docker/mine/shm",
        "/var/lib/kubelet-of-mine",
    )
    put(tmp_path, "proc/mounts", "".join(f"tmpfs {path} tmpfs rw 0 0\n" for path in (*others, *pods)))
    stubs = (
        "remove_pods",
        "remove_ipvs_services",
        "remove_iptables_rules",
        "remove_ipsets",
        "remove_links",
        "remove_node_files",
        "systemctl",
    )
    code = "".join(f"{name}() {{ :; }}\n" for name in stubs)
    code += 'umount() { echo "$1"; }\ncreate() { reset_node; }\n'
    assert sorted(stdout_of(KUBEADM, code, tmp_path).splitlines()) == sorted(pods)


def test_kubeadm_reset_names_the_runtime(tmp_path: Path) -> None:
    code = """
have() { true; }
unit_active() { true; }
timeout() { echo "$*" >&3; }
create() { run_kubeadm_reset 3>&1; }
"""
    assert "--cri-socket unix:///run/containerd/containerd.sock" in run(KUBEADM, code, tmp_path).stdout
