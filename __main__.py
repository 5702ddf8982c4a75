"""A kubeadm cluster with kube-proxy in IPVS mode, on the hosts that the stack's settings list."""

from __future__ import annotations

import pulumi

from components import previous_outputs
from components.cluster import Cluster, ClusterArgs
from components.configuration import settings_of_stack

settings = settings_of_stack()

# Not the cluster's own name: with another one it would be another resource, and all objects made anew.
cluster = Cluster(
    "kubernetes",
    ClusterArgs(settings, stack=pulumi.get_stack(), verified=previous_outputs.output("verified")),
    # As it was called by earlier versions of this program.
    pulumi.ResourceOptions(aliases=[pulumi.Alias(name=settings.cluster.name)]),
)

pulumi.export("kubeconfig", cluster.kubeconfig)
pulumi.export("nodePorts", cluster.node_ports)
pulumi.export("virtualServers", cluster.tables)
pulumi.export("verified", cluster.verified)
