"""Everything that is specific to the pod network, in one place.

flannel is the only one. Adding another takes a second instance of `PodNetwork`, a manifest and settings. The
steps get what they need as the value POD_NETWORK, which scripts/lib/pod_network.sh reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model.documents import Parameter
from model.settings import Settings


@dataclass(frozen=True)
class PodNetwork:
    """A pod network's parts in the cluster and on its hosts.

    Attributes:
        name: Its name in resource names.
        manifest: Its file in `manifests/`.
        parameters: Computes the values of the manifest's placeholders, except max_unavailable.
        images: Computes the images that every node runs.
        modules: Computes the kernel modules to load.
        all_modules: Kernel modules that any settings may need; a host must have all of them.
        ports: Ports between the hosts, such as `8472/udp`.
        interfaces: Interfaces with the pods' own traffic, which firewalls must trust.
        links: Interfaces that remain when the network is removed.
        chains: Prefixes of its iptables chains, without the hyphen.
        tables: Names of its nftables tables.
        cni_config: Its configuration in /etc/cni/net.d.
        cni_network: The network's name in that configuration.
        cni_plugin: Its plugin in /opt/cni/bin.
        cni_state: The plugin's folder in /var/lib/cni.
        folders: Other folders that it creates.
    """

    name: str
    manifest: str
    parameters: Callable[[Settings], Mapping[str, Parameter]]
    images: Callable[[Settings], tuple[str, ...]]
    modules: Callable[[Settings], tuple[str, ...]]
    all_modules: tuple[str, ...]
    ports: tuple[str, ...]
    interfaces: tuple[str, ...]
    links: tuple[str, ...]
    chains: tuple[str, ...]
    tables: tuple[str, ...]
    cni_config: str
    cni_network: str
    cni_plugin: str
    cni_state: str
    folders: tuple[str, ...]

    @property
    def lines(self) -> str:
        """The step value POD_NETWORK: lines `kind value`. It depends on no setting."""
        several = {
            "module": self.all_modules,
            "port": self.ports,
            "interface": self.interfaces,
            "link": self.links,
            "chain": self.chains,
            "table": self.tables,
            "folder": self.folders,
        }
        single = {
            "cni-config": self.cni_config,
            "cni-network": self.cni_network,
            "cni-plugin": self.cni_plugin,
            "cni-state": self.cni_state,
        }
        lines = [f"{kind} {value}" for kind, values in several.items() for value in values]
        return "\n".join([*lines, *(f"{kind} {value}" for kind, value in single.items())])


def flannel_interface(settings: Settings) -> str:
    """The option that selects flannel's interface on each host, by default the one with the host's address.

    `--iface-can-reach` would select `lo` on the host that has the address itself.
    """
    regex = settings.network.flannel.interface_regex
    return "--iface=$(HOST_IP)" if regex is None else f"--iface-regex={regex}"


def _flannel_parameters(settings: Settings) -> Mapping[str, Parameter]:
    flannel = settings.network.flannel
    return {
        "pod_subnet": settings.network.pod_subnet,
        "backend": flannel.backend,
        "image": flannel.image,
        "cni_plugin_image": flannel.cni_plugin_image,
        "interface": flannel_interface(settings),
        "resync_seconds": flannel.resync_seconds,
        "api_host": settings.control_plane.address,
        "api_port": settings.api_port,
    }


FLANNEL = PodNetwork(
    name="flannel",
    manifest="flannel.yaml",
    parameters=_flannel_parameters,
    images=lambda settings: (settings.network.flannel.image, settings.network.flannel.cni_plugin_image),
    modules=lambda settings: ("vxlan",) if settings.network.flannel.backend == "vxlan" else (),
    all_modules=("vxlan",),
    ports=("8472/udp",),
    interfaces=("cni0", "flannel.1"),
    links=("flannel.1", "flannel-v6.1", "cni0"),
    chains=("FLANNEL",),
    tables=("flannel-ipv4", "flannel-ipv6"),
    cni_config="10-flannel.conflist",
    cni_network="cbr0",
    cni_plugin="flannel",
    cni_state="flannel",
    folders=("/run/flannel",),
)


def of(_: Settings) -> PodNetwork:
    """The pod network that the settings select."""
    return FLANNEL
