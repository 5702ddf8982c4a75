"""When a Kubernetes object counts as ready. Kinds without a check are ready once they exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from standins.kube_api import Api, ApiError, Object

UNSUPPORTED: Final = frozenset(
    {
        "apps/v1/StatefulSet",
        "batch/v1/Job",
        "networking.k8s.io/v1/Ingress",
        "v1/PersistentVolume",
        "v1/PersistentVolumeClaim",
        "v1/Pod",
        "v1/ReplicationController",
    }
)
"""Kinds that Pulumi's plugin can wait for and the stand-in can't."""


def unready(api: Api, live: Object) -> str | None:
    """Explain why an object isn't ready yet; None if it is.

    Raises:
        ApiError: The API server rejects a request.
        Unreachable: The API server doesn't respond.
    """
    check = _CHECKS.get(f"{live['apiVersion']}/{live['kind']}")
    return check(api, live) if check else None


def _deployment(api: Api, live: Object) -> str | None:
    status, wanted = live.get("status") or {}, live["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "the controller hasn't seen the Deployment yet"
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    failed = "; ".join(
        f"[{entry.get('reason')}] {entry.get('message')}"
        for kind, entry in conditions.items()
        if (kind in ("Progressing", "Available") and entry["status"] != "True")
        or (kind == "ReplicaFailure" and entry["status"] == "True")
    )
    if updated >= wanted and available >= wanted and status.get("replicas", 0) <= updated and not failed:
        return None
    reason = f"Waiting for app ReplicaSet to be available ({available}/{wanted} Pods available)"
    return "; ".join(part for part in (reason, failed, _pods(api, live)) if part)


def _daemon_set(api: Api, live: Object) -> str | None:
    status = live.get("status") or {}
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "the controller hasn't seen the DaemonSet yet"
    wanted = status.get("desiredNumberScheduled", 0)
    counts = {
        name: status.get(name, 0)
        for name in ("currentNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady")
    }
    if all(count >= wanted for count in counts.values()):
        return None
    behind = ", ".join(f"{name} {count}/{wanted}" for name, count in counts.items() if count < wanted)
    return "; ".join(part for part in (behind, _pods(api, live)) if part)


def _service(api: Api, live: Object) -> str | None:
    spec = live["spec"]
    if spec.get("type") == "LoadBalancer" and not ((live.get("status") or {}).get("loadBalancer") or {}).get(
        "ingress"
    ):
        return "Service was not allocated an IP address; does your cloud provider support this?"
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") == "None" or not spec.get("selector"):
        return None
    metadata = live["metadata"]
    found = api.request(
        "GET",
        f"/apis/discovery.k8s.io/v1/namespaces/{quote(metadata['namespace'])}/endpointslices",
        query={"labelSelector": f"kubernetes.io/service-name={metadata['name']}"},
    )
    ready = waiting = 0
    for entry in found.get("items") or []:
        for endpoint in entry.get("endpoints") or []:
            # The API defines an endpoint without this condition as ready.
            if (endpoint.get("conditions") or {}).get("ready") is False:
                waiting += 1
            else:
                ready += 1
    if ready and not waiting:
        return None
    if waiting:
        return f"{waiting} of {ready + waiting} Pods aren't ready"
    return (
        "Service does not target any Pods. Selected Pods may not be ready, or field '.spec.selector' may not "
        "match labels on any Pods"
    )


def _pods(api: Api, owner: Object) -> str:
    """Summarize why the owner's pods aren't running."""
    labels = (owner["spec"].get("selector") or {}).get("matchLabels") or {}
    if not labels:
        return ""
    try:
        found = api.request(
            "GET",
            f"/api/v1/namespaces/{quote(owner['metadata']['namespace'])}/pods",
            query={"labelSelector": ",".join(f"{key}={value}" for key, value in sorted(labels.items()))},
        )
    except ApiError:
        return ""  # no permission to list pods: the message has only the counts
    reasons = set()
    for pod in found.get("items") or []:
        status = pod.get("status") or {}
        for entry in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
            waiting = (entry.get("state") or {}).get("waiting")
            if waiting:
                why = f"{waiting.get('reason')} {waiting.get('message') or ''}".rstrip()
                reasons.add(f"container {entry['name']}: {why}")
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                reasons.add(str(condition.get("message") or condition.get("reason")))
    return "; ".join(sorted(reasons)[:4])


_CHECKS: Final[dict[str, Callable[[Api, Object], str | None]]] = {
    "apps/v1/Deployment": _deployment,
    "apps/v1/DaemonSet": _daemon_set,
    "v1/Service": _service,
}
