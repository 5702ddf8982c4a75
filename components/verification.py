"""Verifies each host's kernel against the services that the cluster should balance."""

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
from model import ipvs, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class VerificationArgs:
    """Arguments of the verification.

    Attributes:
        settings: The environment.
        prepared: The prepared hosts by name; each is verified.
        control_plane: The control plane, from which the expected services are read.
        subject: A fingerprint of everything behind the services. If it changes, every host is verified again.
        verified: `Verification.verified` after the last completed run, or None.
        depends_on: Resources that must exist first.
    """

    settings: Settings
    prepared: Mapping[str, PreparedHost]
    control_plane: ControlPlane
    subject: pulumi.Input[str]
    verified: str | None
    depends_on: Sequence[pulumi.Resource]


class Verification(pulumi.ComponentResource):
    """Fails the update unless every host's kernel matches the cluster's services.

    Attributes:
        tables: The verified services' virtual servers in each host's kernel, by host name.
        verified: The attempt that succeeded (`attempt_at`); unknown until every host is verified.
    """

    def __init__(self, name: str, args: VerificationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        previous = pulumi.Alias(name="proof", type_="kubeadm-ipvs:index:Proof")
        aliased = pulumi.ResourceOptions(aliases=[previous])
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
                # Changes whenever the verification must run again, including after a failed one: kernels are
                # compared with the services at that time, not with an earlier list.
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
            verification = args.prepared[host.name].runner.step(
                steps.VERIFICATION,
                self,
                triggers=[cluster.init.id],
                values=self._values(host, services),
                repair=host.repair,
                opts=pulumi.ResourceOptions(depends_on=[expected_services], deleted_with=cluster.init),
            )
            self.tables[host.name] = pulumi.Output.all(plain_output(verification), services).apply(
                lambda known: ipvs.report_tables(str(known[0]), str(known[1]), settings)
            )
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
            "POD_NETWORK": pod_network.of(settings).lines,
        }


def attempt_at(verified: str | None, subject: Sequence[Any]) -> str:
    """The ID of a verification attempt: a digest of what is verified, and a random word.

    A successful attempt keeps its ID until its subject changes. After a failed one, each run is a new
    attempt, because the state still has the list of services that the failed one used, and that list may be
    outdated (docs/decisions/0022).

    Args:
        verified: The last successful attempt, if any.
        subject: Everything that the verification depends on.
    """
    digest = hashlib.sha256(repr(subject).encode()).hexdigest()[:16]
    return verified if verified and verified.startswith(f"{digest} ") else f"{digest} {secrets.token_hex(4)}"


def _reasons(settings: Settings) -> str:
    """What the verification depends on besides the cluster."""
    # `repair` is included because a rejoined node's pods have new addresses.
    hosts = [f"{host.name} {host.address} {host.repair}" for host in settings.hosts]
    texts = [steps.script_text(step, {}) for step in (steps.EXPECTED_SERVICES, steps.VERIFICATION)]
    return "\n".join([*hosts, settings.verification.model_dump_json(), *texts])
