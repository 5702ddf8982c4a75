"""The step `expected_services`: waiting for services, and printing them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.fast.shell import run, stdout_of

SCRIPT = "steps/expected_services.sh"


def missing(root: Path, lines: list[str], services: str, nodes: str = "") -> str:
    """The step's report of what is missing when kubectl prints these lines."""
    printed = shlex.join(lines)
    code = f"""
kubectl() {{ printf '%s\\n' {printed}; }}
create() {{ local detail= objects= evicted=$SECONDS; all_ready || :; printf '%s' "$detail"; }}
"""
    return stdout_of(SCRIPT, code, root, SERVICES=services, NODE_NAMES=nodes)


@pytest.mark.parametrize(
    ("dns", "text"),
    [
        ("true,10.244.0.2 true,10.244.0.3", ""),
        ("true,10.244.0.2 false,10.244.0.3", "kube-system/kube-dns has 1 ready endpoints, not 2"),
    ],
)
def test_missing_endpoints_are_reported(tmp_path: Path, dns: str, text: str) -> None:
    slices = ["default/kubernetes true,192.0.2.1", f"kube-system/kube-dns {dns}", "x/other"]
    services = "default/kubernetes 1\nkube-system/kube-dns 2"
    assert missing(tmp_path, [f"endpoints {line}" for line in slices], services) == text


@pytest.mark.parametrize(
    ("endpoints", "text"),
    [
        ("true,10.244.0.2 true,10.244.0.3 true,10.244.1.4", ""),
        ("true,10.244.0.2 true,10.244.0.3", "kube-system/kube-dns has 2 ready endpoints, not 3"),
    ],
)
def test_dns_endpoints_follow_the_deployments_replicas(tmp_path: Path, endpoints: str, text: str) -> None:
    lines = ["deployed kube-system/coredns 2,2,3,3,3,3", f"endpoints kube-system/kube-dns {endpoints}"]
    assert missing(tmp_path, lines, "kube-system/kube-dns 2") == text


@pytest.mark.parametrize(
    ("deployment", "numbers", "text"),
    [
        ("default/nginx", "3,3,2,2,2,2", ""),
        ("default/nginx", "4,3,2,2,2,2", "is in progress (2 of 2 pods updated, 2 available, 2 in all)"),
        ("default/nginx", "4,4,2,1,3,2", "is in progress (1 of 2 pods updated, 2 available, 3 in all)"),
        ("kube-system/coredns", "1,1,2,2,2,", "is in progress (2 of 2 pods updated, 0 available, 2 in all)"),
        ("x/other", "4,3,2,1,3,2", ""),
    ],
)
def test_rollouts_are_waited_for(tmp_path: Path, deployment: str, numbers: str, text: str) -> None:
    lines = [f"deployed {deployment} {numbers}", "endpoints default/nginx true,10.244.1.2 true,10.244.2.2"]
    expected = f"the rollout of {deployment} {text}" if text else ""
    assert missing(tmp_path, lines, "default/nginx 2") == expected


def test_output_comes_from_the_first_complete_response(tmp_path: Path) -> None:
    """On a busy host, CoreDNS' pods come and go, so another request could return a different state."""
    code = f"""
pause() {{ :; }}
kubectl() {{
  echo "$*" >>{tmp_path}/calls
  [[ -e {tmp_path}/second ]] || {{ touch {tmp_path}/second; return 1; }}
  echo endpoints kube-system/kube-dns true,10.244.0.2 true,10.244.0.3
  echo 'object kube-system/kube-dns {{"kind": "EndpointSlice"}}'
  echo 'object default/mine {{"kind": "Service", "a": "b c"}}'
  echo 'object kube-system/kube-dns {{"kind": "Service", "a": "b c"}}'
}}
"""
    values = {"SERVICES": "kube-system/kube-dns 2", "NODE_NAMES": "", "WAIT_SECONDS": "30"}
    output = stdout_of(SCRIPT, code, tmp_path, **values)
    assert json.loads(output) == {
        "items": [{"kind": "EndpointSlice"}, {"kind": "Service", "a": "b c"}],
    }
    assert (tmp_path / "calls").read_text().count("get nodes,deployments,services,endpointslices") == 2


def node(name: str, ready: str) -> str:
    """A line with a node as kubectl prints it."""
    item = {
        "kind": "Node",
        "metadata": {"name": name},
        "conditions": [{"type": "Ready", "status": ready, "message": 'says "hello"\nto you'}],
        "addresses": "192.0.2.1",
    }
    return f"node {name} ={ready} {json.dumps(item)}"


def test_node_that_stays_not_ready_is_left_out_and_printed(tmp_path: Path) -> None:
    for name in ("before", "after"):
        lines = [node("master", "True"), node("node1", "Unknown" if name == "before" else "True")]
        (tmp_path / name).write_text("\n".join([*lines, node("node2", "Unknown"), ""]))
    code = f"""
NODES_SECONDS=2
spread_dns() {{ :; }}
evict_from_dead_nodes() {{ :; }}
kubectl() {{ if [[ -e {tmp_path}/second ]]; then cat {tmp_path}/after; else cat {tmp_path}/before; fi; }}
pause() {{ touch {tmp_path}/second; sleep 0.2; }}
"""
    values = {"SERVICES": "", "NODE_NAMES": "master\nnode1\nnode2\ndeleted", "WAIT_SECONDS": "60"}
    done = run(SCRIPT, code, tmp_path, **values)
    assert [line.split("the node ")[1] for line in done.stderr.splitlines()] == [
        f"{name} isn't Ready: the other hosts' verification leaves it out" for name in ("node2", "deleted")
    ]
    items = json.loads(done.stdout)["items"]
    assert {item["metadata"]["name"]: item["conditions"][0]["status"] for item in items} == {
        "master": "True",
        "node1": "True",
        "node2": "Unknown",
    }


def test_every_node_gets_time_to_become_ready(tmp_path: Path) -> None:
    lines = [node("master", "True"), node("node1", "False"), node("dead", "Unknown")]
    assert missing(tmp_path, lines, "", "master\nnode1") == "the node node1 isn't Ready"


def test_pods_are_moved_from_dead_nodes_only(tmp_path: Path) -> None:
    code = """
kubectl() {
  case $* in
    *'get nodes,deployments,services,endpointslices'*)
      echo endpoints kube-system/kube-dns
      printf 'node %s {}\\n' 'node1 =True' 'node2 =Unknown' 'node3 =False'
      ;;
    *) echo "$*" >&5 ;;
  esac
}
exec 5>&1
"""
    values = {"SERVICES": "kube-system/kube-dns 1", "NODE_NAMES": "", "WAIT_SECONDS": "2"}
    done = run(SCRIPT, code, tmp_path, 1, **values)
    assert "kube-system/kube-dns has 0 ready endpoints, not 1" in done.stderr
    on_node2 = "--field-selector spec.nodeName=node2 --wait=false"
    assert done.stdout.splitlines() == [
        f"-n kube-system delete pods --selector k8s-app=kube-dns {on_node2}",
        f"-n default delete pods --selector app.kubernetes.io/name=nginx {on_node2}",
    ]
