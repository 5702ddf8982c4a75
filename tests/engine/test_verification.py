"""What a proof is held against, by the real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.fast.shell import bash, code, with_lib
from tools import env


def test_a_proof_that_failed_is_held_against_what_is_promised_by_then(
    tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer
) -> None:
    """A pod that was made anew has another address: what was promised before would never be there again."""
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as there:
        failing = "node1: create verification node1"
        there.dead.add(failing)
        there.stack.up(fails=True)
        there.dead.clear()
        there.asked.clear()
        there.stack.up()
        assert there.asked == ["master: update expected_services master", failing]
        there.asked.clear()
        there.stack.up("--expect-no-changes")
        assert there.asked == []


def test_the_promise_is_what_kubectl_tells_of_the_services_to_be_proved(
    tmp_path: Path, cluster: ApiServer
) -> None:
    """One call of the real kubectl gives both: what is judged, and the objects themselves."""
    space = cluster.namespace()
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    for name in ("dns", "mine"):
        body = {"metadata": {"name": name}, "spec": {"ports": ports}}
        cluster.call("POST", f"/api/v1/namespaces/{space}/services", body)
    endpoints: list[dict[str, Any]] = [
        {"addresses": ["10.244.0.2"], "conditions": {"ready": True}},
        {"addresses": ["10.244.0.3"], "conditions": {"ready": True}},
        {"addresses": ["10.244.0.4"], "conditions": {"ready": False}},
    ]
    for service, told in (("dns", endpoints), ("mine", [])):
        labels = {"kubernetes.io/service-name": service}
        metadata = {"name": f"{service}-x", "labels": labels}
        slice_ = {"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": told}
        cluster.call("POST", f"/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices", slice_)
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig)
    script = code("steps/expected_services.sh")
    script = script.replace("/etc/kubernetes/admin.conf", str(tmp_path / "kubeconfig"))
    script += f'kubectl() {{ {cluster.kubectl} "$@"; }}\n'
    done = bash(with_lib(script, SERVICES=f"'{space}/dns 2'", WAIT_SECONDS="20"), home=tmp_path)
    by_kind = {item["kind"]: item for item in json.loads(done.stdout)["items"]}
    assert {kind: item["metadata"]["name"] for kind, item in by_kind.items()} == {
        "Service": "dns",
        "EndpointSlice": "dns-x",
    }
    assert by_kind["Service"]["spec"]["ports"][0]["port"] == 53
    assert by_kind["EndpointSlice"]["endpoints"] == endpoints
    cluster.forget_namespace(space)
