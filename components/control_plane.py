"""The control plane: `kubeadm init`, and what other components need from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_command import remote

from components import changes, proxy
from components.host import PreparedHost
from components.remote import plain_output
from model import certificates, kubeadm, kubeconfig, pod_network, steps
from model.settings import Host, Settings


@dataclass(frozen=True)
class ControlPlaneArgs:
    """Arguments of a control plane.

    Attributes:
        settings: The environment.
        prepared: The prepared host that becomes the control plane.
        renewal: Certificates that expire by then are renewed (`certificates.renewal`); empty for none.
        kubeconfig: The administrator's kubeconfig of the last completed run; None before the first.
    """

    settings: Settings
    prepared: PreparedHost
    renewal: str = ""
    kubeconfig: str | None = None


class ControlPlane(pulumi.ComponentResource):
    """A host on which `kubeadm init` has run.

    Attributes:
        host: The host's settings.
        init: The command that created the cluster. A change of the cluster's identity
            (`components/changes.py`) replaces it and everything in the cluster.
        runner: Runs steps on the control plane for other components.
        kubeconfig: The administrator's kubeconfig with the address that people use; secret.
        identity: Stands for the cluster. Resources `deleted_with` it are left alone when the cluster is
            removed or replaced. `init` itself wouldn't work, because the engine marks it as deleted too late
            (docs/decisions/0006).
        ca_hash: `sha256:…` of the cluster's CA certificate, which identifies the cluster.
        certificates_expire: When the first of the cluster's certificates expires, if that is known.
    """

    def __init__(self, name: str, args: ControlPlaneArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:ControlPlane", name, None, opts)
        self._settings = settings = args.settings
        prepared = args.prepared
        self.host = prepared.host
        self.runner = prepared.runner
        self.init = self.runner.step(
            steps.INIT,
            self,
            triggers=list(changes.identity(settings).values()),
            values={
                **proxy.values(settings, self.host),
                "CONFIG": kubeadm.init_config(settings),
                "PATCHES": "\n".join(f"{file}\t{text}" for file, text in kubeadm.patches(settings).items()),
                "CERT_SANS": "\n".join(settings.cert_sans),
                "CERTIFICATE_DAYS": str(settings.cluster.certificates.renew_days),
                "RENEW": args.renewal,
                "RENEWAL_TIMER": "true" if settings.cluster.certificates.renew_timer else "",
                "KUBELET": kubeadm.kubelet_config(settings),
                "POD_NETWORK": pod_network.of(settings).lines,
                "DISABLE_EVICTION": "true" if settings.drain.disable_eviction else "",
            },
            opts=pulumi.ResourceOptions(
                depends_on=[prepared.ready],
                deleted_with=prepared.claim,
                replace_with=[prepared.claim],
                protect=settings.production or None,
                # Its results end with the kubeconfig.
                additional_secret_outputs=["stdout"],
            ),
        )
        # The deregister steps are `deleted_with` this resource: it is deleted with the cluster, and nothing
        # else depends on it. A step or this component wouldn't work: the engine also counts a component's
        # children, so each worker would wait until the next one is restored (docs/decisions/0021).
        self._nodes = pulumi.ComponentResource(
            "kubeadm-ipvs:index:NodeList", "node-list", None, pulumi.ResourceOptions(parent=self)
        )
        self.identity = pulumi.Stash(
            "cluster-identity",
            input=self.init.id,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[self.init],
                deleted_with=self.init,
                replace_on_changes=["input"],
                replace_with=[self.init],
                delete_before_replace=True,
            ),
        )
        self.kubeconfig = self._kubeconfig(args.kubeconfig)
        self.ca_hash: pulumi.Output[str] = pulumi.Output.unsecret(self.kubeconfig.apply(kubeadm.ca_hash))
        self.certificates_expire: pulumi.Output[str | None] = pulumi.Output.unsecret(
            pulumi.Output.all(plain_output(self.init), self.kubeconfig).apply(
                lambda known: certificates.first_expiry(known[0] or "", known[1])
            )
        )
        self.register_outputs({"kubeconfig": self.kubeconfig, "caHash": self.ca_hash})

    def _kubeconfig(self, previous: str | None) -> pulumi.Output[str]:
        """The administrator's kubeconfig, from `init`'s results.

        A preview that changes `init` doesn't know them. The provider, and with it every object, would be
        unknown too, so a preview uses the kubeconfig of the last completed run.
        """
        server = f"https://{self._settings.api_server}"

        def read(results: str) -> str:
            try:
                text = kubeconfig.printed(results)
            except kubeconfig.KubeconfigError:
                # An earlier version of the program ran `init`, and this run doesn't update it (`--target`).
                if previous is None:
                    raise
                text = previous
            return kubeadm.kubeconfig_for(text, server)

        if pulumi.runtime.is_dry_run() and previous is not None:
            return pulumi.Output.secret(kubeadm.kubeconfig_for(previous, server))
        return pulumi.Output.secret(self.init.stdout.apply(read))

    def nodes(
        self, hosts: Sequence[Host], joined: Sequence[remote.Command], network: Sequence[pulumi.Resource]
    ) -> remote.Command:
        """The step that waits until the hosts' nodes are Ready, and sets their labels and taints.

        Args:
            hosts: The hosts, without dead ones.
            joined: The commands that made them nodes (init or join).
            network: The pod network, without which no node becomes Ready.
        """
        settings = self._settings
        return self.runner.step(
            steps.NODES,
            self,
            name="nodes",
            triggers=[self.init.id],
            values={
                "NODES": "\n".join(
                    f"{host.name} {_labels(host)} {_taints(settings, host)}" for host in hosts
                ),
                "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
            },
            computed={"SUBJECT": membership(hosts, joined)},
            opts=pulumi.ResourceOptions(depends_on=[*joined, *network], deleted_with=self.init),
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


def membership(hosts: Sequence[Host], joined: Sequence[remote.Command]) -> pulumi.Output[str]:
    """A digest that changes when a host joins, leaves, or may have joined again (`repair`)."""
    repairs = "\n".join(f"{host.name} {host.repair}" for host in hosts)
    made = pulumi.Output.all(*(command.id for command in joined))
    return made.apply(lambda ids: hashlib.sha256("\n".join([repairs, *ids]).encode()).hexdigest()[:16])


def _labels(host: Host) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(host.labels.items())) or "-"


def _taints(settings: Settings, host: Host) -> str:
    return ",".join(kubeadm.node_taints(settings, host)) or "-"
