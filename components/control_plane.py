"""The first control plane: kubeadm init, and what others need of it."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components import changes
from components.host import PreparedHost
from model import drift, kubeadm, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class ControlPlaneArgs:
    """What a control plane is made from.

    Attributes:
        settings: The environment.
        machine: The prepared host that becomes the control plane.
    """

    settings: Settings
    machine: PreparedHost


class ControlPlane(pulumi.ComponentResource):
    """A host on which `kubeadm init` has run.

    Attributes:
        host: The machine.
        init: The command that made the cluster. A change of the cluster's identity
            (`components/changes.py`) replaces it, and with it everything that stands on it.
        runner: Runs steps on the control plane for others (tokens, nodes, the proof).
        kubeconfig: The administrator's, secret, with the address that people use.
        admin_kubeconfig: The step that reads the cluster's identity. Resources `deleted_with` it are left
            alone when the cluster is removed or replaced. `init` wouldn't do: the engine treats resources
            that depend on it as deleted, but `init` itself too late.
        ca_hash: `sha256:…` of the cluster's certificate authority: who the cluster is.
    """

    def __init__(self, name: str, args: ControlPlaneArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:ControlPlane", name, None, opts)
        settings, machine = args.settings, args.machine
        self.host = machine.host
        self.runner = machine.runner
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
                "DISABLE_EVICTION": "true" if settings.drain.disable_eviction else "",
            },
            opts=pulumi.ResourceOptions(
                depends_on=[machine.ready],
                deleted_with=machine.claim,
                replace_with=[machine.claim],
                protect=settings.production or None,
            ),
        )
        # What the workers' registrations are `deleted_with`: it goes when the cluster does, and by itself
        # nothing waits for it. Not a step, and not this component, whose children the engine counts too:
        # each worker would wait for the next one's giving back (docs/decisions/0021).
        self._nodes = pulumi.ComponentResource(
            "kubeadm-ipvs:index:NodeList", "node-list", None, pulumi.ResourceOptions(parent=self)
        )
        server = f"https://{settings.api_server}"
        # Read twice, since a repair may renew the administrator's certificate, and who the cluster is
        # must stay known in that preview too: with it unknown all joins would seem to change.
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

        Constant text and a trigger that only a new cluster changes: what is built from this output stays
        known in previews of every other change.
        """
        return self.runner.step(
            step,
            self,
            triggers=[self.init.id],
            opts=pulumi.ResourceOptions(depends_on=[self.init], deleted_with=self.init),
        )

    def deregister(self, host: Host) -> remote.Command:
        """A worker's entry in the list of nodes, which its claim waits for: removed after the claim."""
        return self.runner.step(
            steps.DEREGISTER,
            self,
            about=host.name,
            values={"NODE": host.name},
            opts=pulumi.ResourceOptions(deleted_with=self._nodes),
        )
