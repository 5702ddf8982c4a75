"""The IPVS configuration that a host's kernel must have for the verified services, and the one that it has.

Pure functions on the output of `kubectl ... -o json` and `ipvsadm`. The expected configuration is a list of
lines, so that `scripts/steps/verification.sh` can compare it on the host with `sort` and `comm`, and people
can read the differences:

    address 10.96.0.1                                       on kube-ipvs0
    virtual TCP 10.96.0.1:443 rr                            a virtual server and its scheduler
    real TCP 10.96.0.1:443 192.168.166.101:6443 Masq        one of its real servers
    set KUBE-CLUSTER-IP                                     an ipset that the masquerading rules use
    node-port-networks TCP 30080 192.168.166.101/32         no other address of the host serves the node port

kube-proxy's behaviour: pkg/proxy/ipvs/proxier.go, v1.37.2.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from model.settings import ANYWHERE, Host, Settings

# IPVS mode always has these, for masquerading traffic to service addresses and hairpin traffic.
_SETS = ("KUBE-CLUSTER-IP", "KUBE-LOOP-BACK")
_NODE_PORT_SETS = {
    "TCP": "KUBE-NODE-PORT-TCP",
    "UDP": "KUBE-NODE-PORT-UDP",
    "SCTP": "KUBE-NODE-PORT-SCTP-HASH",
}

_NGINX = "default/nginx"


@dataclass(frozen=True)
class Counts:
    """The kernel's counters: connections, bytes to the real servers (`bytes_in`) and bytes from them."""

    connections: int
    bytes_in: int
    bytes_out: int

    @property
    def bytes(self) -> int:
        """Bytes in both directions."""
        return self.bytes_in + self.bytes_out


@dataclass(frozen=True)
class Real:
    """A real server of a virtual server. Fields that the parsed text doesn't contain are None.

    Attributes:
        address: Address and port.
        forward: Forwarding method: `Masq`, `Route`, `Tunnel` or `Local`.
        weight: Weight for the scheduler; 0 admits no new connections.
        active: Active connections.
        inactive: Inactive connections.
        counts: Counters since the server was added.
    """

    address: str
    forward: str
    weight: int
    active: int | None = None
    inactive: int | None = None
    counts: Counts | None = None


@dataclass(frozen=True)
class Virtual:
    """A virtual server. `protocol` is TCP, UDP or SCTP; `address` includes the port."""

    protocol: str
    address: str
    scheduler: str
    reals: tuple[Real, ...] = ()
    counts: Counts | None = None


class UnreadableError(ValueError):
    """Output of a tool, or objects of a cluster, that can't be parsed. The message says where."""


# -- expected


def expected_services(settings: Settings) -> dict[str, int]:
    """The services to verify (`namespace/name`), and the number of ready endpoints that each must have."""
    return {
        "default/kubernetes": 1,
        # kubeadm always deploys two replicas of CoreDNS.
        "kube-system/kube-dns": 2,
        _NGINX: settings.nginx.replicas,
        "default/nginx-nodeport": settings.nginx.replicas,
    }


def expected(
    objects: str, settings: Settings, host: Host, addresses: Sequence[str] | None = None
) -> list[str]:
    """The lines that the host's kernel must have, sorted.

    The modes iptables and nftables have no virtual servers. Their lines are `service TCP 10.96.0.1:443`,
    `node-port TCP 30080` and `endpoint TCP 10.244.1.2:80`.

    Args:
        objects: Output of `kubectl get services,endpointslices -A -o json`.
        settings: The cluster's settings.
        host: The host.
        addresses: Addresses on which IPVS must serve node ports, by default only the host's `address`.
            kube-proxy serves them on every address except loopback, but only the host itself knows its other
            addresses.

    Raises:
        UnreadableError: The objects can't be parsed, or a service is missing.
    """
    services, slices = _services_and_slices(objects)
    ipvs = settings.proxy.mode == "ipvs"
    lines = {f"set {name}" for name in _SETS} if ipvs else set()
    for name in expected_services(settings):
        if name not in services:
            raise UnreadableError(f"the cluster has no service {name}")
        specification = services[name]["spec"]
        cluster_address = specification["clusterIP"]
        if ipvs:
            lines.add(f"address {cluster_address}")
        for port in specification["ports"]:
            protocol = port.get("protocol", "TCP")
            ready = _ready_endpoints(slices.get(name, []), port.get("name"), protocol)
            if not ipvs:
                lines.add(f"service {protocol} {cluster_address}:{port['port']}")
                lines |= {f"endpoint {protocol} {endpoint}" for endpoint in ready}
                if port.get("nodePort"):
                    lines.add(f"node-port {protocol} {port['nodePort']}")
                continue
            places = [f"{cluster_address}:{port['port']}"]
            node_port = port.get("nodePort")
            if node_port:
                lines.add(f"set {_NODE_PORT_SETS[protocol]}")
                networks = _node_port_networks(settings, host)
                if networks:
                    lines.add(" ".join(["node-port-networks", protocol, str(node_port), *networks]))
                places += [f"{address}:{node_port}" for address in addresses or (host.address,)]
            for place in places:
                lines.add(f"virtual {protocol} {place} {settings.proxy.scheduler}")
                lines |= {f"real {protocol} {place} {endpoint} Masq" for endpoint in ready}
    return sorted(lines)


