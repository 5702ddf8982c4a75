"""The script `nodes`: waiting until all nodes are Ready, labels and taints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.fast.shell import put, run

NODES = "steps/nodes.sh"

PREVIOUS = {"label": "disk rack", "taint": "flaky:NoExecute gone:NoSchedule"}
PRESENT = "flaky:NoExecute node.kubernetes.io/not-ready:NoSchedule "


@pytest.mark.parametrize(
    ("verb", "wanted", "command"),
    [
        ("label", "disk=ssd", "label --overwrite node node1 disk=ssd rack-"),
        ("label", "a=,b=x", "label --overwrite node node1 a= b=x disk- rack-"),
        ("label", "-", "label --overwrite node node1 disk- rack-"),
        ("taint", "new=x:NoSchedule", "taint --overwrite node node1 new=x:NoSchedule flaky:NoExecute-"),
        (
            "taint",
            "new=x:NoSchedule,flaky=y:NoExecute",
            "taint --overwrite node node1 new=x:NoSchedule flaky=y:NoExecute",
        ),
        ("taint", "-", "taint --overwrite node node1 flaky:NoExecute-"),
    ],
)
def test_own_labels_and_taints_are_removed(tmp_path: Path, verb: str, wanted: str, command: str) -> None:
    code = f"""
kubectl() {{ printf '%s\\n' "$*" >&2; }}
create() {{ set_own node1 {verb} '{wanted}' '{PREVIOUS[verb]}' '{PRESENT}'; }}
"""
    calls = run(NODES, code, tmp_path).stderr.splitlines()
    assert calls[1] == command
    # So that names are known as ours even if the run ends between the two.
    stored = f"annotate --overwrite node node1 kubeadm-ipvs/{verb}s="
    assert calls[0].startswith(f"{stored}{PREVIOUS[verb]}")
    assert calls[2].startswith(stored)
    assert "rack" not in calls[2] and "gone" not in calls[2]


@pytest.mark.parametrize("previous", ["", " "])
def test_node_without_labels_or_taints_is_left_alone(tmp_path: Path, previous: str) -> None:
    code = f"kubectl() {{ echo called; }}\ncreate() {{ set_own node1 label - '{previous.strip()}' ''; }}\n"
    assert run(NODES, code, tmp_path).stdout == ""


def cluster(log: Path, nodes: str, *, ready: bool = True) -> str:
    """A kubectl that logs its calls and knows these nodes.

    Args:
        log: Where each call is written.
        nodes: What `get nodes` prints.
        ready: Whether all nodes are Ready.
    """
    return f"""
kubectl() {{
  echo "$*" >>{log}
  case $* in
    wait*) {"true" if ready else "return 1"} ;;
    *"get nodes"*) printf '%s\\n' {shlex.quote(nodes)} ;;
  esac
}}
"""


def test_one_request_reads_all_nodes(tmp_path: Path) -> None:
    log = put(tmp_path, "calls")
    nodes = "\n".join(f"node{number} disk=ssd -" for number in range(1, 101))
    known = "\n".join(f"node{number}|disk||" for number in range(1, 101))
    done = run(NODES, cluster(log, known), tmp_path, NODES=nodes, READY_SECONDS="60")
    calls = log.read_text().splitlines()
    assert calls[0].startswith("wait --for=condition=Ready --timeout=60s node/node1 node/node2 ")
    assert calls[0].endswith(" node/node100")
    assert sum(call.startswith("get ") for call in calls) == 1
    assert "node1: step: 100 nodes are Ready\n" in done.stderr


def test_each_node_gets_its_own_labels_and_taints(tmp_path: Path) -> None:
    log = put(tmp_path, "calls")
    taint = "node-role.kubernetes.io/control-plane:NoSchedule"
    nodes = f"master - {taint}\nnode.1 disk=ssd -\nnode10 - -\nnode11 - -"
    # In another order, with nodes that aren't in the list, and names that begin the same way.
    known = [
        "node10|rack||",
        "other|mine||",
        "node-1|mine||",
        "node11|||flaky:NoExecute ",
        "master||old:NoSchedule|old:NoSchedule ",
        "node.1|||",
    ]
    run(NODES, cluster(log, "\n".join(known)), tmp_path, NODES=nodes, READY_SECONDS="60")
    calls = [call for call in log.read_text().splitlines() if call.startswith(("label", "taint"))]
    assert calls == [
        f"taint --overwrite node master {taint} old:NoSchedule-",
        "label --overwrite node node.1 disk=ssd",
        "label --overwrite node node10 rack-",
    ]


def test_nodes_that_arent_ready_are_listed_with_reasons(tmp_path: Path) -> None:
    log = put(tmp_path, "calls")
    nodes = "master - -\nnode1 - -\nnode2 - -\nnode3 - -"
    known = [
        "master True kubelet is posting",
        "node1 False cni plugin: not initialized",
        "node2 Unknown ",
        "other False x",
    ]
    code = cluster(log, "\n".join(known), ready=False)
    done = run(NODES, code, tmp_path, 1, NODES=nodes, READY_SECONDS="1")
    assert done.stderr.splitlines() == [
        "node1: step: node1: cni plugin: not initialized",
        "node1: step: node2: ",
        "node1: step: node3: the cluster has no such node",
        "node1: step: FAILED: not all nodes are Ready after 1 s; the lines above list those that aren't",
        "node1: step: next: check journalctl -u kubelet on them",
    ]


def test_unreachable_api_server_lists_every_node(tmp_path: Path) -> None:
    code = "kubectl() { echo 'The connection was refused' >&2; return 1; }\n"
    done = run(NODES, code, tmp_path, 1, NODES="master - -\nnode1 - -", READY_SECONDS="1")
    assert "not all nodes are Ready after 1 s" in done.stderr
    assert "next: check journalctl -u kubelet on them" in done.stderr
