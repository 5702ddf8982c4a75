"""The whole cluster: composes the other components and is the only place that knows their order."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from components import changes
from components.control_plane import ControlPlane, ControlPlaneArgs
from components.host import PreparedHost, PreparedHostArgs
from components.manifests import Manifest, ManifestArgs
from components.previous_outputs import PreviousOutputs
from components.verification import Verification, VerificationArgs
from components.workers import Workers, WorkersArgs, finished
from model import documents, pod_network
from model.field_types import seconds
from model.settings import Settings


@dataclass(frozen=True)
class ClusterArgs:
    """Arguments of a cluster.

    Attributes:
        settings: The environment.
        stack: The stack's name, written on each host as its owner.
        previous: The stack's outputs after the last completed run.
        renewal: Certificates that expire by then are renewed (`certificates.renewal`); empty for none.
        dead: The names of dead workers (`dead_hosts.find`).
    """

    settings: Settings
    stack: str
    previous: PreviousOutputs = field(default_factory=PreviousOutputs)
    renewal: str = ""
    dead: frozenset[str] = frozenset()


class Cluster(pulumi.ComponentResource):
    """Hosts, control plane, workers, pod network, application and verification.

    Each host is prepared as soon as it is reachable. `init` waits only for the control plane's own
    preparation. A worker joins when it is prepared and the API is up. The pod network is applied as soon as
    the API is up. The application waits until all nodes are Ready, because its pods can't start earlier and
    the control plane is busiest while nodes join.

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
        owner = _kept(self, "owner", f"{args.stack} {secrets.token_hex(4)}")
        # `join-tokens` is secret.
        token_key = _kept(self, "join-tokens", pulumi.Output.secret(secrets.token_hex(32)))

        first = settings.control_plane
        prepared = {first.name: PreparedHost(first.name, PreparedHostArgs(settings, first, owner), child)}
        control_plane = ControlPlane(
            "control-plane",
            ControlPlaneArgs(settings, prepared[first.name], args.renewal, args.previous.kubeconfig),
            child,
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
                {
                    **pods.parameters(settings),
                    "max_unavailable": _unavailable(len(settings.hosts), len(dead)),
                },
                provider,
                control_plane,
                nodes=len(settings.hosts),
                wait_for_daemon_sets=not dead,
            ),
            child,
        )
        workers = Workers(
            "workers", WorkersArgs(settings, control_plane, token_key, args.previous.members), child
        )
        workers.add([prepared[host.name] for host in living])
        joined = [control_plane.init, *workers.joins.values()]
        nodes = control_plane.nodes([first, *living], joined, [*network.objects.values()])
        nginx = Manifest(
            "nginx",
            ManifestArgs(
                "nginx.yaml",
                _nginx(settings, args.dead),
                provider,
                control_plane,
                depends_on=[nodes],
            ),
            child,
        )
        verification = Verification(
            "verification",
            VerificationArgs(
                settings,
                control_plane,
                {host.host.name: host for host in prepared.values()},
                dict(zip(prepared, joined, strict=True)),
                subject=_subject(settings, control_plane, network, nginx),
                verified=args.previous.verified,
                depends_on=[*nginx.objects.values(), nodes],
            ),
            child,
        )
        # Not `depends_on`, which would also order deletions: no host could be restored before the dead one.
        last: pulumi.Output[None] = pulumi.Output.from_input(finished(verification.steps))
        for host in dead:
            prepared[host.name] = PreparedHost(
                host.name,
                PreparedHostArgs(settings, host, owner, outlived_by=[deregister[host.name]], after=last),
                child,
            )
            workers.add([prepared[host.name]])
            verification.add_dead_host(prepared[host.name], workers.joins[host.name])
        self.kubeconfig = control_plane.kubeconfig
        self.tables = verification.tables
        self.verified = verification.verified
        self.certificates_expire = control_plane.certificates_expire
        self.node_ports = [f"http://{host.address}:{settings.nginx.node_port}/" for host in settings.hosts]
        self._last = [*verification.steps, *workers.joins.values()]
        self.register_outputs(
            {"kubeconfig": self.kubeconfig, "nodePorts": self.node_ports, "caHash": control_plane.ca_hash}
        )

    async def settled(self) -> None:
        """Wait for the end of the last resources' operations, whether they succeed or not.

        The SDK itself waits for everything at the end of the program, but its time grows with the square of
        what is still outstanding by then (`wait_for_rpcs`).
        """
        await asyncio.gather(*(resource.urn.future() for resource in self._last), return_exceptions=True)


def _kept(parent: pulumi.Resource, name: str, value: pulumi.Input[str]) -> pulumi.Output[str]:
    """A value that is chosen once and stays in the state."""
    stash = pulumi.Stash(
        name, input=value, opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["input"])
    )
    return stash.output


def _unavailable(hosts: int, dead: int) -> int | str:
    """How many nodes may lack a pod of the network at a time during its rollout; it counts dead nodes too.

    A percentage, so that a host more or less doesn't change the object. Kubernetes rounds it up.
    """
    return f"{_ROLLOUT_PERCENT}%" if not dead else math.ceil(hosts * _ROLLOUT_PERCENT / 100) + dead


_ROLLOUT_PERCENT = 10


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


def _subject(settings: Settings, control_plane: ControlPlane, *manifests: Manifest) -> pulumi.Output[str]:
    """A fingerprint that changes when the cluster or an object is replaced or an object's spec changes."""
    generations = [
        pulumi.Output.all(resource.id, resource.metadata).apply(_generation)
        for manifest in manifests
        for resource in manifest.objects.values()
    ]
    proxy = settings.proxy.model_dump_json(exclude={"max_unavailable"})
    return pulumi.Output.all(control_plane.init.id, *generations).apply(
        lambda known: "\n".join([*known, proxy])
    )


def _generation(values: list[Any]) -> str:
    identity, metadata = values
    return f"{identity} {metadata.get('uid', '')} {metadata.get('generation', '')}"
