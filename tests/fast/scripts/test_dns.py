"""Spreading CoreDNS's pods over the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, run

SCRIPT = "lib/dns.sh"
CONTROL = '{"kubernetes.io/hostname":"x","node-role.kubernetes.io/control-plane":""}'
TAINT = "node-role.kubernetes.io/control-plane:NoSchedule "


def node(name: str, *, ready: str = "True", cordoned: str = "", taints: str = "") -> str:
    """A line about a node; control planes have names with `master`."""
    labels = CONTROL if "master" in name else '{"a":"b"}'
    return f"{name}|{ready}|{cordoned}|{taints}|{labels}"


MASTER = node("master", taints=TAINT)


def moves(root: Path, nodes: list[str], pods: list[str], scheduled: list[str] | None = None) -> list[str]:
    """The nodes that pods were moved away from.

    Args:
        root: The root folder.
        nodes: Lines about nodes.
        pods: The pods' nodes.
        scheduled: The nodes of the pods that replace deleted ones, in this order.
    """
    put(root, "nodes", "\n".join(nodes) + "\n")
    put(root, "scheduled", "".join(f"{place}\n" for place in scheduled or []))
    lines = [f"Deployment|{len(pods)}|coredns|||"]
    lines += [f"Pod||dns-{number}|{place}|True|" for number, place in enumerate(pods)]
    put(root, "objects", "\n".join(lines) + "\n")
    code = f"""
kubectl() {{
  case $* in
    *"get nodes"*) cat {root}/nodes ;;
    *"get deployments,pods"*) cat {root}/objects ;;
    *"delete pod"*)
      sed -n "s/^Pod||$5|\\([^|]*\\)|.*/\\1/p" {root}/objects >>{root}/moves
      sed -i "s/^\\(Pod||$5\\)|[^|]*|/\\1-x|$(head -n 1 {root}/scheduled)|/" {root}/objects
      sed -i 1d {root}/scheduled
      ;;
  esac
}}
create() {{ spread_dns 5; }}
"""
    put(root, "moves")
    (root / "stderr").write_text(run(SCRIPT, code, root).stderr)
    return (root / "moves").read_text().split()


WORKERS = [node("node1"), node("node2")]


@pytest.mark.parametrize(
    ("nodes", "pods", "scheduled", "expected"),
    [
        # A new cluster: both move, one after the other.
        ([MASTER, *WORKERS], ["master", "master"], ["node1", "node2"], ["master", "master"]),
        ([MASTER, *WORKERS], ["node1", "master"], ["node2"], ["master"]),
        ([MASTER, *WORKERS], ["node1", "node2"], [], []),
        ([MASTER, *WORKERS], ["node1", "node1"], ["node2"], ["node1"]),
        # One worker: one pod each, because two on the worker would be lost together.
        ([MASTER, node("node1")], ["master", "master"], ["node1"], ["master"]),
        ([MASTER, node("node1")], ["node1", "node1"], ["master"], ["node1"]),
        ([node("master")], ["master", "master"], [], []),
        # Nodes that can't take it.
        ([MASTER, node("node1", ready="Unknown")], ["master", "master"], [], []),
        ([MASTER, node("node1", cordoned="true")], ["master", "master"], [], []),
        ([MASTER, node("node1", taints="gpu:NoSchedule ")], ["master", "master"], [], []),
        ([MASTER, node("node1", taints="gpu:PreferNoSchedule ")], ["master"] * 2, ["node1"], ["master"]),
        # Several control planes.
        ([MASTER, node("master2", taints=TAINT)], ["master", "master"], ["master2"], ["master"]),
        (
            [MASTER, node("master2", taints=TAINT), node("node1")],
            ["master", "master2"],
            ["node1"],
            ["master"],
        ),
        # More pods than nodes, and a single pod, which can't move without a gap.
        ([MASTER, node("node1")], ["master", "master", "node1"], [], []),
        ([MASTER, node("node1")], ["master"], [], []),
    ],
)
def test_pods_leave_crowded_nodes_and_control_planes(
    tmp_path: Path, nodes: list[str], pods: list[str], scheduled: list[str], expected: list[str]
) -> None:
    assert moves(tmp_path, nodes, pods, scheduled) == expected


def test_unwilling_scheduler_ends_the_moves(tmp_path: Path) -> None:
    assert moves(tmp_path, [MASTER, *WORKERS], ["master"] * 2, ["master"] * 9) == ["master"] * 2
    assert "stays on master: the scheduler doesn't choose another node" in (tmp_path / "stderr").read_text()


def test_terminating_pod_on_a_dead_node_is_ignored(tmp_path: Path) -> None:
    code = """
kubectl() {
  case $* in
    *",pods"*)
      printf '%s\\n' 'Deployment|2|coredns' 'Pod||a|node1|True|' 'Pod||b|node2|True|' 'Pod||c|node3|True|2027'
      ;;
    *) printf '%s\\n' 'node1|True|||{}' 'node2|True|||{}' 'node3|Unknown|||{}' ;;
  esac
}
create() { spread_dns 0; echo "moved $moved"; }
"""
    assert "moved 0" in run(SCRIPT, code, tmp_path).stdout


@pytest.mark.parametrize(
    "objects",
    ["", "Deployment|2|coredns|||\nPod||a|master|True|\nPod||b|master|False|\n"],
    ids=["no CoreDNS", "one of two is not ready"],
)
def test_pods_stay_unless_another_serves(tmp_path: Path, objects: str) -> None:
    put(tmp_path, "objects", objects)
    code = f"""
kubectl() {{
  case $* in
    *delete*) touch {tmp_path}/moved ;;
    *,pods*) cat {tmp_path}/objects ;;
  esac
}}
create() {{ spread_dns 0; }}
"""
    run(SCRIPT, code, tmp_path)
    assert not (tmp_path / "moved").exists()
