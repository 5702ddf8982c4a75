"""One host: claimed, prepared, and restored to its original state on destroy."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pulumi
from pulumi_command import remote

from components.remote import Runner
from model import firewall, pod_network, steps
from model.field_types import Mirror, is_url
from model.settings import Host, Settings


@dataclass(frozen=True)
class PreparedHostArgs:
    """Arguments of a host's preparation.

    Attributes:
        settings: The environment.
        host: One of `settings.hosts`.
        owner: The owner to claim the host for (see `Runner`); a host with a different owner is refused.
        outlived_by: Resources to delete only after the host has been restored.
        after: No step on the host starts before this is known.
    """

    settings: Settings
    host: Host
    owner: pulumi.Input[str]
    outlived_by: Sequence[pulumi.Resource] = ()
    after: pulumi.Output[None] | None = None


class PreparedHost(pulumi.ComponentResource):
    """A host that is ready for kubeadm.

    Its preparation is one step of several scripts: claim (checks the host and records its original state),
    kernel, firewall, packages, runtime. The resource `claim`, whose delete restores the host, comes before
    it: whatever fails, the claim is in the state.

    Attributes:
        host: The host's settings.
        runner: Runs further steps on the host.
        claim: Everything else on the host is `deleted_with` it.
        ready: The preparation.
    """

    def __init__(self, name: str, args: PreparedHostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:PreparedHost", name, None, opts)
        self.host = args.host
        self._args = args
        self.runner = Runner(args.settings, args.host, args.owner, self, args.after)
        self.claim = self._claim()
        self.ready = self._prepare()
        self.register_outputs({"address": args.host.address, "claim": self.claim.id})

    def _claim(self) -> remote.Command:
        settings, host = self._args.settings, self.host
        return self.runner.step(
            steps.CLAIM,
            self,
            # A different address means a different machine, on which no step has run.
            triggers=[host.address],
            values={"POD_NETWORK": pod_network.of(settings).lines},
            # Workers may still come and go in production; losing the control plane means losing the cluster.
            opts=pulumi.ResourceOptions(
                protect=(settings.production and host.role == "control-plane") or None,
                depends_on=list(self._args.outlived_by),
            ),
        )

    def _prepare(self) -> remote.Command:
        settings, host = self._args.settings, self.host
        network = pod_network.of(settings)
        return self.runner.step(
            steps.PREPARATION,
            self,
            values={
                **_claim(settings, host),
                **firewall.values(settings, host),
                **_packages(settings),
                **_runtime(settings, host),
                "NETWORK_MODULES": " ".join(network.modules(settings)),
                "POD_NETWORK": network.lines,
            },
            opts=pulumi.ResourceOptions(
                depends_on=[self.claim], deleted_with=self.claim, replace_with=[self.claim]
            ),
        )


def _claim(settings: Settings, host: Host) -> dict[str, str]:
    return {
        "ROLE": host.role,
        "ADDRESS": host.address,
        "NODE_PORT": str(settings.nginx.node_port),
        "MODE": settings.proxy.mode,
        "SCHEDULER": settings.proxy.scheduler,
        "IGNORED_CHECKS": "\n".join(settings.preflight.ignore),
        "NETWORKS": _networks(settings),
        "RESOLV_CONF": settings.cluster.kubelet.resolv_conf or "",
        "REMOVE_LEFTOVERS": "true" if settings.preflight.remove_leftovers else "",
        # The checks after it take seconds, or a minute on a busy emulated host.
        "FIRST_BOOT_SECONDS": str(max(0, settings.step_timeouts.inspect - 60)),
    }


def _networks(settings: Settings) -> str:
    """Lines `kind network`, which scripts/lib/networks.sh reads."""
    network = settings.network
    lines = [f"pod {network.pod_subnet}", f"service {network.service_subnet}"]
    return "\n".join([*lines, *(f"exclude {excluded}" for excluded in settings.proxy.exclude_cidrs)])


def _packages(settings: Settings) -> dict[str, str]:
    key = settings.packages.key
    return {
        "VERSION": settings.cluster.kubernetes_version,
        "REVISION": settings.packages.revision,
        # Only the host knows which of the two it needs.
        "REPOSITORY_DEB": settings.package_repository("deb"),
        "REPOSITORY_RPM": settings.package_repository("rpm"),
        "KEY": Path(key).read_text(encoding="utf-8").strip() if key and not is_url(key) else "",
        "KEY_URL": key if key and is_url(key) else "",
        "MANAGE": "true" if settings.packages.manage else "false",
    }


def _runtime(settings: Settings, host: Host) -> dict[str, str]:
    mirrors = "\n".join(
        " ".join([registry, *map(_mirror, found)])
        for registry, found in sorted(settings.runtime.mirrors.items())
    )
    return {
        "SANDBOX_IMAGE": settings.pause_image,
        "MIRRORS": mirrors,
        "IMAGES": "\n".join(node_images(settings, host)),
    }


def _mirror(mirror: Mirror) -> str:
    """A mirror as the step `runtime` reads it: `URL#override_path#ca=BASE64`. No URL contains a `#`."""
    ca = "" if mirror.ca is None else Path(mirror.ca).read_text(encoding="utf-8").strip()
    return (
        mirror.url
        + ("#override_path" if mirror.override_path else "")
        + (f"#ca={base64.b64encode(ca.encode()).decode()}" if ca else "")
    )


def node_images(settings: Settings, host: Host) -> tuple[str, ...]:
    """Images that every node runs but kubeadm doesn't pull on workers. They are pulled ahead of time."""
    images = [settings.pause_image, settings.kube_proxy_image, *pod_network.of(settings).images(settings)]
    if host.role == "worker" or not settings.workers:
        images.append(settings.nginx.image)
    return tuple(images)
