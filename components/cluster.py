"""The whole cluster: composes the other components and is the only place that knows their order."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from components import changes
from components.control_plane import ControlPlane, ControlPlaneArgs
from components.host import PreparedHost, PreparedHostArgs
from components.manifests import Manifest, ManifestArgs
from components.node import Node, NodeArgs
from components.proxy import ProxyMode, ProxyModeArgs
from components.verification import Verification, VerificationArgs
from components.worker import Worker, WorkerArgs
from model import documents, pod_network
from model.field_types import seconds
from model.settings import Settings


@dataclass(frozen=True)
class ClusterArgs:
    """Arguments of a cluster.

    Attributes:
        settings: The environment.
        stack: The stack's name, written on each host as its owner.
        verified: `Cluster.verified` after the last completed run.
        renewal: Certificates that expire by then are renewed (`certificates.renewal`); empty for none.
        dead: The names of dead workers (`dead_hosts.find`).
    """

    settings: Settings
    stack: str
    verified: str | None
    renewal: str = ""
    dead: frozenset[str] = frozenset()


class Cluster(pulumi.ComponentResource):
    """Hosts, control plane, workers, pod network, application and verification.

    There are no barriers. Each host is prepared as soon as it is reachable. `init` waits only for the control
    plane's own preparation. A worker joins when it is prepared and the API is up. The pod network is applied
    as soon as the API is up. The application waits until all nodes are Ready, because its pods can't start
    earlier and the control plane is busiest while nodes join.

    Nothing waits for a worker that is dead when the run starts. Its own steps come last, so that their
    failure stops nothing else (docs/decisions/0032).

    Attributes:
        kubeconfig: The administrator's kubeconfig; secret.
        tables: The verified services' virtual servers in each host's kernel, by host name.
        node_ports: The application's URL on each host.
        verified: The verification attempt that succeeded.
        certificates_expire: When the first of the cluster's certificates expires, if that is known.
    """

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        settings = args.settings
        watched = pulumi.ResourceOptions(hooks=changes.change_hook(settings))
        super().__init__(
            "kubeadm-ipvs:index:Cluster",
            name,
            changes.cluster_inputs(settings),
            pulumi.ResourceOptions.merge(watched, opts),
        )
        child = pulumi.ResourceOptions(parent=self)
        # Stacks in different backends may share a name, so the owner includes an ID that is generated once.
        owner_id = pulumi.Stash(
            "owner",
            input=f"{args.stack} {secrets.token_hex(4)}",
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=["input"]),
        )
        owner = owner_id.output

        first = settings.control_plane
        prepared = {first.name: PreparedHost(first.name, PreparedHostArgs(settings, first, owner), child)}
        control_plane = ControlPlane(
            "control-plane", ControlPlaneArgs(settings, prepared[first.name], args.renewal), child
        )
        living = [host for host in settings.workers if host.name not in args.dead]
        dead = [host for host in settings.workers if host.name in args.dead]
        deregister = {host.name: control_plane.deregister(host) for host in settings.workers}
        for host in living:
            prepared[host.name] = PreparedHost(
                host.name,
                PreparedHostArgs(settings, host, owner, outlived_by=[deregister[host.name]]),
                child,
            )
        provider = kubernetes.Provider(
            name,
            kubeconfig=control_plane.kubeconfig,
            # Constant, because a new kubeconfig of the same cluster must not replace every object; a new
            # cluster replaces them anyway (`replace_with`). If this provider had to be replaced together with
            # `init`, the engine would stop its plugin before it deletes the objects (Pulumi 3.259).
            cluster_identifier=owner,
            # Otherwise the objects of a dead cluster could never be removed from the state.
            delete_unreachable=True,
            # After an interrupted create the object exists but isn't in the state. The next run adopts it.
            upsert_existing_objects=True,
            kube_client_settings=kubernetes.KubeClientSettingsArgs(
                # The default of 32 s is too short for a slow API server to send its whole schema.
                timeout=int(seconds(settings.cluster.timeouts.kubernetes_api_call)),
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[control_plane.init],
                # Stacks of earlier versions have the CA of their first cluster here.
                ignore_changes=["clusterIdentifier"],
                aliases=[pulumi.Alias(name=settings.cluster.name, parent=self)],
            ),
        )
        pods = pod_network.of(settings)
        network = Manifest(
            pods.name,
            ManifestArgs(
                pods.manifest,
                # A rollout counts the pods on dead hosts as unavailable.
                {**pods.parameters(settings), "max_unavailable": 1 + len(dead)},
                provider,
                control_plane,
                wait_for_daemon_sets=not dead,
            ),
            child,
        )
        workers = [
            Worker(f"{host.name}-worker", WorkerArgs(settings, prepared[host.name], control_plane), child)
            for host in living
        ]
        joined = {first.name: control_plane.init}
        joined |= {worker.host.name: worker.join for worker in workers}
        cluster_nodes = [
            Node(
                f"{host.name}-node",
                NodeArgs(settings, host, control_plane, joined[host.name], [*network.objects.values()]),
                child,
            )
            for host in settings.hosts
            if host.name in joined
        ]
        proxies = ProxyMode("proxy", ProxyModeArgs(settings, prepared, joined), child)
        nginx = Manifest(
            "nginx",
            ManifestArgs(
                "nginx.yaml",
                _nginx(settings, args.dead),
                provider,
                control_plane,
                depends_on=[node.ready for node in cluster_nodes],
            ),
            child,
        )
        verification = Verification(
            "verification",
            VerificationArgs(
                settings,
                prepared,
                control_plane,
                subject=_subject(settings, joined.values(), network, nginx),
                verified=args.verified,
                depends_on=[*nginx.objects.values(), *proxies.steps],
            ),
            child,
        )
        # Not `depends_on`, which would also order deletions: no host could be restored before the dead one.
        last: pulumi.Output[None] = pulumi.Output.from_input(_registered(verification.steps))
        for host in dead:
            prepared[host.name] = PreparedHost(
                host.name,
                PreparedHostArgs(settings, host, owner, outlived_by=[deregister[host.name]], after=last),
                child,
            )
            worker = Worker(
                f"{host.name}-worker", WorkerArgs(settings, prepared[host.name], control_plane), child
            )
            node = Node(
                f"{host.name}-node",
                NodeArgs(
                    settings,
                    host,
                    control_plane,
                    worker.join,
                    [*network.objects.values()],
                    access=prepared[host.name].runner.access,
                ),
                child,
            )
            proxy = proxies.change(prepared[host.name], worker.join, ())
            verification.add_dead_host(prepared[host.name], [node.ready, proxy])
        self.kubeconfig = control_plane.kubeconfig
        self.tables = verification.tables
        self.verified = verification.verified
        self.certificates_expire = control_plane.certificates_expire
        self.node_ports = [f"http://{host.address}:{settings.nginx.node_port}/" for host in settings.hosts]
        self.register_outputs(
            {"kubeconfig": self.kubeconfig, "nodePorts": self.node_ports, "caHash": control_plane.ca_hash}
        )


async def _registered(resources: Iterable[pulumi.Resource]) -> None:
    """Wait for the end of the resources' operations."""
    for resource in resources:
        await resource.urn.future()


