"""A node as the cluster sees it: Ready, labelled and tainted; drained before it leaves."""

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
    """Arguments of a node.

    Attributes:
        settings: The environment.
        host: The host's settings.
        control_plane: The control plane, where kubectl runs.
        joined: The command that made the host a node (init or join).
        depends_on: Everything else that the node needs to become Ready.
        access: Hooks to run before the step, besides those of the control plane.
    """

    settings: Settings
    host: Host
    control_plane: ControlPlane
    joined: remote.Command
    depends_on: Sequence[pulumi.Resource]
    access: pulumi.ResourceHookBinding | None = None


class Node(pulumi.ComponentResource):
    """A node of the cluster. Deleting a worker drains and removes it, unless the whole cluster is deleted.

    Attributes:
        ready: The command that waits until the node is Ready.
    """

    def __init__(self, name: str, args: NodeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        previous = pulumi.Alias(name=f"{args.host.name}-member", type_="kubeadm-ipvs:index:Member")
        aliased = pulumi.ResourceOptions(aliases=[previous])
        super().__init__("kubeadm-ipvs:index:Node", name, None, pulumi.ResourceOptions.merge(aliased, opts))
        settings, host, cluster = args.settings, args.host, args.control_plane
        self.ready = cluster.runner.step(
            steps.NODE,
            self,
            about=host.name,
            # A repaired node may have joined again; the run must wait until it is Ready.
            repair=host.repair,
            # The control plane's node is deleted with the cluster.
            deletes=host.role == "worker",
            # A different machine with the same name is a different node: drain and remove the old one first.
            triggers=[cluster.init.id, args.joined.id],
            values={
                "NODE": host.name,
                "LABELS": "\n".join(f"{key}={value}" for key, value in sorted(host.labels.items())),
                "TAINTS": "\n".join(kubeadm.node_taints(settings, host)),
                "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
                "DRAIN_SECONDS": str(settings.step_timeouts.drain),
            },
            opts=pulumi.ResourceOptions(
                depends_on=[args.joined, *args.depends_on],
                deleted_with=cluster.admin_kubeconfig,
                hooks=args.access,
            ),
        )
        self.register_outputs({"node": host.name})
