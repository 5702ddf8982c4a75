"""What a host's kernel must hold for the services proved, and what it does hold.

Pure functions on text: what `kubectl ... -o json` and `ipvsadm` print. What a kernel must hold is a list
of lines, so that `scripts/verification.sh` can compare it on the host by `sort` and `comm`, and a person can
read the difference:

    address 10.96.0.1                                       on kube-ipvs0
    virtual TCP 10.96.0.1:443 rr                            a virtual server and its scheduler
    real TCP 10.96.0.1:443 192.168.166.101:6443 Masq        one of its real servers
    set KUBE-CLUSTER-IP                                     an ipset that masquerading goes by

Facts on kube-proxy: pkg/proxy/ipvs/proxier.go, v1.37.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.settings import Host, Settings

# Always there in IPVS mode: traffic to service addresses and hairpin traffic are masqueraded by them.
_SETS = ("KUBE-CLUSTER-IP", "KUBE-LOOP-BACK")
_NODE_PORT_SETS = {
    "TCP": "KUBE-NODE-PORT-TCP",
    "UDP": "KUBE-NODE-PORT-UDP",
    "SCTP": "KUBE-NODE-PORT-SCTP-HASH",
}

_NGINX = "default/nginx"


@dataclass(frozen=True)
class Counts:
    """What the kernel has counted: connections, and bytes to (`bytes_in`) and from the real servers."""

    connections: int
    bytes_in: int
    bytes_out: int

    @property
    def bytes(self) -> int:
        """Both ways together."""
        return self.bytes_in + self.bytes_out


@dataclass(frozen=True)
class Real:
    """A real server of a virtual one: where `forward` sends connections, `weight` 0 for no new ones.

    `active` and `inactive` are connections now, `counts` what it had since it was added; None where the
    text it was read from doesn't say.
    """

    address: str
    forward: str
    weight: int
    active: int | None = None
    inactive: int | None = None
    counts: Counts | None = None


@dataclass(frozen=True)
class Virtual:
    """A virtual server: `protocol` TCP, UDP or SCTP, `address` with its port."""

    protocol: str
    address: str
    scheduler: str
    reals: tuple[Real, ...] = ()
    counts: Counts | None = None


class UnreadableError(ValueError):
    """Output of a tool, or objects of a cluster, that aren't what they should be; the text says where."""


# What the cluster promises


def expected_services(settings: Settings) -> dict[str, int]:
    """The services that are proved, `namespace/name`, and how many ready endpoints each must have."""
    return {
        "default/kubernetes": 1,
        # kubeadm deploys two replicas of CoreDNS, whatever the number of nodes.
        "kube-system/kube-dns": 2,
        _NGINX: settings.nginx.replicas,
        "default/nginx-nodeport": settings.nginx.replicas,
    }


def expected(
    objects: str, settings: Settings, host: Host, addresses: Sequence[str] | None = None
) -> list[str]:
    """The lines that the host's kernel must show, sorted.

    `objects` is the JSON of `kubectl get services,endpointslices -A -o json`. In the modes iptables and
    nftables there are no virtual servers: the lines are `service TCP 10.96.0.1:443`, `node-port TCP 30080`
    and `endpoint TCP 10.244.1.2:80`. In IPVS mode, node ports are expected on
    `addresses`, by default on the host's own `address` only: kube-proxy binds them on every address of
    the host except loopback, but which others there are only the host knows.

    Raises `UnreadableError`; also where a proved service is missing.
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
                places += [f"{address}:{node_port}" for address in addresses or (host.address,)]
            for place in places:
                lines.add(f"virtual {protocol} {place} {settings.proxy.scheduler}")
                lines |= {f"real {protocol} {place} {endpoint} Masq" for endpoint in ready}
    return sorted(lines)


def cluster_endpoint(objects: str) -> str:
    """`address:port` of nginx's ClusterIP service, in the objects that `expected` takes too."""
    services, _ = _services_and_slices(objects)
    if _NGINX not in services:
        raise UnreadableError(f"the cluster has no service {_NGINX}")
    specification = services[_NGINX]["spec"]
    return f"{specification['clusterIP']}:{specification['ports'][0]['port']}"