# How long a change of endpoints takes to reach kube-proxy on a busy host, and nginx to finish its requests
# (docs/decisions/0035).
_ENDPOINT_SECONDS, _REQUEST_SECONDS = 15, 30


def _nginx(settings: Settings, dead: Collection[str]) -> dict[str, documents.Parameter]:
    nginx = settings.nginx
    hosts = [host for host in settings.nginx_hosts if host.name not in dead]
    pause = math.ceil(seconds(settings.proxy.min_sync_period)) + _ENDPOINT_SECONDS
    return {
        "image": nginx.image,
        "replicas": nginx.replicas,
        "node_port": nginx.node_port,
        # With fewer hosts than that, pods would stay pending.
        "spread": max(1, min(settings.nginx_spread, len(hosts))),
        "pause": pause,
        "grace": pause + _REQUEST_SECONDS,
    }


def _subject(
    settings: Settings, nodes: Iterable[pulumi.CustomResource], *manifests: Manifest
) -> pulumi.Output[str]:
    """A fingerprint that changes when a node or object is replaced or an object's spec changes."""
    generations = [
        pulumi.Output.all(resource.id, resource.metadata).apply(_generation)
        for manifest in manifests
        for resource in manifest.objects.values()
    ]
    proxy = settings.proxy.model_dump_json()
    made = [node.id for node in nodes]
    return pulumi.Output.all(*made, *generations).apply(lambda known: "\n".join([*known, proxy]))


def _generation(values: list[Any]) -> str:
    identity, metadata = values
    return f"{identity} {metadata.get('uid', '')} {metadata.get('generation', '')}"
