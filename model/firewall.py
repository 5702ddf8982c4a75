"""The values with which a host's firewall lets the cluster in.

The step `firewall` sets the rules and the drift check compares them (scripts/lib/firewall.sh). Both need the
same values.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses

from model import pod_network
from model.settings import ANYWHERE, Host, Settings


def values(settings: Settings, host: Host) -> dict[str, str]:
    """The step values that describe whom the host's firewall must let in.

    Sources are empty unless the program opens the firewall, so that adding a host runs no step elsewhere.
    """
    sources = settings.firewall_sources
    opens = settings.firewall == "open"
    return {
        "FIREWALL": settings.firewall,
        "ROLE": host.role,
        "ADDRESS": host.address,
        "POD_SUBNET": settings.network.pod_subnet,
        "POD_NETWORK": pod_network.of(settings).lines,
        "HOST_SOURCES": "\n".join(host_sources(settings)) if opens else "",
        "API_SOURCES": _others(sources.api) if opens and host.role == "control-plane" else "",
        "NODE_PORT_SOURCES": _others(sources.node_ports) if opens else "",
    }


def host_sources(settings: Settings) -> list[str]:
    """The addresses of the cluster's hosts as the fewest networks that contain exactly these.

    Each source is a rule for each port, and a cluster may have hundreds of hosts.
    """
    addresses = [host.address for host in settings.hosts]
    return _collapsed([*addresses, *settings.firewall_sources.hosts])


def _others(networks: Iterable[str]) -> str:
    """Sources besides the hosts: `any`, or a network per line."""
    return "any" if ANYWHERE in networks else "\n".join(_collapsed(networks))


def _collapsed(networks: Iterable[str]) -> list[str]:
    return [str(network) for network in collapse_addresses(map(IPv4Network, networks))]
