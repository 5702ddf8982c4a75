"""Removing rules, virtual servers and links."""

from __future__ import annotations

from pathlib import Path

from tests.fast.shell import put, record, run, stdout_of

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


def test_foreign_virtual_servers_stay(tmp_path: Path) -> None:
    put(tmp_path, "proc/net/ip_vs", IPVS)
    record(tmp_path, ipvs="TCP  C0000201:0050 wlc\n")
    code = 'ipvsadm() { echo "$*"; }\nhave() { true; }\ncreate() { remove_ipvs_services; }\n'
    assert stdout_of(NETFILTER, code, tmp_path).splitlines() == [
        "--delete-service --tcp-service 10.96.0.1:443",
        "--delete-service --udp-service 10.96.0.10:53",
        "--delete-service --sctp-service 10.96.0.11:53",
    ]
    put(tmp_path, "proc/net/ip_vs", "".join(IPVS.splitlines(keepends=True)[:3]))
    done = run(NETFILTER, code, tmp_path)
    assert done.stdout + done.stderr == ""


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
