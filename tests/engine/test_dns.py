"""The requests with which CoreDNS's pods are spread, sent by the real kubectl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.api_server import ApiServer
from tests.fast.shell import put, stdout_of

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
READY = {"type": "Ready", "status": "True"}
LABELS = {"k8s-app": "kube-dns"}
CONTAINERS = [{"name": "coredns", "image": "coredns"}]


def test_pod_on_the_control_plane_is_found(tmp_path: Path, cluster: ApiServer) -> None:
    nodes: dict[str, dict[str, Any]] = {
        "dns-master": {
            "metadata": {"labels": {CONTROL_PLANE: ""}},
            "spec": {"taints": [{"key": CONTROL_PLANE, "effect": "NoSchedule"}]},
        },
        "dns-node1": {"spec": {"taints": [{"key": "slow", "effect": "PreferNoSchedule"}]}},
        "dns-node2": {"spec": {"unschedulable": True}},
    }
    for name, body in nodes.items():
        metadata = {**body.get("metadata", {}), "name": name}
        node = {**body, "metadata": metadata, "status": {"conditions": [READY]}}
        cluster.call("POST", "/api/v1/nodes", node)
    pods = "/api/v1/namespaces/kube-system/pods"
    for name, place in (("dns-a", "dns-master"), ("dns-b", "dns-node2")):
        spec = {"nodeName": place, "containers": CONTAINERS}
        cluster.call("POST", pods, {"metadata": {"name": name, "labels": LABELS}, "spec": spec})
        status = {"status": {"phase": "Running", "conditions": [READY]}}
        cluster.call("PATCH", f"{pods}/{name}/status", status, "application/merge-patch+json")
    # Its own pods have other labels, because nothing would run them.
    other = {"app": "none"}
    template = {"metadata": {"labels": other}, "spec": {"containers": CONTAINERS}}
    deployments = "/apis/apps/v1/namespaces/kube-system/deployments"
    cluster.call(
        "POST",
        deployments,
        {
            "metadata": {"name": "coredns", "labels": LABELS},
            "spec": {"replicas": 2, "selector": {"matchLabels": other}, "template": template},
        },
    )
    put(tmp_path, "/etc/kubernetes/admin.conf", cluster.kubeconfig)
    code = f"""
kubectl() {{ {cluster.kubectl} "$@"; }}
create() {{ dns_ready; printf '%s\\n' "$pods"; misplaced_dns_pod; }}
"""
    try:
        assert stdout_of("lib/dns.sh", code, tmp_path).splitlines() == [
            "dns-a dns-master",
            "dns-b dns-node2",
            "dns-a dns-master",
        ]
    finally:
        cluster.call("DELETE", f"{deployments}/coredns")
        for name in ("dns-a", "dns-b"):
            cluster.call("DELETE", f"{pods}/{name}?gracePeriodSeconds=0")
        for name in nodes:
            cluster.call("DELETE", f"/api/v1/nodes/{name}")
