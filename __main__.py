"""A kubeadm cluster with kube-proxy in IPVS mode, on the hosts that the stack's settings list."""

from __future__ import annotations

import pulumi

from components.cluster import Cluster, ClusterArgs
from components.configuration import settings_of_stack

settings = settings_of_stack()

cluster = Cluster(settings.cluster.name, ClusterArgs(settings, stack=pulumi.get_stack()))

pulumi.export("kubeconfig", cluster.kubeconfig)
pulumi.export("nodePorts", cluster.node_ports)
pulumi.export("virtualServers", cluster.tables)
