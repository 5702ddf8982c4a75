"""Describes, for reviewers, the impact of each changed step value on a running cluster.

`report/impact.py` picks the texts; docs/decisions/0015-report-texts.md explains the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much is at stake. The report lists the highest level first."""

    QUIET = 0  # nobody notices
    IN_PLACE = 1  # something changes without a restart
    ROLLING = 2  # pods or processes restart, one after the other
    MADE = 3  # a host or a cluster is created
    LOSS = 4  # something is gone afterwards


@dataclass(frozen=True)
class ImpactText:
    """The impact of a change on some hosts.

    Attributes:
        text: A sentence without its period. `{hosts}` becomes `node1` or `3 nodes`; `{old}` and `{new}`
            become the value before and after. The report joins the quiet texts into one sentence.
        in_lanes: Whether the control plane comes first, and then only some workers at a time.
        joins: Whether each worker's `join`, whose values are hidden, does the same.
        after: A further sentence for the reviewer.
        unless: Values of the same step. If one of them differs too, its own text covers this one.
        after_unless: Values of the same step. If one of them differs too, `after` isn't true.
    """

    level: Level
    text: str
    in_lanes: bool = False
    joins: bool = False
    after: str = ""
    unless: tuple[str, ...] = ()
    after_unless: tuple[str, ...] = ()


_KERNEL = {
    "MODE": ImpactText(Level.QUIET, "kernel modules for the new proxy mode are loaded on {hosts}"),
    "SCHEDULER": ImpactText(Level.QUIET, "the kernel module for the new scheduler is loaded on {hosts}"),
    "NETWORK_MODULES": ImpactText(Level.QUIET, "kernel modules for the pod network are loaded on {hosts}"),
}
_FIREWALL = {
    "FIREWALL": ImpactText(Level.IN_PLACE, "Firewall rules change on {hosts}"),
    "API_SOURCES": ImpactText(
        Level.IN_PLACE, "Other addresses can reach the API server's port on {hosts}", unless=("FIREWALL",)
    ),
    "NODE_PORT_SOURCES": ImpactText(
        Level.IN_PLACE, "Other addresses can reach NodePorts on {hosts}", unless=("FIREWALL",)
    ),
    "HOST_SOURCES": ImpactText(
        Level.QUIET, "firewall rules follow the list of hosts on {hosts}", unless=("FIREWALL",)
    ),
}
_PACKAGES = {
    name: ImpactText(Level.IN_PLACE, "The source or version of packages changes on {hosts}")
    for name in ("VERSION", "REVISION", "REPOSITORY_DEB", "REPOSITORY_RPM", "KEY", "KEY_URL", "MANAGE")
}
_RUNTIME = {
    "MIRRORS": ImpactText(
        Level.IN_PLACE,
        "containerd uses different registry mirrors on {hosts}",
        after="Nothing restarts: containerd reads the mirrors at every pull.",
        after_unless=("SANDBOX_IMAGE", "REPAIR"),
    ),
    "SANDBOX_IMAGE": ImpactText(
        Level.ROLLING,
        "containerd restarts with a new sandbox image on {hosts}",
        after="Pods keep running.",
    ),
    "IMAGES": ImpactText(
        Level.QUIET,
        "images are pulled ahead of time on {hosts}",
        unless=("SANDBOX_IMAGE",),
    ),
}

STEPS: Mapping[str, Mapping[str, ImpactText]] = {
    # Its other values are only checked when the host is claimed; an update changes nothing on it.
    "preparation": {**_KERNEL, **_FIREWALL, **_PACKAGES, **_RUNTIME},
    "init": {
        "CERT_SANS": ImpactText(
            Level.IN_PLACE, "The API server's certificate is reissued with different names on {hosts}"
        ),
        "RENEW": ImpactText(
            Level.ROLLING,
            "Certificates that expire soon are renewed on {hosts}",
            after="The control plane's components restart; pods keep running.",
        ),
        "RENEWAL_TIMER": ImpactText(
            Level.IN_PLACE, "The timer that renews certificates is set up or removed on {hosts}"
        ),
        "CERTIFICATE_DAYS": ImpactText(
            Level.QUIET, "certificates are renewed earlier or later on {hosts}", unless=("RENEWAL_TIMER",)
        ),
        "KUBELET": ImpactText(
            Level.ROLLING, "kubelet restarts with new settings on every node", after="Pods keep running."
        ),
        "MODE=nftables": ImpactText(
            Level.ROLLING,
            "kube-proxy switches from {old} to {new} on {hosts}",
            in_lanes=True,
            joins=True,
            after="On each node, Services are unavailable until its kube-proxy has programmed them again.",
        ),
        "MODE": ImpactText(
            Level.ROLLING,
            "kube-proxy switches from {old} to {new} on {hosts}",
            in_lanes=True,
            joins=True,
            after="Connections that the old mode balances may break; new ones don't fail.",
        ),
        "PROXY": ImpactText(
            Level.ROLLING,
            "kube-proxy restarts on {hosts}",
            in_lanes=True,
            joins=True,
            after="The kernel keeps balancing meanwhile.",
            unless=("MODE",),
        ),
        "CONFIG": ImpactText(
            Level.QUIET,
            "kubeadm's configuration is uploaded from {hosts}",
            unless=("CERT_SANS", "KUBELET", "PROXY"),
        ),
    },
    # Its values are hidden, but it has the settings of `init`.
    "join": {},
    # Its value is a list of all nodes (LABELS and TAINTS below).
    "nodes": {},
    # These verify something again; at most, a pod of CoreDNS moves.
    "expected_services": {},
    "verification": {},
    # Only their deletion runs something.
    "claim": {},
    "node": {},
    "deregister": {},
}
"""Texts by the step's name and the value that differs, or that value and its new content (`MODE=nftables`).

The first entry that applies is used for each value."""

LABELS = ImpactText(Level.IN_PLACE, "Labels change on {hosts}")
TAINTS = ImpactText(
    Level.IN_PLACE,
    "Taints change on {hosts}",
    after="A NoExecute taint evicts pods that don't tolerate it.",
)
REPAIR = ImpactText(
    Level.IN_PLACE,
    "Every step runs again to repair drift on {hosts}",
    after="containerd restarts; pods keep running.",
)
RERUN = ImpactText(Level.QUIET, "steps run again with unchanged settings on {hosts}")
VERIFIED = ImpactText(Level.QUIET, "load balancing is verified again on {hosts}")
OBSOLETE = "the state no longer lists {steps} of an earlier version, which are parts of other steps now"
PODS_MOVE = (
    "Its pods are recreated on other nodes; data stored on the node itself (emptyDir, hostPath, local "
    "volumes) is lost."
)
SAME_ADDRESS = "{new} has the address of {old}, so its claim is refused and the run stops there."
RENAMED_WORKER = "Remove {old} in one change and add {new} in the next."
RENAMED_CONTROL_PLANE = (
    "Renaming the control plane replaces the cluster: keep the name {old}, or run `pulumi destroy` first."
)
