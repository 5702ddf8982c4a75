"""A worker, joined with its own token, which is valid for that join only."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.bootstrap_token import BootstrapToken
from components.control_plane import ControlPlane
from components.host import PreparedHost
from model import kubeadm, pod_network, steps
from model.settings import Settings


@dataclass(frozen=True)
class WorkerArgs:
    """Arguments of a worker.

    Attributes:
        settings: The environment.
        prepared: The prepared host that joins.
        control_plane: The control plane of the cluster that it joins.
    """

    settings: Settings
    prepared: PreparedHost
    control_plane: ControlPlane


class Worker(pulumi.ComponentResource):
    """A host that has joined the cluster.

    The control plane generates the token once, and the state keeps it encrypted, but no API server accepts it
    yet. A hook makes it valid right before each attempt to join, and another revokes it afterwards. So a join
    that is retried a month later works, and no valid token is left behind (docs/decisions/0003).

    Attributes:
        host: The host's settings.
        join: The command that joined it.
    """

    def __init__(self, name: str, args: WorkerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Worker", name, None, opts)
        settings, prepared, control_plane = args.settings, args.prepared, args.control_plane
        self.host = host = prepared.host
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
        self.join = prepared.runner.step(
            steps.JOIN,
            self,
            # A new cluster needs a new join.
            triggers=[control_plane.init.id],
            values={
                "CONFIG": config,
                "NODE_ADDRESS": host.address,
                "KUBELET": kubeadm.kubelet_config(settings),
                "PROXY": kubeadm.proxy_config(settings),
                "POD_NETWORK": pod_network.of(settings).lines,
            },
            opts=pulumi.ResourceOptions(
                depends_on=[prepared.ready, control_plane.init],
                deleted_with=prepared.claim,
                replace_with=[prepared.claim, control_plane.init],
                hooks=bootstrap_token.hooks,
            ),
        )
        self.register_outputs({"join": self.join.id})
