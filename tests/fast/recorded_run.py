"""Runs the program on given settings and records its resources. Its steps return fixed output."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

import yaml

from components.cluster import Cluster, ClusterArgs
from components.previous_outputs import PreviousOutputs
from model.settings import Settings
from model.steps import Step, step_of
from tests.fast import graph
from tests.fast.certificates import self_signed


def run(
    settings: Settings,
    preview: bool = False,
    *,
    previous: PreviousOutputs | None = None,
    dead: frozenset[str] = frozenset(),
    renewal: str = "",
    use: Callable[[Cluster], object] | None = None,
    outputs_of: Callable[[str], dict[str, Any]] | None = None,
) -> graph.Recorder:
    """Run the program and return the resources that it registered.

    Args:
        settings: The cluster's settings.
        preview: Run a preview.
        previous: The outputs of the previous run.
        dead: The names of dead workers.
        renewal: The expiry up to which certificates are renewed.
        use: Receives the cluster while the program runs, for access to its outputs.
        outputs_of: A resource's outputs, for its name; by default `outputs`.
    """
    kubeconfig()  # fills the cache before several threads need it

    async def program() -> None:
        cluster = Cluster(
            "test", ClusterArgs(settings, graph.STACK, previous or PreviousOutputs(), renewal, dead)
        )
        if use is not None:
            use(cluster)
        await cluster.settled()

    return graph.run(program, outputs_of or outputs, preview)


def commands(recorded: graph.Recorder) -> dict[str, Any]:
    """The remote commands by resource name."""
    return {n: r for n, r in recorded.requests.items() if r.type == "command:remote:Command"}


def steps_of(recorded: graph.Recorder) -> dict[str, Step]:
    """Each remote command's step, by resource name."""
    inputs = {name: recorded.inputs[name] for name in commands(recorded)}
    found = {name: step_of(given.get("create") or given["delete"]) for name, given in inputs.items()}
    return {name: step for name, step in found.items() if step is not None}


def outputs(name: str) -> dict[str, Any]:
    """A remote command's outputs, for a resource name."""
    if name.endswith("-init"):
        return {"stdout": framed(kubeconfig()), "stderr": ""}
    if name == "expected-services":
        return {"stdout": framed(services_and_slices()), "stderr": ""}
    if name.endswith("-verification"):
        return {"stdout": framed("== ipvs\n== stats\n== addresses\n== sets\n== spread\n"), "stderr": ""}
    return {"stdout": framed(), "stderr": ""}


def framed(results: str = "") -> str:
    """What a host returns for a step with these results."""
    return f"\n--- kubeadm-ipvs: begin ---\n{results}\n--- kubeadm-ipvs: end ---\n"


@functools.cache  # so that runs can be compared: all have the same certificate authority
def kubeconfig() -> str:
    """An administrator's kubeconfig."""
    _, certificate = self_signed("kubernetes")
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "admin",
            "contexts": [{"name": "admin", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": "https://192.168.166.101:6443",
                        "certificate-authority-data": base64.b64encode(certificate).decode(),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"client-key-data": "c2VjcmV0LWtleQ=="}}],
        }
    )


def services_and_slices() -> str:
    """The output of `kubectl get services,endpointslices -A -o json`."""
    items: list[dict[str, Any]] = []
    for namespace, name, address, port, node_port, endpoints in [
        ("default", "kubernetes", "10.96.0.1", 443, None, ["192.168.166.101"]),
        ("kube-system", "kube-dns", "10.96.0.10", 53, None, ["10.244.0.2", "10.244.0.3"]),
        ("default", "nginx", "10.96.7.7", 80, None, ["10.244.1.2", "10.244.2.2"]),
        ("default", "nginx-nodeport", "10.96.8.8", 80, 30080, ["10.244.1.2", "10.244.2.2"]),
    ]:
        metadata = {"namespace": namespace, "name": name}
        ports: list[dict[str, Any]] = [{"port": port, "protocol": "TCP"}]
        if node_port:
            ports[0]["nodePort"] = node_port
        items.append(
            {"kind": "Service", "metadata": metadata, "spec": {"clusterIP": address, "ports": ports}}
        )
        items.append(
            {
                "kind": "EndpointSlice",
                "addressType": "IPv4",
                "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [e], "conditions": {"ready": True}} for e in endpoints],
                "ports": [{"port": port, "protocol": "TCP"}],
            }
        )
    return json.dumps({"kind": "List", "items": items})
