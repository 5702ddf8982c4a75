"""kube-proxy's mode and settings, changed on a running cluster, one node at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components.host import PreparedHost
from model import kubeadm, steps
from model.settings import Settings


@dataclass(frozen=True)
class ProxyModeArgs:
    """Arguments of kube-proxy's configuration.

    Attributes:
        settings: The environment.
        prepared: The prepared hosts by name.
        nodes: The command that made each host a node (init or join), by the host's name. Dead hosts are
            missing; `ProxyMode.change` adds them later.
    """

    settings: Settings
    prepared: Mapping[str, PreparedHost]
    nodes: Mapping[str, remote.Command]


class ProxyMode(pulumi.ComponentResource):
    """Applies kube-proxy's settings to each node and removes what another mode left behind.

    The init step uploads a changed configuration, but a running kube-proxy doesn't read it. Each host's step
    restarts its kube-proxy, cleans up after the previous mode and checks that the node serves requests before
    the next host's step starts. If a step fails, the remaining hosts stay unchanged and the next run resumes
    with the failed one.

    Attributes:
        steps: One step per host of `nodes`, in the order of the settings.
    """

    def __init__(self, name: str, args: ProxyModeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:ProxyMode", name, None, opts)
        self._settings = settings = args.settings
        self.steps: list[remote.Command] = []
        for host in settings.hosts:
            if host.name in args.nodes:
                step = self.change(args.prepared[host.name], args.nodes[host.name], self.steps[-1:])
                self.steps.append(step)
        self.register_outputs({"mode": settings.proxy.mode})

    def change(
        self, prepared: PreparedHost, node: remote.Command, after: Sequence[pulumi.Resource]
    ) -> remote.Command:
        """The step that changes one host's kube-proxy, `after` those of other hosts."""
        settings = self._settings
        return prepared.runner.step(
            steps.PROXY,
            self,
            triggers=[node.id],
            values={
                "PROXY": kubeadm.proxy_config(settings),
                "MODE": settings.proxy.mode,
                "SCHEDULER": settings.proxy.scheduler,
                "SERVICE_ADDRESS": settings.service_address,
                "NODE_ENDPOINT": f"{prepared.host.address}:{settings.nginx.node_port}",
                "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
            },
            opts=pulumi.ResourceOptions(depends_on=[node, *after], deleted_with=node, replace_with=[node]),
        )