def _node_port_networks(settings: Settings, host: Host) -> list[str]:
    """The networks of the only addresses that serve node ports; empty if all of the host's do."""
    networks = list(settings.proxy.node_port_addresses)
    if networks == ["primary"]:
        return [f"{host.address}/32"]
    return [] if ANYWHERE in networks else networks


def cluster_endpoint(objects: str) -> str:
    """`address:port` of nginx's ClusterIP service.

    Args:
        objects: The same as for `expected`.

    Raises:
        UnreadableError: The objects can't be parsed, or the service is missing.
    """
    services, _ = _services_and_slices(objects)
    if _NGINX not in services:
        raise UnreadableError(f"the cluster has no service {_NGINX}")
    specification = services[_NGINX]["spec"]
    return f"{specification['clusterIP']}:{specification['ports'][0]['port']}"


def node_ports(objects: str, settings: Settings, host: Host) -> list[str]:
    """`address:port` of nginx on each host that this host must reach: itself, and peers whose Node is Ready.

    Args:
        objects: The same as for `expected`.
        settings: The cluster's settings.
        host: The host.

    Raises:
        UnreadableError: The objects can't be parsed.
    """
    nodes = _nodes(objects)
    ready = {name for name, node in nodes.items() if node.ready}
    asked = {other.name for other in peers(settings, host)} | {host.name}
    hosts = [
        other
        for other in settings.hosts
        if other.name in asked and (not nodes or other == host or other.name in ready)
    ]
    return [f"{other.address}:{settings.nginx.node_port}" for other in hosts]


def peers(settings: Settings, host: Host) -> list[Host]:
    """The other hosts that a host sends requests to: all, or a sample of `verification.peers`.

    A worker requests the hosts before it in the settings, and the control plane the last ones. So every host
    is requested by others, and a host that is added at the end concerns only itself and the control plane.
    """
    others = [other for other in settings.hosts if other != host]
    count = settings.verification.peers
    if len(others) <= count:
        return others
    if host == settings.control_plane:
        return others[-count:]
    place = settings.hosts.index(host)
    return [*settings.hosts[max(0, place - count) : place]]


def node_problem(objects: str, host: Host) -> str:
    """Why the host's Node isn't as it should be; empty if it is.

    Args:
        objects: The same as for `expected`.
        host: The host.

    Raises:
        UnreadableError: The objects can't be parsed.
    """
    nodes = _nodes(objects)
    if not nodes:
        return ""
    node = nodes.get(host.name)
    if node is None:
        return f"the cluster has no node {host.name}"
    if not node.ready:
        return f"the node isn't Ready ({node.message})"
    if host.address not in node.addresses:
        return f"the cluster knows the node by the address {' '.join(node.addresses)}, not {host.address}"
    return ""


@dataclass(frozen=True)
class _Node:
    ready: bool
    message: str
    addresses: Sequence[str]


# Every host's expectations are read from the same text.
@functools.lru_cache(maxsize=4)
def _nodes(objects: str) -> dict[str, _Node]:
    """The Nodes in a list by name. Lists of earlier versions of the program contain none."""
    nodes = {}
    for item in _items(objects):
        if item["kind"] == "Node":
            [condition] = item["conditions"] or [{"status": "Unknown"}]
            message = " ".join(condition.get("message", "its kubelet hasn't reported its condition").split())
            nodes[item["metadata"]["name"]] = _Node(
                condition["status"] == "True", message, item["addresses"].split()
            )
    return nodes


def _items(objects: str) -> list[dict[str, Any]]:
    document = _json(objects, "the cluster's objects")
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise UnreadableError("the cluster's objects aren't a list of Kubernetes objects")
    return items


