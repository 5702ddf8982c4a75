"""The control plane: `kubeadm init`, and what other components need from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pulumi
from pulumi_command import remote

from components import changes
from components.host import PreparedHost
from components.remote import plain_output
from model import certificates, kubeadm, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class ControlPlaneArgs:
    """Arguments of a control plane.

    Attributes:
        settings: The environment.
        prepared: The prepared host that becomes the control plane.
        renewal: Certificates that expire by then are renewed (`certificates.renewal`); empty for none.
    """

    settings: Settings
    prepared: PreparedHost
    renewal: str = ""


class ControlPlane(pulumi.ComponentResource):
    """A host on which `kubeadm init` has run.

    Attributes:
        host: The host's settings.
        init: The command that created the cluster. A change of the cluster's identity
            (`components/changes.py`) replaces it and everything in the cluster.
        runner: Runs steps on the control plane for other components.
        kubeconfig: The administrator's kubeconfig with the address that people use; secret.
        admin_kubeconfig: The step that reads the cluster's identity. Resources `deleted_with` it are left
            alone when the cluster is removed or replaced. `init` itself wouldn't work, because the engine
            marks it as deleted too late (docs/decisions/0006).
        ca_hash: `sha256:…` of the cluster's CA certificate, which identifies the cluster.
        certificates_expire: When the first of the cluster's certificates expires, if that is known.
    """

    def __init__(self, name: str, args: ControlPlaneArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:ControlPlane", name, None, opts)
        settings, prepared = args.settings, args.prepared
        self.host = prepared.host
        self.runner = prepared.runner
        self.init = self.runner.step(
            steps.INIT,
            self,
            triggers=list(changes.identity(settings).values()),
            values={
                "CONFIG": kubeadm.init_config(settings),
                "PATCHES": "\n".join(f"{file}\t{text}" for file, text in kubeadm.patches(settings).items()),
                "CERT_SANS": "\n".join(settings.cert_sans),
                **_certificates(settings, args.renewal),
                "KUBELET": kubeadm.kubelet_config(settings),
                "PROXY": kubeadm.proxy_config(settings),
                "POD_NETWORK": pod_network.of(settings).lines,
                "DISABLE_EVICTION": "true" if settings.drain.disable_eviction else "",
            },
            opts=pulumi.ResourceOptions(
                depends_on=[prepared.ready],
                deleted_with=prepared.claim,
                replace_with=[prepared.claim],
                protect=settings.production or None,
            ),
        )
        # The deregister steps are `deleted_with` this resource: it is deleted with the cluster, and nothing
        # else depends on it. A step or this component wouldn't work: the engine also counts a component's
        # children, so each worker would wait until the next one is restored (docs/decisions/0021).
        self._nodes = pulumi.ComponentResource(
            "kubeadm-ipvs:index:NodeList", "node-list", None, pulumi.ResourceOptions(parent=self)
        )
        server = f"https://{settings.api_server}"
        # Read twice: a run that renews the administrator's certificate reads `kubeconfig` again, which makes
        # it unknown in that preview. The CA hash must stay known, or every join would appear to change.
        read = self._kubeconfig(args.renewal)
        self.kubeconfig: pulumi.Output[str] = pulumi.Output.secret(
            read.stdout.apply(lambda text: kubeadm.kubeconfig_for(text, server))
        )
        self.admin_kubeconfig = self._admin(steps.ADMIN)
        self.ca_hash: pulumi.Output[str] = pulumi.Output.unsecret(
            self.admin_kubeconfig.stdout.apply(kubeadm.ca_hash)
        )
        self.certificates_expire: pulumi.Output[str | None] = pulumi.Output.unsecret(
            pulumi.Output.all(plain_output(self.init), self.kubeconfig).apply(
                lambda known: certificates.first_expiry(known[0] or "", known[1])
            )
        )
        self.register_outputs({"kubeconfig": self.kubeconfig, "caHash": self.ca_hash})

    def _kubeconfig(self, renewal: str) -> remote.Command:
        """The step for `kubeconfig`. Its text changes only with a renewal, so it has no empty value."""
        if not renewal:
            return self._admin(steps.KUBECONFIG)
        return self._admin(replace(steps.KUBECONFIG, values=frozenset({"RENEW"})), {"RENEW": renewal})

    def _admin(self, step: steps.Step, values: Mapping[str, str] | None = None) -> remote.Command:
        """A step that prints the administrator's kubeconfig.

        Its text is constant and only a new cluster changes its trigger, so everything built from its output
        stays known in previews of other changes.
        """
        return self.runner.step(
            step,
            self,
            triggers=[self.init.id],
            values=values,
            opts=pulumi.ResourceOptions(depends_on=[self.init], deleted_with=self.init),
        )

    def deregister(self, host: Host) -> remote.Command:
        """The step that removes a worker's Node object after the worker's claim has been deleted."""
        return self.runner.step(
            steps.DEREGISTER,
            self,
            about=host.name,
            repair=host.repair,
            values={"NODE": host.name},
            opts=pulumi.ResourceOptions(deleted_with=self._nodes),
        )


def _certificates(settings: Settings, renewal: str) -> dict[str, str]:
    """The values of `init` that concern certificates."""
    wanted = settings.cluster.certificates
    days = str(wanted.renew_days)
    timer = steps.script_text(steps.RENEWAL, {"CERTIFICATE_DAYS": days}) if wanted.renew_timer else ""
    return {"CERTIFICATE_DAYS": days, "RENEW": renewal, "RENEWAL": timer}
