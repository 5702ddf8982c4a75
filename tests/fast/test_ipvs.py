"""The expected IPVS configuration, and parsing of the actual one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model import ipvs
from model.settings import Settings

SETTINGS = Settings.model_validate_json(
    json.dumps(
        {
            "hosts": [
                {"name": "master", "role": "control-plane", "address": "192.168.166.101"},
                {"name": "node1", "role": "worker", "address": "192.168.166.102"},
            ]
        }
    )
)
NODE1 = SETTINGS.workers[0]


def service(name: str, address: str, *ports: dict[str, Any]) -> dict[str, Any]:
    namespace, _, name = name.partition("/")
    return {
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": address, "ports": list(ports)},
    }


def endpoint_slice(
    name: str, addresses: dict[str, bool | None], *ports: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    namespace, _, name = name.partition("/")
    return {
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "namespace": namespace,
            "name": f"{name}-x{len(ports)}",
            "labels": {"kubernetes.io/service-name": name},
        },
        "ports": list(ports),
        "endpoints": [
            {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}
            for address, ready in addresses.items()
        ],
        **extra,
    }


def dns_ports(key: str) -> list[dict[str, Any]]:
    return [
        {"name": "dns", "protocol": "UDP", key: 53},
        {"name": "dns-tcp", "protocol": "TCP", key: 53},
        {"name": "metrics", "protocol": "TCP", key: 9153},
    ]


HTTP = {"name": "http", "protocol": "TCP", "port": 80}
PODS: dict[str, bool | None] = {"10.244.1.2": True, "10.244.2.2": None, "10.244.2.9": False}


def objects(*more: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        service("default/kubernetes", "10.96.0.1", {"name": "https", "protocol": "TCP", "port": 443}),
        endpoint_slice(
            "default/kubernetes",
            {"192.168.166.101": True},
            {"name": "https", "protocol": "TCP", "port": 6443},
        ),
        service("kube-system/kube-dns", "10.96.0.10", *dns_ports("port")),
        endpoint_slice("kube-system/kube-dns", {"10.244.0.2": True, "10.244.0.3": True}, *dns_ports("port")),
        service("default/nginx", "10.100.1.1", HTTP),
        endpoint_slice("default/nginx", PODS, HTTP),
        service("default/nginx-nodeport", "10.100.1.2", HTTP | {"nodePort": 30080}),
        endpoint_slice("default/nginx-nodeport", PODS, HTTP),
        *more,
    ]


def text(items: list[dict[str, Any]]) -> str:
    return json.dumps({"kind": "List", "apiVersion": "v1", "items": items})


EXPECTED = """\
address 10.100.1.1
address 10.100.1.2
address 10.96.0.1
address 10.96.0.10
real TCP 10.100.1.1:80 10.244.1.2:80 Masq
real TCP 10.100.1.1:80 10.244.2.2:80 Masq
real TCP 10.100.1.2:80 10.244.1.2:80 Masq
real TCP 10.100.1.2:80 10.244.2.2:80 Masq
real TCP 10.96.0.10:53 10.244.0.2:53 Masq
real TCP 10.96.0.10:53 10.244.0.3:53 Masq
real TCP 10.96.0.10:9153 10.244.0.2:9153 Masq
real TCP 10.96.0.10:9153 10.244.0.3:9153 Masq
real TCP 10.96.0.1:443 192.168.166.101:6443 Masq
real TCP 192.168.166.102:30080 10.244.1.2:80 Masq
real TCP 192.168.166.102:30080 10.244.2.2:80 Masq
real UDP 10.96.0.10:53 10.244.0.2:53 Masq
real UDP 10.96.0.10:53 10.244.0.3:53 Masq
set KUBE-CLUSTER-IP
set KUBE-LOOP-BACK
set KUBE-NODE-PORT-TCP
virtual TCP 10.100.1.1:80 rr
virtual TCP 10.100.1.2:80 rr
virtual TCP 10.96.0.10:53 rr
virtual TCP 10.96.0.10:9153 rr
virtual TCP 10.96.0.1:443 rr
virtual TCP 192.168.166.102:30080 rr
virtual UDP 10.96.0.10:53 rr
""".splitlines()

# `ipvsadm -Ln` on the same node. It also has an address of another interface, a service that isn't verified,
# and a server of weight 0 with a remaining connection.
LISTED = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.2.15:30080 rr
  -> 10.244.1.2:80                Masq    1      0          0
  -> 10.244.2.2:80                Masq    1      0          0
TCP  10.96.0.1:443 rr
  -> 192.168.166.101:6443         Masq    1      3          0
TCP  10.96.0.10:53 rr
  -> 10.244.0.2:53                Masq    1      0          0
  -> 10.244.0.3:53                Masq    1      0          0
TCP  10.96.0.10:9153 rr
  -> 10.244.0.2:9153              Masq    1      0          0
  -> 10.244.0.3:9153              Masq    1      0          0
TCP  10.100.1.1:80 rr
  -> 10.244.1.2:80                Masq    1      0          5
  -> 10.244.2.2:80                Masq    1      0          5
  -> 10.244.2.7:80                Masq    0      1          0
TCP  10.100.1.2:80 rr
  -> 10.244.1.2:80                Masq    1      0          0
  -> 10.244.2.2:80                Masq    1      0          0
TCP  10.111.9.9:8080 rr persistent 10800
TCP  192.168.166.102:30080 rr
  -> 10.244.1.2:80                Masq    1      0          5
  -> 10.244.2.2:80                Masq    1      0          5
UDP  10.96.0.10:53 rr
  -> 10.244.0.2:53                Masq    1      0          0
  -> 10.244.0.3:53                Masq    1      0          0
FWM  7 wlc
  -> 10.9.9.9:0                   Route   1      0          0
"""

