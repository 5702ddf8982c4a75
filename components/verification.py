"""Verifies each host's kernel against the services that the cluster should balance."""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_command import remote

from components.control_plane import ControlPlane, membership
from components.host import PreparedHost
from components.remote import plain_output
from model import ipvs, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class VerificationArgs:
    """Arguments of the verification.

    Attributes:
        settings: The environment.
        control_plane: The control plane, from which the expected services are read.
        prepared: The prepared hosts by name; each is verified. Dead hosts are missing;
            `Verification.add_dead_host` adds them later.
        joined: The command that made each of them a node, by the host's name.
        subject: A fingerprint of everything behind the services. If it changes, every host is verified again.
        verified: `Verification.verified` after the last completed run, or None.
        depends_on: Resources that must exist first.
    """

    settings: Settings
    control_plane: ControlPlane
    prepared: Mapping[str, PreparedHost]
    joined: Mapping[str, remote.Command]
    subject: pulumi.Input[str]
    verified: str | None
    depends_on: Sequence[pulumi.Resource]


class Verification(pulumi.ComponentResource):
    """Fails the update unless every host's kernel matches the cluster's services.

    A host that joins is verified against the services at that time. The other hosts aren't logged into,
    unless what is expected of them has changed.

    Attributes:
        steps: The verification of each host of `prepared`.
    """

    def __init__(self, name: str, args: VerificationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        previous = pulumi.Alias(name="proof", type_="kubeadm-ipvs:index:Proof")
        aliased = pulumi.ResourceOptions(aliases=[previous])
        super().__init__(
            "kubeadm-ipvs:index:Verification", name, None, pulumi.ResourceOptions.merge(aliased, opts)
        )
        settings, cluster = args.settings, args.control_plane
        self._settings = settings
        self._cluster = cluster
        self._attempt = pulumi.Output.all(
            args.verified, args.subject, cluster.init.id, _reasons(settings)
        ).apply(lambda known: attempt_at(known[0], known[1:]))
        hosts = [prepared.host for prepared in args.prepared.values()]
        members = membership(hosts, list(args.joined.values()))
        expected_services = cluster.runner.step(
            steps.EXPECTED_SERVICES,
            self,
            name="expected-services",
            triggers=[cluster.init.id],
            values={
                "SERVICES": "\n".join(
                    f"{service} {count}" for service, count in ipvs.expected_services(settings).items()
                ),
                "NODE_NAMES": "\n".join(args.prepared),
                "WAIT_SECONDS": str(settings.verification.wait_seconds),
            },
            # Changes whenever the verification must run again, including after a failed one: kernels are
            # compared with the services at that time, not with an earlier list.
            computed={"SUBJECT": pulumi.Output.concat(self._attempt, " ", members)},
            opts=pulumi.ResourceOptions(
                depends_on=list(args.depends_on),
                deleted_with=cluster.init,
                aliases=[pulumi.Alias(name="promises")],
            ),
        )
        self._services = self._kept_in_previews(plain_output(expected_services), args.verified)
        self._tables: dict[str, pulumi.Output[list[dict[str, Any]]]] = {}
        self.steps = [self._verify(prepared, args.joined[name]) for name, prepared in args.prepared.items()]
        self.register_outputs({})

    @property
    def tables(self) -> dict[str, pulumi.Output[list[dict[str, Any]]]]:
        """The verified services' virtual servers in each host's kernel, by host name."""
        return {host.name: self._tables[host.name] for host in self._settings.hosts}

    @property
    def verified(self) -> pulumi.Output[str]:
        """The attempt that succeeded (`attempt_at`); unknown until every host is verified."""
        return pulumi.Output.all(self._attempt, *self.tables.values()).apply(lambda known: str(known[0]))

    def add_dead_host(self, prepared: PreparedHost, joined: remote.Command) -> None:
        """Verify a host that was dead when the run started, after its own steps.

        The verification is replaced, which removes it from the state. So a run fails as long as the host is
        dead, even if nothing on it has changed, and verifies it once it is back.
        """
        self._verify(prepared, joined, [secrets.token_hex(4)], [joined])

    def _kept_in_previews(self, services: pulumi.Output[str], verified: str | None) -> pulumi.Output[str]:
        """The services; in a preview, those in the state as long as the attempt is the same.

        Otherwise a preview that adds a host would show every other host as verified again, because it doesn't
        know the services then.
        """
        preview = pulumi.runtime.is_dry_run()
        kept = pulumi.Stash(
            "verified-services",
            # Compressed, because the state has it three times.
            input=services.apply(_packed),
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=["input"] if preview else None),
        )
        if not preview:
            return services
        stored: pulumi.Output[str] = kept.input.apply(_unpacked)
        return self._attempt.apply(lambda attempt: stored if attempt == verified else services)

    def _verify(
        self,
        prepared: PreparedHost,
        joined: remote.Command,
        triggers: Sequence[str] = (),
        after: Sequence[pulumi.Resource] = (),
    ) -> remote.Command:
        cluster, host = self._cluster, prepared.host
        step = prepared.runner.step(
            steps.VERIFICATION,
            self,
            triggers=[cluster.init.id, *triggers],
            values=self._values(host),
            computed=pulumi.Output.all(self._services, membership([host], [joined])).apply(
                lambda known: self._computed(host, known[0], known[1])
            ),
            # Not on the expected services, which the values depend on: for each dependency, the SDK searches
            # all resources behind it for cycles, and behind these is the whole cluster.
            opts=pulumi.ResourceOptions(depends_on=list(after), deleted_with=cluster.init),
        )
        self._tables[host.name] = pulumi.Output.all(plain_output(step), self._services).apply(
            lambda known: ipvs.report_tables(str(known[0]), str(known[1]), self._settings)
        )
        return step

    def _values(self, host: Host) -> dict[str, str]:
        settings = self._settings
        return {
            "NODE_ENDPOINT": f"{host.address}:{settings.nginx.node_port}",
            "MODE": settings.proxy.mode,
            "SCHEDULER": settings.proxy.scheduler,
            "REQUESTS": str(settings.verification.requests),
            "WAIT_SECONDS": str(settings.verification.wait_seconds),
            "POD_NETWORK": pod_network.of(settings).lines,
        }

    def _computed(self, host: Host, services: str, subject: str) -> dict[str, str]:
        settings = self._settings
        return {
            "EXPECTED": "\n".join(ipvs.expected(services, settings, host)),
            "CLUSTER_ENDPOINT": ipvs.cluster_endpoint(services),
            "ENDPOINTS": "\n".join(ipvs.node_ports(services, settings, host)),
            "NODE_PROBLEM": ipvs.node_problem(services, host),
            "SUBJECT": subject,
        }


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode())).decode()


def _unpacked(packed: str) -> str:
    return zlib.decompress(base64.b64decode(packed)).decode()


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
    """What the verification depends on besides the cluster and each host."""
    scripts = [
        steps.digest(script)
        for step in (steps.EXPECTED_SERVICES, steps.VERIFICATION)
        for script in step.scripts
    ]
    return "\n".join([settings.verification.model_dump_json(), *scripts])
