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
from components.remote import plain_output
from model import ipvs, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class VerificationArgs:
    """What is proved, and after what.

    Attributes:
        settings: The environment.
        machines: The hosts by name, each to be proved.
        control_plane: Where the cluster is asked what it promises.
        subject: Changes when what stands behind the services does: then it is proved anew.
        verified: What `Verification.verified` was after the last run that came to its end, or None.
        depends_on: What must be there first.
    """

    settings: Settings
    machines: Mapping[str, PreparedHost]
    control_plane: ControlPlane
    subject: pulumi.Input[str]
    verified: pulumi.Input[str | None]
    depends_on: Sequence[pulumi.Resource]


class Verification(pulumi.ComponentResource):
    """Fails the update, naming host and finding, unless every host's kernel shows what it must.

    Attributes:
        tables: Per host, the virtual servers as the kernel has them, structured.
        verified: Which attempt it was that proved what; unknown until every host has.
    """

    def __init__(self, name: str, args: VerificationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        former = pulumi.Alias(name="proof", type_="kubeadm-ipvs:index:Proof")
        aliased = pulumi.ResourceOptions(aliases=[former])
        super().__init__(
            "kubeadm-ipvs:index:Verification", name, None, pulumi.ResourceOptions.merge(aliased, opts)
        )
        settings, cluster = args.settings, args.control_plane
        self._settings = settings
        attempt = pulumi.Output.all(args.verified, args.subject, cluster.init.id, _reasons(settings)).apply(
            lambda known: attempt_at(known[0], known[1:])
        )
        expected_services = cluster.runner.step(
            steps.EXPECTED_SERVICES,
            self,
            name="expected-services",
            triggers=[cluster.init.id],
            values={
                "SERVICES": "\n".join(
                    f"{service} {count}" for service, count in ipvs.expected_services(settings).items()
                ),
                "WAIT_SECONDS": str(settings.verification.wait_seconds),
                # Whatever makes a proof run again, and each run after one in which a host wasn't proved:
                # kernels are held against what is promised then, not when it was asked last.
                "SUBJECT": attempt,
            },
            opts=pulumi.ResourceOptions(
                depends_on=list(args.depends_on),
                deleted_with=cluster.init,
                aliases=[pulumi.Alias(name="promises")],
            ),
        )
        services = plain_output(expected_services)
        self.tables: dict[str, pulumi.Output[list[dict[str, Any]]]] = {}
        for host in settings.hosts:
            verification = args.machines[host.name].runner.step(
                steps.VERIFICATION,
                self,
                triggers=[cluster.init.id],
                values=self._values(host, services),
                repair=host.repair,
                opts=pulumi.ResourceOptions(depends_on=[expected_services], deleted_with=cluster.init),
            )
            self.tables[host.name] = plain_output(verification).apply(ipvs.report_tables)
        self.verified = pulumi.Output.all(attempt, *self.tables.values()).apply(lambda known: str(known[0]))
        self.register_outputs({"hosts": [host.name for host in settings.hosts]})

    def _values(self, host: Host, services: pulumi.Output[str]) -> Mapping[str, pulumi.Input[str]]:
        settings = self._settings
        port = settings.nginx.node_port
        return {
            "EXPECTED": services.apply(lambda text: "\n".join(ipvs.expected(text, settings, host))),
            "CLUSTER_ENDPOINT": services.apply(ipvs.cluster_endpoint),
            "NODE_ENDPOINT": f"{host.address}:{port}",
            "ENDPOINTS": "\n".join(f"{other.address}:{port}" for other in settings.hosts),
            "MODE": settings.proxy.mode,
            "SCHEDULER": settings.proxy.scheduler,
            "REQUESTS": str(settings.verification.requests),
            "WAIT_SECONDS": str(settings.verification.wait_seconds),
        }


def attempt_at(verified: str | None, asked: Sequence[Any]) -> str:
    """What names an attempt at a proof: what is to be proved, as a digest, and a word of its own.

    The same as long as that is proved already. Where it isn't, each run is an attempt of its own: one that
    failed has left its promise in the state, which may be no longer true (docs/decisions/0022).

    Args:
        verified: The attempt that succeeded last, if any did.
        asked: Whatever the proof is about.
    """
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    return verified if verified and verified.startswith(f"{digest} ") else f"{digest} {secrets.token_hex(4)}"


def _reasons(settings: Settings) -> str:
    """What a proof depends on besides the cluster."""
    # With its repair: pods of a node that was made anew have other addresses.
    hosts = [f"{host.name} {host.address} {host.repair}" for host in settings.hosts]
    texts = [steps.script_text(step, {}) for step in (steps.EXPECTED_SERVICES, steps.VERIFICATION)]
    return "\n".join([*hosts, settings.verification.model_dump_json(), *texts])
