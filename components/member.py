"""A worker as the cluster sees it: Ready, labelled; drained and removed when it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi

from components.control_plane import ControlPlane
from components.remote import Runner
from model.settings import Host, Settings


@dataclass(frozen=True)
class MemberArgs:
    """What a member is made from.

    Attributes:
        settings: The environment.
        host: The worker.
        control_plane: Where the cluster is spoken to.
        depends_on: What must be there before the node can be Ready.
    """

    settings: Settings
    host: Host
    control_plane: ControlPlane
    depends_on: Sequence[pulumi.Resource]


class Member(pulumi.ComponentResource):
    """A node of the cluster. Its delete drains and removes it, unless the whole cluster goes.

    Attributes:
        ready: The command that has seen it Ready.
    """

    def __init__(self, name: str, args: MemberArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Member", name, None, opts)
        settings, host, cluster = args.settings, args.host, args.control_plane
        self.ready = Runner(settings, settings.control_plane, self).step(
            "member",
            name=f"{host.name}-member",
            limit_seconds=settings.limits.rollout,
            deletes=True,
            triggers=[cluster.init.id],
            values={
                "NODE": host.name,
                "LABELS": "\n".join(f"{key}={value}" for key, value in sorted(host.labels.items())),
                "READY_SECONDS": str(settings.limits.rollout - 60),
                "DRAIN_SECONDS": str(settings.limits.drain),
            },
            opts=pulumi.ResourceOptions(depends_on=list(args.depends_on), deleted_with=cluster.init),
        )
        self.register_outputs({"node": host.name})
