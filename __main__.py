"""A kubeadm cluster with kube-proxy in IPVS mode on the hosts that the stack's settings list."""

from __future__ import annotations

from datetime import UTC, datetime

import pulumi

from components import dead_hosts, previous_outputs, stack_traces
from components.cluster import Cluster, ClusterArgs
from components.configuration import settings_of_stack
from model import certificates

previous = previous_outputs.read()
settings = settings_of_stack(previous.kubernetes_version)

now = datetime.now(UTC)
renewal = certificates.renewal(
    previous.certificates_expire, previous.certificates_renewed, settings.cluster.certificates.renew_days, now
)
if renewal != previous.certificates_renewed:
    pulumi.log.warn(certificates.announcement(renewal, now))

with stack_traces.short():
    # A fixed name: a name taken from the settings would replace every object when that setting changes.
    cluster = Cluster(
        "kubernetes",
        ClusterArgs(
            settings,
            stack=pulumi.get_stack(),
            previous=previous,
            renewal=renewal,
            dead=dead_hosts.find(settings, previous.kubeconfig),
        ),
        # Its name in stacks created by earlier versions.
        pulumi.ResourceOptions(aliases=[pulumi.Alias(name=settings.cluster.name)]),
    )

pulumi.export(previous_outputs.KUBECONFIG, cluster.kubeconfig)
pulumi.export("nodePorts", cluster.node_ports)
# As a secret, because Pulumi prints other outputs in full after each run: 25 lines for each virtual server.
pulumi.export(previous_outputs.VIRTUAL_SERVERS, pulumi.Output.secret(cluster.tables))
pulumi.export(previous_outputs.VERIFIED, cluster.verified)
pulumi.export(previous_outputs.KUBERNETES_VERSION, settings.cluster.kubernetes_version)
pulumi.export(previous_outputs.CERTIFICATES_EXPIRE, cluster.certificates_expire)
if renewal:
    pulumi.export(previous_outputs.CERTIFICATES_RENEWED, renewal)

pulumi.run(cluster.settled)
