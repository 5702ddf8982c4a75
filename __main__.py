"""A kubeadm cluster with kube-proxy in IPVS mode on the hosts that the stack's settings list."""

from __future__ import annotations

import pulumi

from components import previous_outputs
from components.cluster import Cluster, ClusterArgs
from components.configuration import settings_of_stack

previous = previous_outputs.read()
settings = settings_of_stack(previous.kubernetes_version)

# A fixed name: a name taken from the settings would replace every object when that setting changes.
cluster = Cluster(
    "kubernetes",
    ClusterArgs(settings, stack=pulumi.get_stack(), verified=previous.verified),
    # Its name in stacks created by earlier versions.
    pulumi.ResourceOptions(aliases=[pulumi.Alias(name=settings.cluster.name)]),
)

pulumi.export("kubeconfig", cluster.kubeconfig)
pulumi.export("nodePorts", cluster.node_ports)
pulumi.export("virtualServers", cluster.tables)
pulumi.export(previous_outputs.VERIFIED, cluster.verified)
pulumi.export(previous_outputs.KUBERNETES_VERSION, settings.cluster.kubernetes_version)
