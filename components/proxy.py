"""kube-proxy's mode and settings on every node, changed live, one node after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components.host import PreparedHost
from model import kubeadm, steps
from model.settings import Settings


@dataclass(frozen=True)
class ProxyModeArgs:
    """What kube-proxy is looked after with.

    Attributes:
        settings: The environment.
        machines: The hosts by name.
        nodes: Per host, the command that made it a node.
    """

    settings: Settings
    machines: Mapping[str, PreparedHost]
    nodes: Mapping[str, remote.Command]


class ProxyMode(pulumi.ComponentResource):
    """Each node's kube-proxy runs as the settings say, and nothing of another mode is left.

    init uploads the changed configuration, which a running kube-proxy doesn't read. Each host's step
    restarts its kube-proxy, clears the former mode away and looks that the node answers; only then
    is it the next host's turn. A step that fails stops there: the hosts after it are as they
    were, and the next run goes on with it.

    Attributes:
        steps: One for each host, in their order.
    """

    def __init__(self, name: str, args: ProxyModeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:ProxyMode", name, None, opts)
        settings = args.settings
        self.steps: list[remote.Command] = []
        for host in settings.hosts:
            node = args.nodes[host.name]
            self.steps.append(
                args.machines[host.name].runner.step(
                    steps.PROXY,
                    self,
                    triggers=[node.id],
                    values={
                        "PROXY": kubeadm.proxy_config(settings),
                        "MODE": settings.proxy.mode,
                        "SCHEDULER": settings.proxy.scheduler,
                        "SERVICE_ADDRESS": settings.service_address,
                        "NODE_ENDPOINT": f"{host.address}:{settings.nginx.node_port}",
                        "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
                    },
                    opts=pulumi.ResourceOptions(
                        depends_on=[node, *self.steps[-1:]], deleted_with=node, replace_with=[node]
                    ),
                )
            )
        self.register_outputs({"mode": settings.proxy.mode})
