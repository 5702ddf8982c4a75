"""A node as the cluster sees it: Ready, with its labels and taints; a worker that leaves is drained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components.control_plane import ControlPlane
from model import kubeadm
from model.settings import Host, Settings

# What a removal does before and after its drain: kubectl by an API server that may be busy.
AROUND_DRAIN_SECONDS = 300


@dataclass(frozen=True)
class MemberArgs:
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


class Member(pulumi.ComponentResource):
    """A node of the cluster. A worker's delete drains and removes it, unless the whole cluster goes.

    Attributes:
        ready: The command that has seen it Ready.
    """

    def __init__(self, name: str, args: MemberArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Member", name, None, opts)
        settings, host, cluster = args.settings, args.host, args.control_plane
        self.ready = cluster.runner.step(
            "member",
            self,
            name=f"{host.name}-member",
            limit_seconds=settings.limits.rollout,
            # One that is repaired may have joined anew: its run isn't over before it is Ready.
            repair=host.repair,
            # The control plane's node goes with the cluster.
            deletes=host.role == "worker",
            # Longer than the drain, whose end at its own bound puts the node back in service.
            delete_limit_seconds=settings.limits.drain + AROUND_DRAIN_SECONDS,
            # Another machine under the same name is another node: the old one is drained and removed first.
            triggers=[cluster.init.id, args.made.id],
            values={
                "NODE": host.name,
                "LABELS": "\n".join(f"{key}={value}" for key, value in sorted(host.labels.items())),
                "TAINTS": "\n".join(kubeadm.node_taints(settings, host)),
                "READY_SECONDS": str(settings.limits.rollout - 60),
                "DRAIN_SECONDS": str(settings.limits.drain),
            },
            opts=pulumi.ResourceOptions(
                depends_on=[args.made, *args.depends_on], deleted_with=cluster.authority
            ),
        )
        self.register_outputs({"node": host.name})
