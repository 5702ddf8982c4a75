"""What the cluster promises, and each host's kernel showing it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

from components.control_plane import ControlPlane
from components.host import PreparedHost
from components.remote import STEPS, compose, plain_output
from model import ipvs
from model.settings import Host, Settings


@dataclass(frozen=True)
class ProofArgs:
    """What is proved, and after what.

    Attributes:
        settings: The environment.
        machines: The hosts by name, each to be proved.
        control_plane: Where the cluster is asked what it promises.
        subject: Changes when what stands behind the services does: then it is proved anew.
        proved: What `Proof.proved` was after the last run that came to its end, or None.
        depends_on: What must be there first.
    """

    settings: Settings
    machines: Mapping[str, PreparedHost]
    control_plane: ControlPlane
    subject: pulumi.Input[str]
    proved: pulumi.Input[str | None]
    depends_on: Sequence[pulumi.Resource]


class Proof(pulumi.ComponentResource):
    """Fails the update, naming host and finding, unless every host's kernel shows what it must.

    Attributes:
        tables: Per host, the virtual servers as the kernel has them, structured.
        proved: Which attempt it was that proved what; unknown until every host has.
    """

    def __init__(self, name: str, args: ProofArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Proof", name, None, opts)
        settings, cluster = args.settings, args.control_plane
        self._settings = settings
        attempt = pulumi.Output.all(args.proved, args.subject, cluster.init.id, _reasons(settings)).apply(
            lambda known: attempt_at(known[0], known[1:])
        )
        look = cluster.runner.step(
            "look",
            self,
            name="promises",
            limit_seconds=settings.limits.proof + settings.proof.wait_seconds,
            triggers=[cluster.init.id],
            values={
                "SERVICES": "\n".join(
                    f"{service} {count}" for service, count in ipvs.promised_services(settings).items()
                ),
                "WAIT_SECONDS": str(settings.proof.wait_seconds),
                # Whatever makes a proof run again, and each run after one in which a host wasn't proved:
                # kernels are held against what is promised then, not when it was asked last.
                "SUBJECT": attempt,
            },
            opts=pulumi.ResourceOptions(depends_on=list(args.depends_on), deleted_with=cluster.init),
        )
        promises = plain_output(look)
        self.tables: dict[str, pulumi.Output[list[dict[str, Any]]]] = {}
        for host in settings.hosts:
            proof = args.machines[host.name].runner.step(
                "proof",
                self,
                limit_seconds=settings.limits.proof + settings.proof.wait_seconds,
                triggers=[cluster.init.id],
                values=self._values(host, promises),
                repair=host.repair,
                opts=pulumi.ResourceOptions(depends_on=[look], deleted_with=cluster.init),
            )
            self.tables[host.name] = plain_output(proof).apply(ipvs.report_tables)
        self.proved = pulumi.Output.all(attempt, *self.tables.values()).apply(lambda known: str(known[0]))
        self.register_outputs({"hosts": [host.name for host in settings.hosts]})

    def _values(self, host: Host, promises: pulumi.Output[str]) -> Mapping[str, pulumi.Input[str]]:
        settings = self._settings
        port = settings.nginx.node_port
        return {
            "EXPECTED": promises.apply(lambda text: "\n".join(ipvs.expected(text, settings, host))),
            "CLUSTER_ENDPOINT": promises.apply(ipvs.cluster_endpoint),
            "NODE_ENDPOINT": f"{host.address}:{port}",
            "ENDPOINTS": "\n".join(f"{other.address}:{port}" for other in settings.hosts),
            "MODE": settings.proxy.mode,
            "SCHEDULER": settings.proxy.scheduler,
            "REQUESTS": str(settings.proof.requests),
            "WAIT_SECONDS": str(settings.proof.wait_seconds),
        }


def attempt_at(proved: str | None, asked: Sequence[Any]) -> str:
    """What names an attempt at a proof: what is to be proved, as a digest, and a word of its own.

    The same as long as that is proved already. Where it isn't, each run is an attempt of its own: one that
    failed has left its promise in the state, which may be no longer true (docs/decisions/0022).

    Args:
        proved: The attempt that succeeded last, if any did.
        asked: Whatever the proof is about.
    """
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    return proved if proved and proved.startswith(f"{digest} ") else f"{digest} {secrets.token_hex(4)}"


def _reasons(settings: Settings) -> str:
    """What a proof depends on besides the cluster."""
    # With its repair: pods of a node that was made anew have other addresses.
    hosts = [f"{host.name} {host.address} {host.repair}" for host in settings.hosts]
    texts = [compose(STEPS[step], {}) for step in ("look", "proof")]
    return "\n".join([*hosts, settings.proof.model_dump_json(), *texts])