STATS = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
TCP  10.96.0.1:443                      12      900      800    95000   120000
  -> 192.168.166.101:6443               12      900      800    95000   120000
TCP  10.100.1.1:80                      10       60       40     4000     9000
  -> 10.244.1.2:80                       5       30       20     2000     4500
  -> 10.244.2.2:80                       5       30       20     2000     4500
FWM  7                                   1        1        1       60       60
  -> 10.9.9.9:0                          1        1        1       60       60
"""

SETS = "KUBE-LOOP-BACK\nKUBE-CLUSTER-IP\nKUBE-NODE-PORT-TCP\nKUBE-6-CLUSTER-IP\nmine\n"


def test_services_are_expected_with_their_ready_endpoints() -> None:
    assert ipvs.expected(text(objects()), SETTINGS, NODE1) == EXPECTED


def test_configured_scheduler_is_expected() -> None:
    proxy = SETTINGS.proxy.model_copy(update={"scheduler": "lc"})
    lines = ipvs.expected(text(objects()), SETTINGS.model_copy(update={"proxy": proxy}), NODE1)
    assert {line.split()[3] for line in lines if line.startswith("virtual ")} == {"lc"}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_other_modes_expect_no_virtual_servers(mode: str) -> None:
    proxy = SETTINGS.proxy.model_copy(update={"mode": mode})
    lines = ipvs.expected(text(objects()), SETTINGS.model_copy(update={"proxy": proxy}), NODE1)
    assert {line.split()[0] for line in lines} == {"service", "node-port", "endpoint"}
    assert {"service TCP 10.96.0.1:443", "service UDP 10.96.0.10:53", "node-port TCP 30080"} <= set(lines)
    assert {"endpoint TCP 192.168.166.101:6443", "endpoint TCP 10.244.1.2:80"} <= set(lines)
    assert not [line for line in lines if "10.244.2.9" in line], "an endpoint that isn't ready"


def test_node_ports_are_expected_on_given_addresses() -> None:
    lines = ipvs.expected(text(objects()), SETTINGS, NODE1, ["10.0.2.15", "10.244.1.1"])
    places = [line for line in lines if line.startswith("virtual ") and ":30080" in line]
    assert places == ["virtual TCP 10.0.2.15:30080 rr", "virtual TCP 10.244.1.1:30080 rr"]


@pytest.mark.parametrize(
    ("addresses", "networks"),
    [
        ([], ""),
        (["0.0.0.0/0"], ""),
        (["primary"], f" {NODE1.address}/32"),
        (["192.168.166.0/24", "172.16.0.0/12"], " 192.168.166.0/24 172.16.0.0/12"),
    ],
)
def test_node_ports_are_expected_only_in_configured_networks(addresses: list[str], networks: str) -> None:
    proxy = SETTINGS.proxy.model_copy(update={"node_port_addresses": tuple(addresses)})
    lines = ipvs.expected(text(objects()), SETTINGS.model_copy(update={"proxy": proxy}), NODE1)
    found = [line for line in lines if line.startswith("node-port-networks ")]
    assert found == ([f"node-port-networks TCP 30080{networks}"] if networks else [])
    assert f"virtual TCP {NODE1.address}:30080 rr" in lines


def test_ipv4_endpoints_of_all_slices_are_combined() -> None:
    more = endpoint_slice("default/nginx", {"10.244.3.3": True}, HTTP)
    ipv6 = endpoint_slice("default/nginx", {"fd00::1": True}, HTTP, addressType="IPv6")
    lines = ipvs.expected(text(objects(more, ipv6)), SETTINGS, NODE1)
    assert [line.split()[3] for line in lines if line.startswith("real TCP 10.100.1.1:80 ")] == [
        "10.244.1.2:80",
        "10.244.2.2:80",
        "10.244.3.3:80",
    ]


def test_unnamed_ports_match() -> None:
    items = [item for item in objects() if item["metadata"]["name"] not in ("nginx", "nginx-x1")]
    items += [
        service("default/nginx", "10.100.1.1", {"port": 80, "targetPort": 8080}),
        endpoint_slice("default/nginx", {"10.244.1.2": True}, {"name": "", "protocol": "TCP", "port": 8080}),
    ]
    lines = ipvs.expected(text(items), SETTINGS, NODE1)
    assert "real TCP 10.100.1.1:80 10.244.1.2:8080 Masq" in lines


def test_service_without_endpoints_has_no_real_servers() -> None:
    items = [item for item in objects() if item["metadata"]["name"] != "nginx-x1"]
    lines = ipvs.expected(text(items), SETTINGS, NODE1)
    assert "virtual TCP 10.100.1.1:80 rr" in lines
    assert not [line for line in lines if line.startswith("real TCP 10.100.1.1:80 ")]


def test_unusable_objects_are_reported() -> None:
    items = [item for item in objects() if item["metadata"]["name"] != "kube-dns"]
    with pytest.raises(ipvs.UnreadableError, match="kube-system/kube-dns"):
        ipvs.expected(text(items), SETTINGS, NODE1)
    with pytest.raises(ipvs.UnreadableError, match="aren't a list"):
        ipvs.expected("{}", SETTINGS, NODE1)
    with pytest.raises(ipvs.UnreadableError, match="not valid JSON"):
        ipvs.cluster_endpoint("error: connection refused")


def test_expected_services_have_endpoint_counts() -> None:
    nginx = SETTINGS.nginx.model_copy(update={"replicas": 3})
    assert ipvs.expected_services(SETTINGS.model_copy(update={"nginx": nginx})) == {
        "default/kubernetes": 1,
        "kube-system/kube-dns": 2,
        "default/nginx": 3,
        "default/nginx-nodeport": 3,
    }


def test_nginxs_cluster_endpoint_is_found() -> None:
    assert ipvs.cluster_endpoint(text(objects())) == "10.100.1.1:80"


def node(name: str, address: str, ready: str = "True", message: str = "") -> dict[str, Any]:
    """A Node as the step `expected_services` prints it; without a condition if `ready` is empty."""
    condition = {"type": "Ready", "status": ready, "message": message}
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "conditions": [condition] if ready else [],
        "addresses": address,
    }


MASTER = node("master", "192.168.166.101")
PORTS = ["192.168.166.101:30080", "192.168.166.102:30080"]


@pytest.mark.parametrize(
    ("nodes", "ports", "problem"),
    [
        # Printed by an earlier version of the program.
        ([], PORTS, ""),
        ([MASTER, node("node1", "192.168.166.102")], PORTS, ""),
        ([MASTER, node("node1", "192.168.166.102 fd00::2")], PORTS, ""),
        (
            [MASTER, node("node1", "192.168.166.102", "Unknown", "Kubelet stopped\nposting node status.")],
            PORTS[:1],
            "the node isn't Ready (Kubelet stopped posting node status.)",
        ),
        (
            [MASTER, node("node1", "192.168.166.102", "")],
            PORTS[:1],
            "the node isn't Ready (its kubelet hasn't reported its condition)",
        ),
        ([MASTER], PORTS[:1], "the cluster has no node node1"),
        (
            [MASTER, node("node1", "10.0.2.15")],
            PORTS,
            "the cluster knows the node by the address 10.0.2.15, not 192.168.166.102",
        ),
    ],
)
def test_nodes_that_arent_ready_are_left_out_and_reported(
    nodes: list[dict[str, Any]], ports: list[str], problem: str
) -> None:
    objects = text(nodes)
    assert ipvs.node_ports(objects, SETTINGS, SETTINGS.control_plane) == ports
    assert ipvs.node_ports(objects, SETTINGS, NODE1) == PORTS, "a host always verifies itself"
    assert ipvs.node_problem(objects, NODE1) == problem
    assert ipvs.node_problem(objects, SETTINGS.control_plane) == ""


def many(count: int, peers: int = 9) -> Settings:
    """Settings with this many hosts."""
    return Settings.model_validate_json(
        json.dumps(
            {
                "hosts": [
                    {
                        "name": f"node{number}" if number else "master",
                        "role": "worker" if number else "control-plane",
                        "address": f"192.168.{number // 200}.{number % 200 + 1}",
                    }
                    for number in range(count)
                ],
                "verification": {"peers": peers},
            }
        )
    )


def asked(settings: Settings) -> dict[str, list[str]]:
    """The hosts that each host requests, by its name."""
    return {host.name: [peer.name for peer in ipvs.peers(settings, host)] for host in settings.hosts}


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_hosts_request_all_others(count: int) -> None:
    settings = many(count)
    everyone = [host.name for host in settings.hosts]
    assert asked(settings) == {name: [other for other in everyone if other != name] for name in everyone}


@pytest.mark.parametrize("peers", [1, 2, 9])
def test_every_host_is_requested_by_another(peers: int) -> None:
    for count in range(11, 121):
        found = asked(many(count, peers))
        assert {name for names in found.values() for name in names} == set(found), count
        for name, names in found.items():
            assert name not in names
            assert len(set(names)) == len(names)
            assert 1 <= len(names) <= peers


@pytest.mark.parametrize("count", [11, 57, 119])
def test_added_host_changes_only_the_control_planes_peers(count: int) -> None:
    before, after = asked(many(count)), asked(many(count + 1))
    new = f"node{count}"
    assert {name for name in after if after[name] != before.get(name)} == {"master", new}
    assert new in after["master"]


def test_only_peers_are_requested() -> None:
    settings = many(30, peers=2)
    port = settings.nginx.node_port
    numbers = [27, 28, 29]
    requested = ipvs.node_ports(text([]), settings, settings.hosts[29])
    assert requested == [f"192.168.0.{number + 1}:{port}" for number in numbers]
    requested = ipvs.node_ports(text([]), settings, settings.control_plane)
    assert requested == [f"192.168.0.{number + 1}:{port}" for number in (0, 28, 29)]


def test_unknown_lines_are_reported() -> None:
    with pytest.raises(ipvs.UnreadableError, match="Can't initialize ipvs"):
        ipvs.parse_list("Can't initialize ipvs: Protocol not available\n")
    with pytest.raises(ipvs.UnreadableError, match="Can't initialize ipvs"):
        ipvs.parse_stats("Can't initialize ipvs: Protocol not available\n")


def test_empty_table_has_no_virtual_servers() -> None:
    assert ipvs.parse_list("\n".join(LISTED.splitlines()[:3])) == ()


def test_rounded_and_exact_counters_are_parsed() -> None:
    counts = ipvs.parse_stats(STATS.replace("      12      900", "     12M      900"))
    api = ipvs.Counts(12_000_000, 95_000, 120_000)
    assert counts[("TCP", "10.96.0.1:443")] == {"": api, "192.168.166.101:6443": api}
    half = ipvs.Counts(5, 2000, 4500)
    assert counts[("TCP", "10.100.1.1:80")] == {
        "": ipvs.Counts(10, 4000, 9000),
        "10.244.1.2:80": half,
        "10.244.2.2:80": half,
    }
    assert len(counts) == 2
    with pytest.raises(ipvs.UnreadableError, match="five counters"):
        ipvs.parse_stats("TCP 10.96.0.1:443 12 900 800")


REPORT = f"""\
waiting for the tables
== ipvs
{LISTED}== stats
{STATS}== addresses
10.96.0.1
== sets
{SETS}== spread
10.100.1.1:80 10.244.1.2:80 5
"""


def tables() -> list[dict[str, Any]]:
    return ipvs.report_tables(REPORT, text(objects()), SETTINGS)


def test_report_becomes_sorted_plain_rows() -> None:
    rows = tables()
    assert [f"{row['protocol']} {row['address']}" for row in rows] == [
        "TCP 10.0.2.15:30080",
        "TCP 10.96.0.1:443",
        "TCP 10.96.0.10:53",
        "UDP 10.96.0.10:53",
        "TCP 10.96.0.10:9153",
        "TCP 10.100.1.1:80",
        "TCP 10.100.1.2:80",
        "TCP 192.168.166.102:30080",
    ]
    half = {"connections": 5, "bytesIn": 2000, "bytesOut": 4500}
    nothing = {"connections": None, "bytesIn": None, "bytesOut": None}
    assert rows[5] == {
        "protocol": "TCP",
        "address": "10.100.1.1:80",
        "scheduler": "rr",
        "connections": 10,
        "bytesIn": 4000,
        "bytesOut": 9000,
        "realServers": [
            {"address": "10.244.1.2:80", "forward": "Masq", "weight": 1, "active": 0, **half},
            {"address": "10.244.2.2:80", "forward": "Masq", "weight": 1, "active": 0, **half},
            {"address": "10.244.2.7:80", "forward": "Masq", "weight": 0, "active": 1, **nothing},
        ],
    }
    assert json.loads(json.dumps(rows)) == rows


def test_report_is_split_at_its_headings() -> None:
    assert ipvs.report_sections("x\n== a\n1\n2\n== b c\n") == {"a": "1\n2\n", "b c": ""}
    with pytest.raises(ipvs.UnreadableError, match="== ipvs"):
        ipvs.report_tables("nothing\n", text(objects()), SETTINGS)


def test_other_services_stay_out_of_the_outputs() -> None:
    others = [
        service(f"team/s{number}", f"10.97.{number // 250}.{number % 250}", HTTP) for number in range(300)
    ]
    # The verified node port's number as the port of a service.
    others.append(service("team/same", "10.98.0.1", {"port": 30080}))
    listed = "".join(
        f"TCP  {item['spec']['clusterIP']}:{item['spec']['ports'][0]['port']} rr\n"
        + "".join(f"  -> 10.244.1.{pod}:80 Masq 1 0 0\n" for pod in range(9, 19))
        for item in others
    )
    report = REPORT.replace("== stats\n", f"{listed}== stats\n", 1)
    assert len(ipvs.report_virtuals(report)) == len(ipvs.report_virtuals(REPORT)) + 301
    assert ipvs.report_tables(report, text(objects(*others)), SETTINGS) == tables()


@pytest.mark.parametrize("report", ["", "\n"])
def test_other_modes_have_no_rows(report: str) -> None:
    assert ipvs.report_tables(report, "not read", SETTINGS) == []


def test_rows_are_read_back_from_stack_outputs() -> None:
    rows = tables()
    outputs = json.loads(json.dumps(rows), parse_int=float)
    virtuals = ipvs.from_rows(outputs)
    assert ipvs.rows(virtuals) == rows
    assert isinstance(virtuals[5].reals[0].counts, ipvs.Counts)
    assert isinstance(virtuals[5].reals[0].weight, int)
