"""What hosts' kernels balance, with how much went where: as views, and as a table for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from model import ipvs
from model.ipvs import Counts, Real, Virtual

# flannel and kubeadm give each node a /24 of the pod network.
_NODE_PREFIX = 24


@dataclass(frozen=True)
class View:
    """One host: its virtual servers in order, and the addresses on its kube-ipvs0.

    `mode` is kube-proxy's, as it says itself; "" where nobody has asked it.
    """

    host: str
    virtuals: tuple[Virtual, ...]
    addresses: tuple[str, ...] = ()
    mode: str = ""


def view_of_report(host: str, report: str) -> View:
    """What `scripts/traffic.sh` printed on a host. Raises `UnreadableError`."""
    sections = ipvs.report_sections(report)
    if "mode" not in sections:
        raise ipvs.UnreadableError("the host's report has no section `== mode`")
    virtuals = ipvs.report_virtuals(report) if "ipvs" in sections else ()
    addresses = tuple(sections.get("addresses", "").split())
    return View(host, tuple(ipvs.in_order(virtuals)), addresses, sections["mode"].strip())


def service_addresses(virtuals: Iterable[Virtual], service_subnet: str) -> tuple[str, ...]:
    """The virtual servers' addresses in the service network: those that kube-proxy puts on kube-ipvs0."""
    found = dict.fromkeys(place(virtual.address)[0] for virtual in virtuals)
    return tuple(address for address in found if _inside(address, IPv4Network(service_subnet)))


def _inside(address: str, network: IPv4Network) -> bool:
    try:
        return IPv4Address(address) in network
    except ValueError:
        return False


def place(address: str) -> tuple[str, str]:
    """`10.96.0.1:443` as address and port."""
    host, _, port = address.rpartition(":")
    return host, port


def hosts_of(views: Sequence[View], nodes: Mapping[str, str]) -> dict[str, str]:
    """Real servers (their `address:port`) to the host that each is on, where that can be told.

    kube-proxy makes node ports virtual servers on every address of a host, also on its own in the pod
    network. An address that one host alone has is thus that host's; and a pod's is in the same /24.

    :param nodes: hosts' addresses by name, from the settings; for those that couldn't be looked at.
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
        # A network that hosts share with others: what else is in it may be anywhere.
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
        return None  # IPv6: a cluster of this program's has none, a user's own virtual servers may


# Change between two looks

Key = tuple[str, str, str, str]


def counts_by_key(views: Iterable[View]) -> dict[Key, Counts]:
    """All counts, by host, protocol, virtual server and real server ("" for all of its real servers)."""
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
    """What was counted between two looks, `seconds` apart."""

    seconds: float
    counts: Mapping[Key, Counts]


def change(before: Mapping[Key, Counts], after: Mapping[Key, Counts], seconds: float) -> Change:
    """What was counted since `before`, of the servers in both; of one that began anew, all it has."""
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


# For a person

_HEADINGS = ("VIRTUAL SERVER", "SCHEDULER", "REAL SERVER", "ON", "WEIGHT", "ACTIVE", "CONNS", "IN", "OUT")
_CHANGE_HEADINGS = ("CONNS/S", "BYTES/S")
_TEXTS = 4  # columns of text come first, then numbers


def table(
    views: Sequence[View],
    hosts: Mapping[str, str],
    since: Change | None = None,
    *,
    fold: bool = False,
) -> str:
    """Every host's virtual servers in columns, a host after the other.

    A virtual server without a real one shows `-` for it: connections to it are refused.

    :param hosts: `hosts_of` them.
    :param since: adds what was counted per second.
    :param fold: leaves out virtual servers to which nothing went in that time, and says how many.
    """
    headings = (*_HEADINGS, *(_CHANGE_HEADINGS if since else ()))
    lines: dict[str, list[tuple[str, ...]]] = {}
    folded: dict[str, int] = {}
    for view in views:
        shown = [
            virtual for virtual in view.virtuals if not (fold and since and idle(since, view.host, virtual))
        ]
        folded[view.host] = len(view.virtuals) - len(shown)
        lines[view.host] = [cells for virtual in shown for cells in _cells(view.host, virtual, hosts, since)]
    every = [headings, *(cells for host_lines in lines.values() for cells in host_lines)]
    widths = [max(len(cells[column]) for cells in every) for column in range(len(headings))]
    blocks = []
    for view in views:
        block = [view.host, *(f"  {_aligned(cells, widths)}" for cells in (headings, *lines[view.host]))]
        if not view.virtuals:
            block = [view.host, f"  {nothing_balanced(view)}"]
        elif folded[view.host]:
            block.append(f"  and {folded[view.host]} without traffic")
        blocks.append("\n".join(block))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def nothing_balanced(view: View) -> str:
    """Why a host has no virtual servers, in words."""
    if view.mode in ("nftables", "iptables"):
        return f"no virtual servers: kube-proxy runs in mode {view.mode} here"
    if view.mode == "ipvs":
        return "no virtual servers, although kube-proxy runs in mode ipvs: see `make check`"
    if view.mode:
        return "no virtual servers, and kube-proxy doesn't answer: see `make check`"
    return "no virtual servers: kube-proxy's mode was another than ipvs at the last proof"


def total(counts: Iterable[Counts | None]) -> Counts | None:
    """All counts together; None where nothing was counted."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return Counts(
        sum(count.connections for count in known),
        sum(count.bytes_in for count in known),
        sum(count.bytes_out for count in known),
    )


def idle(since: Change, host: str, virtual: Virtual) -> bool:
    """Whether it is known that nothing went to a virtual server."""
    return since.counts.get((host, virtual.protocol, virtual.address, "")) == Counts(0, 0, 0)


def size(count: float) -> str:
    """Bytes for a person, in powers of ten: `940 B`, `1.4 kB`, `23 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


def _cells(
    host: str, virtual: Virtual, hosts: Mapping[str, str], since: Change | None
) -> list[tuple[str, ...]]:
    first = (f"{virtual.protocol} {virtual.address}", virtual.scheduler)
    lines: list[tuple[str, ...]] = []
    for real in virtual.reals:
        cells: tuple[str, ...] = (
            real.address,
            hosts.get(real.address, "-"),
            str(real.weight),
            "-" if real.active is None else str(real.active),
            *_counted(real),
        )
        if since:
            cells = (*cells, *_per_second(since, (host, virtual.protocol, virtual.address, real.address)))
        lines.append(cells)
    if not lines:
        lines.append(("-",) * (len(_HEADINGS) - len(first) + (len(_CHANGE_HEADINGS) if since else 0)))
    return [(*(first if number == 0 else ("", "")), *cells) for number, cells in enumerate(lines)]


def _counted(real: Real) -> tuple[str, str, str]:
    if real.counts is None:
        return ("-", "-", "-")
    return (str(real.counts.connections), size(real.counts.bytes_in), size(real.counts.bytes_out))


def _per_second(since: Change, key: Key) -> tuple[str, str]:
    counts = since.counts.get(key)
    if counts is None:
        return ("-", "-")
    return (f"{counts.connections / since.seconds:.1f}", size(counts.bytes / since.seconds))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        cell.ljust(width) if column < _TEXTS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()