@functools.lru_cache(maxsize=4)
def _services_and_slices(objects: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Services and their endpoint slices, both by the service's `namespace/name`."""
    services: dict[str, Any] = {}
    slices: dict[str, list[Any]] = {}
    for item in _items(objects):
        metadata = item["metadata"]
        if item["kind"] == "Service":
            services[f"{metadata['namespace']}/{metadata['name']}"] = item
        elif item["kind"] == "EndpointSlice" and item.get("addressType", "IPv4") == "IPv4":
            service = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
            if service:
                slices.setdefault(f"{metadata['namespace']}/{service}", []).append(item)
    return services, slices


def _ready_endpoints(slices: list[Any], port_name: str | None, protocol: str) -> set[str]:
    found: set[str] = set()
    for item in slices:
        ports = [
            port["port"]
            for port in item.get("ports") or []
            # A service's only port needs no name. In a slice, that is either "" or missing.
            if (port.get("name") or "") == (port_name or "") and port.get("protocol", "TCP") == protocol
        ]
        for endpoint in item.get("endpoints") or []:
            # The API defines a missing condition as ready.
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                # All addresses of an endpoint belong to one pod; kube-proxy uses the first.
                found |= {f"{endpoint['addresses'][0]}:{port}" for port in ports}
    return found


# -- actual


def parse_list(text: str) -> tuple[Virtual, ...]:
    """Parse `ipvsadm -Ln`. Virtual servers by firewall mark are skipped, as kube-proxy creates none.

    Raises:
        UnreadableError: A line has an unknown form.
    """
    virtuals: list[Virtual] = []
    by_address = False  # whether the current virtual server is by address, not by firewall mark
    for fields in _table_lines(text):
        if fields[0] in ("TCP", "UDP", "SCTP"):
            virtuals.append(Virtual(fields[0], fields[1], fields[2]))
            by_address = True
        elif fields[0] == "FWM":
            by_address = False
        elif fields[0] == "->" and len(fields) == 6:
            if by_address:
                real = Real(fields[1], fields[2], int(fields[3]), int(fields[4]), int(fields[5]))
                virtuals[-1] = replace(virtuals[-1], reals=(*virtuals[-1].reals, real))
        else:
            raise UnreadableError(f"ipvsadm -Ln: unknown line: {' '.join(fields)}")
    return tuple(virtuals)


def parse_stats(text: str) -> dict[tuple[str, str], dict[str, Counts]]:
    """Parse `ipvsadm -Ln --stats`.

    Without `--exact`, ipvsadm rounds counters of a million and more.

    Returns:
        Counters by (protocol, virtual address), then by the real server's address. The empty address has
        those of the virtual server itself.

    Raises:
        UnreadableError: A line has an unknown form.
    """
    counts: dict[tuple[str, str], dict[str, Counts]] = {}
    current: dict[str, Counts] | None = None
    for fields in _table_lines(text):
        if fields[0] in ("TCP", "UDP", "SCTP"):
            current = counts.setdefault((fields[0], fields[1]), {"": _counts(fields[2:])})
        elif fields[0] == "FWM":
            current = None
        elif fields[0] == "->":
            if current is not None:
                current[fields[1]] = _counts(fields[2:])
        else:
            raise UnreadableError(f"ipvsadm -Ln --stats: unknown line: {' '.join(fields)}")
    return counts


def with_stats(
    virtuals: Iterable[Virtual], counts: Mapping[tuple[str, str], Mapping[str, Counts]]
) -> tuple[Virtual, ...]:
    """The virtual servers with the counters from `parse_stats`."""
    return tuple(
        replace(
            virtual,
            counts=count.get(""),
            reals=tuple(replace(real, counts=count.get(real.address)) for real in virtual.reals),
        )
        for virtual in virtuals
        for count in (counts.get((virtual.protocol, virtual.address), {}),)
    )


# -- stack outputs


def rows(virtuals: Iterable[Virtual]) -> list[dict[str, Any]]:
    """Virtual servers as plain values for a stack output, sorted by address, port and protocol."""
    return [
        {
            "protocol": virtual.protocol,
            "address": virtual.address,
            "scheduler": virtual.scheduler,
            **_count_values(virtual.counts),
            "realServers": [
                {
                    "address": real.address,
                    "forward": real.forward,
                    "weight": real.weight,
                    "active": real.active,
                    **_count_values(real.counts),
                }
                for real in virtual.reals
            ],
        }
        for virtual in in_order(virtuals)
    ]


def in_order(virtuals: Iterable[Virtual]) -> list[Virtual]:
    """Virtual servers sorted by address, port and protocol, each with its real servers sorted."""
    return [
        replace(virtual, reals=tuple(sorted(virtual.reals, key=lambda real: _order(real.address))))
        for virtual in sorted(virtuals, key=lambda virtual: (_order(virtual.address), virtual.protocol))
    ]


def from_rows(values: Iterable[Mapping[str, Any]]) -> tuple[Virtual, ...]:
    """The virtual servers from the plain values of `rows`. Stack outputs turn its numbers into floats.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The values have another form.
    """
    return tuple(
        Virtual(
            row["protocol"],
            row["address"],
            row["scheduler"],
            tuple(
                Real(
                    real["address"],
                    real["forward"],
                    int(real["weight"]),
                    None if real["active"] is None else int(real["active"]),
                    counts=_counts_of(real),
                )
                for real in row["realServers"]
            ),
            _counts_of(row),
        )
        for row in values
    )


def _count_values(counts: Counts | None) -> dict[str, int | None]:
    if counts is None:
        return {"connections": None, "bytesIn": None, "bytesOut": None}
    return {"connections": counts.connections, "bytesIn": counts.bytes_in, "bytesOut": counts.bytes_out}


def _counts_of(row: Mapping[str, Any]) -> Counts | None:
    if row["connections"] is None:
        return None
    return Counts(int(row["connections"]), int(row["bytesIn"]), int(row["bytesOut"]))


def report_virtuals(report: str) -> tuple[Virtual, ...]:
    """The virtual servers in the sections `== ipvs` and `== stats` of a report.

    Raises:
        UnreadableError: The report can't be parsed.
    """
    sections = report_sections(report)
    if "ipvs" not in sections:
        raise UnreadableError("the host's report has no section `== ipvs`")
    return with_stats(parse_list(sections["ipvs"]), parse_stats(sections.get("stats", "")))


def report_tables(report: str, objects: str, settings: Settings) -> list[dict[str, Any]]:
    """The rows of the verified services, from the report of a host's verification.

    A cluster may have hundreds of other services, and each host has a virtual server for each of them. They
    would fill the stack's outputs. In modes other than IPVS, the report and the rows are empty.

    Args:
        report: The report.
        objects: The same as for `expected`.
        settings: The cluster's settings.

    Raises:
        UnreadableError: The report or the objects can't be parsed.
    """
    if not report.strip():
        return []
    services, _ = _services_and_slices(objects)
    cluster: set[tuple[str, str]] = set()
    node_ports: set[tuple[str, str]] = set()
    for name in expected_services(settings).keys() & services.keys():
        specification = services[name]["spec"]
        for port in specification["ports"]:
            protocol = port.get("protocol", "TCP")
            cluster.add((protocol, f"{specification['clusterIP']}:{port['port']}"))
            if port.get("nodePort"):
                node_ports.add((protocol, str(port["nodePort"])))
    subnet = IPv4Network(settings.network.service_subnet)

    def verified(virtual: Virtual) -> bool:
        address, _, port = virtual.address.rpartition(":")
        if (virtual.protocol, virtual.address) in cluster:
            return True
        # A node port is served on every address of the host, but other services may use the same port number.
        return (virtual.protocol, port) in node_ports and not inside(address, subnet)

    return rows(virtual for virtual in report_virtuals(report) if verified(virtual))


def inside(address: str, network: IPv4Network) -> bool:
    """Whether an address is in a network. The IPv6 address of a user's own virtual server isn't."""
    try:
        return IPv4Address(address) in network
    except ValueError:
        return False


def report_sections(report: str) -> dict[str, str]:
    """The sections of a report by the name in their heading, `== name`. Text before the first is dropped."""
    sections: dict[str, str] = {}
    name: str | None = None
    for line in report.splitlines(keepends=True):
        if line.startswith("== "):
            name = line[3:].strip()
            sections[name] = ""
        elif name is not None:
            sections[name] += line
    return sections


def _table_lines(text: str) -> Iterable[list[str]]:
    """The lines of an `ipvsadm -L` table, split into fields, without its three heading lines."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] not in ("IP", "Prot") and fields[:2] != ["->", "RemoteAddress:Port"]:
            yield fields


def _counts(fields: Sequence[str]) -> Counts:
    """Counters from the fields `Conns InPkts OutPkts InBytes OutBytes`."""
    if len(fields) != 5:
        raise UnreadableError(f"ipvsadm --stats: expected five counters, not {' '.join(fields)}")
    connections, _, _, bytes_in, bytes_out = (_count(field) for field in fields)
    return Counts(connections, bytes_in, bytes_out)


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise UnreadableError(f"ipvsadm --stats: {text} isn't a number")
    factor: int = 1000 ** " KMGT".index(match[2] or " ")
    return int(match[1]) * factor


def _order(address: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts `10.96.0.2:80` before `10.96.0.10:53`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.:]", address)], address


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{source}: not valid JSON: {error}") from error
