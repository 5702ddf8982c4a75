"""The IPVS virtual servers of every host, and their traffic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from model import ipvs
from model.ipvs import Counts, Virtual

# Each node gets a /24 of the pod network from kubeadm and flannel.
_NODE_PREFIX = 24


@dataclass(frozen=True)
class View:
    """One host's IPVS configuration.

    Attributes:
        host: The host's name.
        virtuals: Its virtual servers, sorted.
        addresses: Addresses on its kube-ipvs0 interface.
        mode: The mode that its kube-proxy reports, or "unknown"; empty if it wasn't read.
    """

    host: str
    virtuals: tuple[Virtual, ...]
    addresses: tuple[str, ...] = ()
    mode: str = ""


def view_of_report(host: str, report: str) -> View:
    """A host's view from the output of `scripts/steps/traffic.sh`.

    Raises:
        UnreadableError: The report can't be parsed.
    """
    sections = ipvs.report_sections(report)
    if "mode" not in sections:
        raise ipvs.UnreadableError("the host's report has no section `== mode`")
    virtuals = ipvs.report_virtuals(report) if "ipvs" in sections else ()
    addresses = tuple(sections.get("addresses", "").split())
    return View(host, tuple(ipvs.in_order(virtuals)), addresses, sections["mode"].strip())


def service_addresses(virtuals: Iterable[Virtual], service_subnet: str) -> tuple[str, ...]:
    """The virtual servers' addresses in the service network, which kube-proxy adds to kube-ipvs0."""
    found = dict.fromkeys(place(virtual.address)[0] for virtual in virtuals)
    return tuple(address for address in found if ipvs.inside(address, IPv4Network(service_subnet)))


def place(address: str) -> tuple[str, str]:
    """Split `10.96.0.1:443` into address and port."""
    host, _, port = address.rpartition(":")
    return host, port


def hosts_of(views: Sequence[View], nodes: Mapping[str, str]) -> dict[str, str]:
    """The host of each real server, by `address:port`, if it can be determined.

    kube-proxy creates virtual servers for node ports on every address of a host, including the one in the pod
    network. So an address that only one host has belongs to that host, and pods in the same /24 run on it.

    Args:
        views: The hosts.
        nodes: The hosts' addresses by name, from the settings, for hosts that have no view.
    """
    having: dict[str, set[str]] = {}
    for view in views:
        for virtual in view.virtuals:
            having.setdefault(place(virtual.address)[0], set()).add(view.host)
    owners = {address: next(iter(hosts)) for address, hosts in having.items() if len(hosts) == 1}
    owners |= {address: host for host, address in nodes.items()}
    networks: dict[IPv4Network | None, set[str]] = {}
    for address, host in owners.items():
        if (network := _network(address)) is not None:
            networks.setdefault(network, set()).add(host)
    for address in nodes.values():
        # Other addresses in a network that hosts share may be anywhere.
        networks.pop(_network(address), None)
    found: dict[str, str] = {}
    for real in {real.address for view in views for virtual in view.virtuals for real in virtual.reals}:
        address = place(real)[0]
        near = {owners[address]} if address in owners else networks.get(_network(address), set())
        if len(near) == 1:
            found[real] = next(iter(near))
    return found


def _network(address: str) -> IPv4Network | None:
    try:
        return IPv4Network(f"{address}/{_NODE_PREFIX}", strict=False)
    except ValueError:
        return None  # IPv6: the program's clusters have none, but a user's own virtual servers may


# -- change between two readings

Key = tuple[str, str, str, str]


def counts_by_key(views: Iterable[View]) -> dict[Key, Counts]:
    """All counters by host, protocol, virtual server and real server ("" for all of its real servers)."""
    return {
        (view.host, virtual.protocol, virtual.address, address): counts
        for view in views
        for virtual in view.virtuals
        for address, counts in (
            ("", virtual.counts),
            *((real.address, real.counts) for real in virtual.reals),
        )
        if counts is not None
    }


@dataclass(frozen=True)
class Change:
    """Connections and bytes between two readings that are `seconds` apart."""

    seconds: float
    counts: Mapping[Key, Counts]


def change(before: Mapping[Key, Counts], after: Mapping[Key, Counts], seconds: float) -> Change:
    """The change of each counter in both readings. A counter that was reset changes by its new value."""
    grown = {}
    for key, counts in after.items():
        if key not in before:
            continue
        old = before[key]
        if old.connections > counts.connections or old.bytes > counts.bytes:
            old = Counts(0, 0, 0)
        grown[key] = Counts(
            counts.connections - old.connections,
            counts.bytes_in - old.bytes_in,
            counts.bytes_out - old.bytes_out,
        )
    return Change(seconds, grown)


# -- presentation


def nothing_balanced(view: View) -> str:
    """The reason why a host has no virtual servers."""
    if view.mode in ("nftables", "iptables"):
        return f"no virtual servers: kube-proxy runs in {view.mode} mode"
    if view.mode == "ipvs":
        return "no virtual servers, although kube-proxy runs in ipvs mode: see `make check`"
    if view.mode:
        return "no virtual servers, and kube-proxy doesn't respond: see `make check`"
    return "no virtual servers: kube-proxy wasn't in ipvs mode at the last verification"


def total(counts: Iterable[Counts | None]) -> Counts | None:
    """The sum of all counters; None if there are none."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return Counts(
        sum(count.connections for count in known),
        sum(count.bytes_in for count in known),
        sum(count.bytes_out for count in known),
    )


def idle(since: Change, host: str, virtual: Virtual) -> bool:
    """Whether a virtual server certainly had no traffic."""
    return since.counts.get((host, virtual.protocol, virtual.address, "")) == Counts(0, 0, 0)


def size(count: float) -> str:
    """A number of bytes in powers of ten: `940 B`, `1.4 kB`, `23 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
