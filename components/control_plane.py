"""The control plane: `kubeadm init`, and what other components need from it."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components import changes
from components.host import PreparedHost
from model import drift, kubeadm, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class ControlPlaneArgs:
    """Arguments of a control plane.

    Attributes:
        settings: The environment.
        prepared: The prepared host that becomes the control plane.
    """

    settings: Settings
    prepared: PreparedHost


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
                "CERTIFICATE_DAYS": str(drift.CERTIFICATE_DAYS),
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
        # Read twice: a repair may renew the administrator's certificate, which makes `kubeconfig` unknown in
        # that preview. The CA hash must stay known, or every join would appear to change.
        self.kubeconfig: pulumi.Output[str] = pulumi.Output.secret(
            self._admin(steps.KUBECONFIG).stdout.apply(lambda text: kubeadm.kubeconfig_for(text, server))
        )
        self.admin_kubeconfig = self._admin(steps.ADMIN)
        self.ca_hash: pulumi.Output[str] = pulumi.Output.unsecret(
            self.admin_kubeconfig.stdout.apply(kubeadm.ca_hash)
        )
        self.register_outputs({"kubeconfig": self.kubeconfig, "caHash": self.ca_hash})

    def _admin(self, step: steps.Step) -> remote.Command:
        """A step that prints the administrator's kubeconfig.

        Its text is constant and only a new cluster changes its trigger, so everything built from its output
        stays known in previews of other changes.
        """
        return self.runner.step(
            step,
            self,
            triggers=[self.init.id],
            opts=pulumi.ResourceOptions(depends_on=[self.init], deleted_with=self.init),
        )

    def deregister(self, host: Host) -> remote.Command:
        """The step that removes a worker's Node object after the worker's claim has been deleted."""
        return self.runner.step(
            steps.DEREGISTER,
            self,
            about=host.name,
            values={"NODE": host.name},
            opts=pulumi.ResourceOptions(deleted_with=self._nodes),
        )
