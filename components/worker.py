"""A worker: joined with a token of its own, which is valid for that join only."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.bootstrap_token import BootstrapToken
from components.control_plane import ControlPlane
from components.host import PreparedHost
from model import kubeadm, steps
from model.settings import Settings


@dataclass(frozen=True)
class WorkerArgs:
    """What a worker is made from.

    Attributes:
        settings: The environment.
        machine: The prepared host that joins.
        control_plane: The cluster that it joins.
    """

    settings: Settings
    machine: PreparedHost
    control_plane: ControlPlane


class Worker(pulumi.ComponentResource):
    """A host that has joined the cluster.

    The token's value is made once by the control plane and kept encrypted in the state; no API
    server accepts it. A hook makes it valid right before each attempt of the join, and another
    revokes it after: a join that is tried again next month works, and no token lives on
    (docs/decisions/0003).

    Attributes:
        host: The machine.
        join: The command that joined it.
    """

    def __init__(self, name: str, args: WorkerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Worker", name, None, opts)
        settings, machine, control_plane = args.settings, args.machine, args.control_plane
        self.host = host = machine.host
        token = control_plane.runner.step(
            steps.TOKEN,
            self,
            about=host.name,
            triggers=[control_plane.init.id],
            opts=pulumi.ResourceOptions(depends_on=[control_plane.init], deleted_with=control_plane.init),
        )
        bootstrap_token = BootstrapToken(
            host.name, control_plane.kubeconfig, token.stdout, settings.cluster.join_token_minutes
        )
        config = pulumi.Output.all(token.stdout, control_plane.ca_hash, bootstrap_token.known).apply(
            lambda values: kubeadm.join_config(settings, host, values[0], values[1])
        )
        self.join = machine.runner.step(
            steps.JOIN,
            self,
            # A node of the old cluster is none of the new one.
            triggers=[control_plane.init.id],
            values={
                "CONFIG": config,
                "KUBELET": kubeadm.kubelet_config(settings),
                "PROXY": kubeadm.proxy_config(settings),
            },
            opts=pulumi.ResourceOptions(
                depends_on=[machine.ready, control_plane.init],
                deleted_with=machine.claim,
                replace_with=[machine.claim, control_plane.init],
                hooks=bootstrap_token.hooks,
            ),
        )
        self.register_outputs({"join": self.join.id})
