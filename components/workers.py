"""The workers. Each joins with a token of its own, and is drained before it leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components import proxy
from components.bootstrap_token import BootstrapToken
from components.control_plane import ControlPlane
from components.host import PreparedHost
from model import kubeadm, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class WorkersArgs:
    """Arguments of the workers.

    Attributes:
        settings: The environment.
        control_plane: The control plane of the cluster that they join.
        token_key: From which each worker's token is derived; secret.
        members: The names of the hosts that were in the cluster after the last completed run.
    """

    settings: Settings
    control_plane: ControlPlane
    token_key: pulumi.Output[str]
    members: Collection[str] = frozenset()


class Workers(pulumi.ComponentResource):
    """Hosts that have joined the cluster.

    A token is never valid except during a join. A hook makes it valid right before each attempt, and another
    revokes it afterwards. So a join that is retried a month later works, and no valid token is left behind
    (docs/decisions/0003).

    Hosts join in parallel. Existing nodes change their kubelet and kube-proxy in lanes: at most
    `proxy.maxUnavailable` nodes at a time, and a lane ends at its first failure. The next run resumes there.
    The order isn't made by `depends_on`, because that would order the hosts' removal too.

    Attributes:
        joins: The command that joined each worker, by the host's name.
    """

    def __init__(self, name: str, args: WorkersArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Workers", name, None, opts)
        self._args = args
        self.joins: dict[str, remote.Command] = {}
        self.register_outputs({})

    def add(self, hosts: Sequence[PreparedHost], after: pulumi.Output[None] | None = None) -> None:
        """Join hosts, in lanes where they are members already.

        Args:
            hosts: The prepared hosts.
            after: No host joins or changes before this is known.
        """
        lanes = self._args.settings.proxy_lanes
        members: list[remote.Command] = []
        for prepared in hosts:
            before = after
            if prepared.host.name in self._args.members:
                if len(members) >= lanes:
                    before = pulumi.Output.from_input(finished([members[-lanes]]))
                join = self._join(prepared, before)
                members.append(join)
            else:
                join = self._join(prepared, before)
            self.joins[prepared.host.name] = join
            self._drain(prepared.host, join)

    def _join(self, prepared: PreparedHost, after: pulumi.Output[None] | None) -> remote.Command:
        args, host = self._args, prepared.host
        settings, control_plane = args.settings, args.control_plane
        token = args.token_key.apply(lambda key: kubeadm.join_token(key, host.name))
        bootstrap_token = BootstrapToken(
            host.name, control_plane.kubeconfig, token, settings.cluster.join_token_minutes
        )
        config = pulumi.Output.all(token, control_plane.ca_hash, bootstrap_token.known, after).apply(
            lambda values: kubeadm.join_config(settings, host, values[0], values[1])
        )
        return prepared.runner.step(
            steps.JOIN,
            self,
            # A new cluster needs a new join.
            triggers=[control_plane.init.id],
            values={
                **proxy.values(settings, host),
                "NODE_ADDRESS": host.address,
                "KUBELET": kubeadm.kubelet_config(settings),
                "POD_NETWORK": pod_network.of(settings).lines,
            },
            computed={"CONFIG": config},
            opts=pulumi.ResourceOptions(
                depends_on=[prepared.ready, control_plane.init],
                deleted_with=prepared.claim,
                replace_with=[prepared.claim, control_plane.init],
                hooks=bootstrap_token.hooks,
                aliases=[_earlier("Worker", f"{host.name}-worker")],
            ),
        )

    def _drain(self, host: Host, join: remote.Command) -> None:
        """The step that drains and removes a worker's node, unless the whole cluster is deleted."""
        cluster = self._args.control_plane
        earlier = [
            _earlier("Node", f"{host.name}-node"),
            _earlier("Member", f"{host.name}-member", f"{host.name}-member"),
        ]
        cluster.runner.step(
            steps.NODE,
            self,
            about=host.name,
            # A different machine with the same name is a different node: drain and remove the old one first.
            triggers=[cluster.init.id, join.id],
            values={"NODE": host.name, "DRAIN_SECONDS": str(self._args.settings.step_timeouts.drain)},
            opts=pulumi.ResourceOptions(depends_on=[join], deleted_with=cluster.identity, aliases=earlier),
        )


async def finished(resources: Sequence[pulumi.Resource]) -> None:
    """Wait for the end of the resources' operations."""
    for resource in resources:
        await resource.urn.future()


def _earlier(component: str, parent: str, name: str | None = None) -> pulumi.Alias:
    """A resource's place in states of earlier versions, where each worker had components of its own."""
    kind = f"kubeadm-ipvs:index:Cluster$kubeadm-ipvs:index:{component}"
    urn = f"urn:pulumi:{pulumi.get_stack()}::{pulumi.get_project()}::{kind}::{parent}"
    return pulumi.Alias(parent=urn) if name is None else pulumi.Alias(parent=urn, name=name)
