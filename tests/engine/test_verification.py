"""The expected services, with which a verification compares the kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.fast.shell import put, stdout_of
from tools import env


def test_retried_verification_reads_expected_services_again(
    tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer
) -> None:
    """A restarted pod has a new address, so the endpoints of the failed attempt may never come back."""
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as environment:
        verification = "node1: create verification node1"
        environment.failing.add(verification)
        environment.stack.up(fails=True)
        environment.failing.clear()
        environment.calls.clear()
        environment.stack.up()
        assert environment.calls == ["master: update expected_services master", verification]
        environment.calls.clear()
        environment.stack.up("--expect-no-changes")
        assert environment.calls == []


def test_expected_services_prints_only_the_configured_services(tmp_path: Path, cluster: ApiServer) -> None:
    """One call of the real kubectl returns the services and their endpoint slices."""
    namespace = cluster.namespace()
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    for name in ("dns", "mine"):
        body = {"metadata": {"name": name}, "spec": {"ports": ports}}
        cluster.call("POST", f"/api/v1/namespaces/{namespace}/services", body)
    endpoints: list[dict[str, Any]] = [
        {"addresses": ["10.244.0.2"], "conditions": {"ready": True}},
        {"addresses": ["10.244.0.3"], "conditions": {"ready": True}},
        {"addresses": ["10.244.0.4"], "conditions": {"ready": False}},
    ]
    for service, entries in (("dns", endpoints), ("mine", [])):
        labels = {"kubernetes.io/service-name": service}
        metadata = {"name": f"{service}-x", "labels": labels}
        slice_ = {"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": entries}
        cluster.call("POST", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", slice_)
    cluster.call("POST", "/api/v1/nodes", {"metadata": {"name": namespace}})
    condition = {"type": "Ready", "status": "False", "message": 'it says "no"'}
    addresses = [{"type": "InternalIP", "address": address} for address in ("10.0.0.12", "fd00::2")]
    status = {"status": {"conditions": [condition], "addresses": addresses}}
    cluster.call("PATCH", f"/api/v1/nodes/{namespace}/status", status, "application/merge-patch+json")
    put(tmp_path, "/etc/kubernetes/admin.conf", cluster.kubeconfig)
    code = f'kubectl() {{ {cluster.kubectl} "$@"; }}\nNODES_SECONDS=0'
    values = {"SERVICES": f"{namespace}/dns 2", "NODE_NAMES": namespace, "WAIT_SECONDS": "20"}
    items = json.loads(stdout_of("steps/expected_services.sh", code, tmp_path, **values))["items"]
    nodes = {item["metadata"]["name"]: item for item in items if item["kind"] == "Node"}
    assert nodes["no-machine"]["conditions"] == []
    assert nodes[namespace]["addresses"] == "10.0.0.12 fd00::2"
    [found] = nodes[namespace]["conditions"]
    assert {name: found[name] for name in condition} == condition
    by_kind = {item["kind"]: item for item in items if item["kind"] != "Node"}
    assert {kind: item["metadata"]["name"] for kind, item in by_kind.items()} == {
        "Service": "dns",
        "EndpointSlice": "dns-x",
    }
    assert by_kind["Service"]["spec"]["ports"][0]["port"] == 53
    assert by_kind["EndpointSlice"]["endpoints"] == endpoints
    cluster.call("DELETE", f"/api/v1/nodes/{namespace}")
    cluster.forget_namespace(namespace)
