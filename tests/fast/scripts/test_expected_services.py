"""The step `expected_services`: waiting for services, and printing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fast.shell import run, stdout_of

SCRIPT = "steps/expected_services.sh"


def missing(root: Path, lines: list[str], services: str) -> str:
    """The step's report of what is missing when kubectl prints these lines."""
    printed = " ".join(f"'{line}'" for line in lines)
    code = f"""
kubectl() {{ printf '%s\\n' {printed}; }}
create() {{ local detail= objects= nodes_checked=$SECONDS; all_ready || :; printf '%s' "$detail"; }}
"""
    return stdout_of(SCRIPT, code, root, SERVICES=services)


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
    output = stdout_of(SCRIPT, code, tmp_path, SERVICES="kube-system/kube-dns 2", WAIT_SECONDS="30")
    assert json.loads(output) == {
        "items": [{"kind": "EndpointSlice"}, {"kind": "Service", "a": "b c"}],
    }
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_pods_are_moved_from_dead_nodes_only(tmp_path: Path) -> None:
    code = """
kubectl() {
  case $* in
    *'get deployments,services,endpointslices'*) echo endpoints kube-system/kube-dns ;;
    *'get nodes'*) printf '%s\\n' 'node1 True' 'node2 Unknown' 'node3 False' ;;
    *) echo "$*" >&5 ;;
  esac
}
exec 5>&1
"""
    values = {"SERVICES": "kube-system/kube-dns 1", "WAIT_SECONDS": "2"}
    done = run(SCRIPT, code, tmp_path, 1, **values)
    assert "kube-system/kube-dns has 0 ready endpoints, not 1" in done.stderr
    on_node2 = "--field-selector spec.nodeName=node2 --wait=false"
    assert done.stdout.splitlines() == [
        f"-n kube-system delete pods --selector k8s-app=kube-dns {on_node2}",
        f"-n default delete pods --selector app.kubernetes.io/name=nginx {on_node2}",
    ]
