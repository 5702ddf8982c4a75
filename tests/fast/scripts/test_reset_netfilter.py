"""Removing rules, virtual servers and links."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import home_of, put, record, stdout_of

NETFILTER = "lib/reset/netfilter.sh"
# A node's nat table with a port published by one of its pods, one published by nerdctl, and the user's rules.
RULES = (Path(__file__).parent.parent / "data/iptables-of-others.txt").read_text()
CLUSTER_CHAINS = ("KUBE-SERVICES", "FLANNEL-POSTRTG", "CNI-DN-0a1b2c")


def without_kubernetes(root: Path, rules: str) -> list[str]:
    put(root, "rules", rules)
    return stdout_of(NETFILTER, f"create() {{ without_kubernetes <{root}/rules; }}\n", root).splitlines()


def test_only_the_clusters_rules_are_removed(tmp_path: Path) -> None:
    expected = [line for line in RULES.splitlines() if not any(chain in line for chain in CLUSTER_CHAINS)]
    assert without_kubernetes(tmp_path, RULES) == expected
    assert without_kubernetes(tmp_path, "\n".join(expected) + "\n") == expected, "unchanged the second time"


def test_unused_cni_port_chains_are_removed(tmp_path: Path) -> None:
    without_nerdctl = [line for line in RULES.splitlines() if "CNI-DN-ffeedd" not in line]
    left = without_kubernetes(tmp_path, "\n".join(without_nerdctl) + "\n")
    assert not [line for line in left if "CNI-" in line]
    assert [line for line in left if "MINE" in line] == [
        line for line in RULES.splitlines() if "MINE" in line
    ]


IPVS = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A8A665:192B      Masq    1      0          0
UDP  0A60000A:0035 rr
SCTP  0A60000B:0035 rr
TCP  C0000201:0050 wlc
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 wlc
FWM  00000001 wlc
"""
NETWORKS = "pod 10.244.0.0/16\nservice 10.96.0.0/12\nexclude 198.51.100.0/24\n"
REMOVE_SERVERS = """
ipvsadm() { echo "${*#--delete-service}"; }
have() { true; }
ip() {
  [[ $* == '-4 -o address show' ]]
  echo '1: lo    inet 127.0.0.1/8 scope host lo'
  echo '2: eth0    inet 192.168.166.101/24 brd 192.168.166.255 scope global eth0'
  if [[ -e $ROOT/sys/class/net/kube-ipvs0 ]]; then echo '9: kube-ipvs0    inet 203.0.113.7/32'; fi
}
create() { remove_ipvs_services; }
"""


def removed_servers(root: Path, table: str) -> list[str]:
    """The virtual servers that a reset removes."""
    put(root, "proc/net/ip_vs", table)
    return [line.strip() for line in stdout_of(NETFILTER, REMOVE_SERVERS, root).splitlines()]


def test_foreign_virtual_servers_stay(tmp_path: Path) -> None:
    (home_of(tmp_path) / "networks").write_text(NETWORKS)
    record(tmp_path, ipvs="TCP  0A60000C:0050 wlc\n")
    recorded = "TCP  0A60000C:0050 wlc\n"
    assert removed_servers(tmp_path, IPVS + recorded) == [
        "--tcp-service 10.96.0.1:443",
        "--udp-service 10.96.0.10:53",
        "--sctp-service 10.96.0.11:53",
    ]
    assert removed_servers(tmp_path, "".join(IPVS.splitlines(keepends=True)[:3])) == []


@pytest.mark.parametrize(
    ("line", "server", "with_proxy", "without_proxy"),
    [
        ("TCP  CB007107:0050 rr", "203.0.113.7:80", True, False),  # a load balancer's address on kube-ipvs0
        ("TCP  C0A8A665:7580 rr", "192.168.166.101:30080", True, False),  # a node port
        ("TCP  C0A8A665:0050 rr", "192.168.166.101:80", False, False),
        ("TCP  C0A8A665:7FFF rr", "192.168.166.101:32767", True, False),
        ("TCP  C0A8A665:8000 rr", "192.168.166.101:32768", False, False),
        ("TCP  0AF40101:7580 rr", "10.244.1.1:30080", True, True),  # of an interface that is gone
        ("TCP  C0000209:7580 rr", "192.0.2.9:30080", False, False),  # added by the user later
        ("TCP  7F000001:7580 rr", "127.0.0.1:30080", False, False),
        ("TCP  C6336407:0050 rr", "198.51.100.7:80", False, False),  # in proxy.excludeCidrs
    ],
)
def test_only_kube_proxys_virtual_servers_are_removed(
    tmp_path: Path, line: str, server: str, with_proxy: bool, without_proxy: bool
) -> None:
    (home_of(tmp_path) / "networks").write_text(NETWORKS)
    record(tmp_path, ipvs="")
    for removed in (without_proxy, with_proxy):
        assert removed_servers(tmp_path, f"{line}\n") == [f"--tcp-service {server}"] * removed
        (tmp_path / "sys/class/net/kube-ipvs0").mkdir(parents=True, exist_ok=True)


def test_excluded_virtual_server_on_a_node_port_stays(tmp_path: Path) -> None:
    (home_of(tmp_path) / "networks").write_text("exclude 192.168.166.101/32\n")
    (tmp_path / "sys/class/net/kube-ipvs0").mkdir(parents=True)
    assert removed_servers(tmp_path, "TCP  C0A8A665:7580 rr\n") == []


def test_foreign_links_and_network_namespaces_stay(tmp_path: Path) -> None:
    for name in ("kube-ipvs0", "cni0", "eth0", "podman0"):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
    namespaces = tmp_path / "run/netns"
    for name in ("cni-left", "cni-podman"):
        put(tmp_path, f"run/netns/{name}")
    # A process runs in podman's namespace, and the user already had a cni0.
    record(tmp_path, links="cni0\neth0\npodman0\n")
    code = f"""
ip() {{ echo "$*"; }}
umount() {{ :; }}
readlink() {{ echo "net:[{(namespaces / "cni-podman").stat().st_ino}]"; }}
create() {{ remove_links; }}
"""
    assert stdout_of(NETFILTER, code, tmp_path).splitlines() == ["link delete kube-ipvs0"]
    assert [path.name for path in namespaces.iterdir()] == ["cni-podman"]


def test_recorded_kube_ipvs0_is_removed_with_the_mode(tmp_path: Path) -> None:
    # Earlier versions of this program recorded a previous cluster's. kube-proxy then uses it.
    (tmp_path / "sys/class/net/kube-ipvs0").mkdir(parents=True)
    record(tmp_path, links="eth0\nkube-ipvs0\n")
    code = """
ip() { if [[ $1 == link ]]; then rmdir "$ROOT/sys/class/net/$3"; fi; }
nft() { :; }
ipset() { :; }
iptables-save() { :; }
ip6tables-save() { :; }
create() { remove_other_modes; other_modes; }
"""
    assert stdout_of("steps/proxy.sh", code, tmp_path, MODE="iptables").split() == []
    assert not (tmp_path / "sys/class/net/kube-ipvs0").exists()
