"""What a change does to a living cluster, in words: for the hook at preview and for the report of a change.

The words are here once, by what the engine knows: a step's name, and which of its values differ.
`components/changes.py` refuses or tells with them as a run begins, `model/report.py` makes a page of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

VERSION = "kubernetesVersion"
LOST = (
    "every object and all data in it, etcd's included, its certificates and kubeconfigs, and whatever else "
    "was deployed"
)
SILENT = "Nothing in it answers meanwhile"


class Level(IntEnum):
    """How much is at stake; the report's order, worst first."""

    QUIET = 0  # nobody notices
    IN_PLACE = 1  # something is another than before
    ROLLING = 2  # pods or processes start anew, one after the other
    MADE = 3  # a host or a cluster is made
    LOSS = 4  # something is gone afterwards


@dataclass(frozen=True)
class ImpactText:
    """What happens on some hosts.

    Attributes:
        text: A sentence's begin, in which `{hosts}` stands for `node1` or `3 nodes`, `{old}` and `{new}` for
            the value's.
        one_by_one: Whether a host waits for the one before.
        after: What a reader should know beyond it.
        unless: Values of the same step: where one of them differs too, its words say this as well.
        after_unless: Values of the same step: where one of them differs too, `after` isn't true.
    """

    level: Level
    text: str
    one_by_one: bool = False
    after: str = ""
    unless: tuple[str, ...] = ()
    after_unless: tuple[str, ...] = ()


STEPS: Mapping[str, Mapping[str, ImpactText]] = {
    # What is looked at when a host is claimed; the claim itself stays as it is.
    "claim": {},
    "kernel": {
        "MODE": ImpactText(Level.QUIET, "kernel modules of the other proxy mode are loaded on {hosts}"),
        "SCHEDULER": ImpactText(Level.QUIET, "the kernel module of the other scheduler is loaded on {hosts}"),
        "BACKEND": ImpactText(Level.QUIET, "kernel modules of flannel's backend are loaded on {hosts}"),
    },
    "firewall": {"FIREWALL": ImpactText(Level.IN_PLACE, "the firewall's rules change on {hosts}")},
    "packages": {
        name: ImpactText(
            Level.IN_PLACE, "packages are looked for in another place, or at another version, on {hosts}"
        )
        for name in ("VERSION", "REVISION", "REPOSITORY_DEB", "REPOSITORY_RPM", "KEY", "KEY_URL", "MANAGE")
    },
    "runtime": {
        "MIRRORS": ImpactText(
            Level.IN_PLACE,
            "containerd pulls by other registry mirrors on {hosts}",
            after="Nothing restarts: containerd reads them at each pull.",
            after_unless=("SANDBOX_IMAGE", "REPAIR"),
        ),
        "SANDBOX_IMAGE": ImpactText(
            Level.ROLLING, "containerd restarts on {hosts}, with another sandbox image", after="Pods go on."
        ),
        "IMAGES": ImpactText(
            Level.QUIET,
            "images are pulled on {hosts}, before a pod asks for them",
            unless=("SANDBOX_IMAGE",),
        ),
    },
    "init": {
        "CERT_SANS": ImpactText(
            Level.IN_PLACE, "the API server's certificate is made anew on {hosts}, with other names"
        ),
        "KUBELET": ImpactText(
            Level.ROLLING, "kubelet restarts on every node, with other settings", after="Pods go on."
        ),
        "PROXY": ImpactText(Level.QUIET, "kube-proxy's settings are uploaded on {hosts}"),
        "CONFIG": ImpactText(
            Level.QUIET,
            "kubeadm's settings are uploaded on {hosts}",
            unless=("CERT_SANS", "KUBELET", "PROXY"),
        ),
    },
    "proxy": {
        "MODE=nftables": ImpactText(
            Level.ROLLING,
            "kube-proxy changes from {old} to {new} on {hosts}",
            one_by_one=True,
            after="On each node services don't answer until its kube-proxy has programmed them anew.",
        ),
        "MODE": ImpactText(
            Level.ROLLING,
            "kube-proxy changes from {old} to {new} on {hosts}",
            one_by_one=True,
            after="Connections that the former mode has balanced may end; new ones don't fail.",
        ),
        "PROXY": ImpactText(
            Level.ROLLING,
            "kube-proxy restarts on {hosts}",
            one_by_one=True,
            after="Meanwhile the kernel balances as before.",
            unless=("MODE",),
        ),
    },
    "node": {
        "LABELS": ImpactText(Level.IN_PLACE, "labels of {hosts} change"),
        "TAINTS": ImpactText(
            Level.IN_PLACE,
            "taints of {hosts} change",
            after="A NoExecute taint evicts pods that don't tolerate it.",
        ),
    },
    # Read again, made valid again, proved again: nothing of the cluster is another by them.
    "admin": {},
    "kubeconfig": {},
    "token": {},
    "deregister": {},
    "join": {},
    "expected_services": {},
    "verification": {},
}
"""By a step's name, and the value of it that differs, or that and what it then is (`MODE=nftables`).

components/remote.py has the steps. Each value that differs is told, by the first of its words that fit."""

REPAIR = ImpactText(
    Level.IN_PLACE,
    "every step on {hosts} runs again, to put right what has drifted",
    after="containerd restarts; pods go on.",
)
AGAIN = ImpactText(Level.QUIET, "steps run again on {hosts}, with the settings that they had")
PROVED = ImpactText(Level.QUIET, "what the kernel balances is proved again on {hosts}")
ELSEWHERE = (
    "Its pods start on other nodes; what they keep on the node itself (emptyDir, hostPath, local volumes) "
    "is lost."
)
SAME_MACHINE = "{new} is the machine that is {old} now: its claim is refused, and the run stops there."
RENAMED_WORKER = "Take {old} out in one change, and add {new} in the next."
RENAMED_CONTROL_PLANE = (
    "With another name it is another cluster: give {old} its name back, or run `pulumi destroy` first."
)


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`network.podSubnet 10.244.0.0/16 -> 10.200.0.0/16`: what of a cluster's identity differs.

    Both are the inputs of the cluster's component, as `components.changes.kept` makes them.
    """
    return [
        f"{name} {old[name]} -> {new[name]}"
        for name in old
        if name in new and name != VERSION and old[name] != new[name]
    ]


def new_cluster(changes: list[str], hosts: list[str]) -> str:
    """The words for a cluster that is made anew because of `changes`."""
    return (
        f"this change makes a new cluster: {'; '.join(changes)}. Lost with the old one: {LOST}. "
        f"Reset and made anew: {', '.join(hosts)}. {SILENT}"
    )
