"""A node as the cluster sees it: Ready, with its labels and taints; a worker that leaves is drained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components.control_plane import ControlPlane
from model import kubeadm, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class NodeArgs:
    """What a member is made from.

    Attributes:
        settings: The environment.
        host: The machine.
        control_plane: Where the cluster is spoken to.
        made: The command that made the host a node (init or join).
        depends_on: What else must be there before the node can be Ready.
    """

    settings: Settings
    host: Host
    control_plane: ControlPlane
    made: remote.Command
    depends_on: Sequence[pulumi.Resource]


class Node(pulumi.ComponentResource):
    """A node of the cluster. A worker's delete drains and removes it, unless the whole cluster goes.

    Attributes:
        ready: The command that has seen it Ready.
    """

    def __init__(self, name: str, args: NodeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        former = pulumi.Alias(name=f"{args.host.name}-member", type_="kubeadm-ipvs:index:Member")
        aliased = pulumi.ResourceOptions(aliases=[former])
        super().__init__("kubeadm-ipvs:index:Node", name, None, pulumi.ResourceOptions.merge(aliased, opts))
        settings, host, cluster = args.settings, args.host, args.control_plane
        self.ready = cluster.runner.step(
            steps.NODE,
            self,
            about=host.name,
            # One that is repaired may have joined anew: its run isn't over before it is Ready.
            repair=host.repair,
            # The control plane's node goes with the cluster.
            deletes=host.role == "worker",
            # Another machine under the same name is another node: the old one is drained and removed first.
            triggers=[cluster.init.id, args.made.id],
            values={
                "NODE": host.name,
                "LABELS": "\n".join(f"{key}={value}" for key, value in sorted(host.labels.items())),
                "TAINTS": "\n".join(kubeadm.node_taints(settings, host)),
                "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
                "DRAIN_SECONDS": str(settings.step_timeouts.drain),
            },
            opts=pulumi.ResourceOptions(
                depends_on=[args.made, *args.depends_on], deleted_with=cluster.admin_kubeconfig
            ),
        )
        self.register_outputs({"node": host.name})
