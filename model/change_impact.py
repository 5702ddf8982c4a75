"""The wording for a replaced cluster, shared by the preview's hook (components/changes.py) and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERSION = "kubernetesVersion"
REPLACES_CLUSTER = "this change replaces the cluster"
LOST = (
    "This deletes all its objects and data, including etcd, certificates, kubeconfigs and anything else "
    "deployed in it"
)


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the parts of a cluster's identity that differ: `network.podSubnet 10.244.0.0/16 -> 10.200.0.0/16`.

    Both arguments are inputs of the cluster component, from `components.changes.cluster_inputs`.
    """
    return [
        f"{name} {old[name]} -> {new[name]}"
        for name in old
        if name in new and name != VERSION and old[name] != new[name]
    ]


def rebuilt(hosts: Sequence[str]) -> str:
    """Name the hosts that a replacement of the cluster sets up again."""
    return f"Reset and set up again: {', '.join(hosts)}. The cluster is unavailable until then"


def replacement(changes: Sequence[str], hosts: Sequence[str]) -> str:
    """Describe the replacement of a cluster.

    Args:
        changes: The parts of its identity that differ, from `identity_changes`.
        hosts: The names of the new cluster's hosts.
    """
    return f"{REPLACES_CLUSTER}: {'; '.join(changes)}. {LOST}. {rebuilt(hosts)}"