def _services_and_slices(objects: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Services, and endpoint slices by their service, both under `namespace/name`."""
    document = _json(objects, "the cluster's objects")
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise UnreadableError("the cluster's objects are no list of Kubernetes objects")
    services: dict[str, Any] = {}
    slices: dict[str, list[Any]] = {}
    for item in items:
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
            # A service's only port may be without a name; in a slice that is "" or nothing.
            if (port.get("name") or "") == (port_name or "") and port.get("protocol", "TCP") == protocol
        ]
        for endpoint in item.get("endpoints") or []:
            # Not said counts as ready, as the API defines it.
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                # All addresses of one endpoint are the same pod; kube-proxy takes the first.
                found |= {f"{endpoint['addresses'][0]}:{port}" for port in ports}
    return found


# What a kernel shows


def parse_list(text: str) -> tuple[Virtual, ...]:
    """The table of `ipvsadm -Ln`, in its order, without servers by firewall mark: kube-proxy has none."""
    virtuals: list[Virtual] = []
    ours = False
    for fields in _table_lines(text):
        if fields[0] in ("TCP", "UDP", "SCTP"):
            virtuals.append(Virtual(fields[0], fields[1], fields[2]))
            ours = True
        elif fields[0] == "FWM":
            ours = False
        elif fields[0] == "->" and len(fields) == 6:
            if ours:
                real = Real(fields[1], fields[2], int(fields[3]), int(fields[4]), int(fields[5]))
                virtuals[-1] = replace(virtuals[-1], reals=(*virtuals[-1].reals, real))
        else:
            raise UnreadableError(f"ipvsadm -Ln: unknown line: {' '.join(fields)}")
    return tuple(virtuals)


def parse_stats(text: str) -> dict[tuple[str, str], dict[str, Counts]]:
    """Counts so far from `ipvsadm -Ln --stats`: by (protocol, virtual address), by real address.

    The virtual server's own counts are under the empty address. Without `--exact` ipvsadm rounds counts
    of a million and more; they are then as rough here.
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
    """The virtual servers with what `parse_stats` counted."""
    return tuple(
        replace(
            virtual,
            counts=count.get(""),
            reals=tuple(replace(real, counts=count.get(real.address)) for real in virtual.reals),
        )
        for virtual in virtuals
        for count in (counts.get((virtual.protocol, virtual.address), {}),)
    )


# For stack outputs


def rows(virtuals: Iterable[Virtual]) -> list[dict[str, Any]]:
    """Virtual servers as plain values (for a stack output), sorted by address, port and protocol."""
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
    """Virtual servers by address, port and protocol, and the real servers of each likewise."""
    return [
        replace(virtual, reals=tuple(sorted(virtual.reals, key=lambda real: _order(real.address))))
        for virtual in sorted(virtuals, key=lambda virtual: (_order(virtual.address), virtual.protocol))
    ]


def from_rows(values: Iterable[Mapping[str, Any]]) -> tuple[Virtual, ...]:
    """The virtual servers that `rows` made into plain values; numbers come back from outputs as floats.

    Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` where they are none of its.
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
    """The virtual servers in a report's sections `== ipvs` and `== stats`. Raises `UnreadableError`."""
    sections = report_sections(report)
    if "ipvs" not in sections:
        raise UnreadableError("the proof's report has no section `== ipvs`")
    return with_stats(parse_list(sections["ipvs"]), parse_stats(sections.get("stats", "")))


def report_tables(report: str) -> list[dict[str, Any]]:
    """The rows out of a host's proof. A report of another mode than IPVS is empty, and so are its rows.

    Raises `UnreadableError`.
    """
    return rows(report_virtuals(report)) if report.strip() else []


def report_sections(report: str) -> dict[str, str]:
    """The parts of a report by the `== name` line before each; what precedes the first is left out."""
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
    """The lines of an `ipvsadm -L` table without its three headings, in fields."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] not in ("IP", "Prot") and fields[:2] != ["->", "RemoteAddress:Port"]:
            yield fields


def _counts(fields: Sequence[str]) -> Counts:
    """Of `Conns InPkts OutPkts InBytes OutBytes`."""
    if len(fields) != 5:
        raise UnreadableError(f"ipvsadm --stats: five counts expected, not {' '.join(fields)}")
    connections, _, _, bytes_in, bytes_out = (_count(field) for field in fields)
    return Counts(connections, bytes_in, bytes_out)


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise UnreadableError(f"ipvsadm --stats: {text} is no count")
    factor: int = 1000 ** " KMGT".index(match[2] or " ")
    return int(match[1]) * factor


def _order(address: str) -> tuple[list[tuple[int, str]], str]:
    """`10.96.0.2:80` before `10.96.0.10:53`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.:]", address)], address


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{what}: no JSON: {error}") from error
