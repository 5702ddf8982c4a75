"""The step `verification`: reading and comparing the kernel's entries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fast.shell import bash, put, run, stdout_of, with_code

VERIFICATION = "steps/verification.sh"
DATA = Path(__file__).parent.parent / "data"
# A node's rules in each mode, reduced to one of each kind.
IPTABLES = (DATA / "iptables.txt").read_text()
NFTABLES = (DATA / "nftables.txt").read_text()


def test_iptables_rules_are_read(tmp_path: Path) -> None:
    put(tmp_path, "rules", IPTABLES)
    code = f"iptables-save() {{ cat {tmp_path}/rules; }}\ncreate() {{ entries; }}\n"
    assert stdout_of(VERIFICATION, code, tmp_path, MODE="iptables").splitlines() == [
        "node-port TCP 30080",
        "endpoint TCP 10.244.1.2:80",
        "service UDP 10.96.0.10:53",
    ]


def test_nftables_maps_are_read(tmp_path: Path) -> None:
    put(tmp_path, "rules", NFTABLES)
    code = f"nft() {{ cat {tmp_path}/rules; }}\ncreate() {{ entries; }}\n"
    assert stdout_of(VERIFICATION, code, tmp_path, MODE="nftables").splitlines() == [
        "service UDP 10.96.0.10:53",
        "service TCP 10.96.0.1:443",
        "node-port TCP 30080",
        "endpoint TCP 10.244.1.2:80",
        "endpoint TCP 10.244.2.2:80",
        "endpoint TCP 192.168.166.101:6443",
    ]


@pytest.mark.parametrize(
    ("members", "missing"), [("", ""), ("10.244.0.2,tcp:53,10.244.0.2", "KUBE-LOOP-BACK")]
)
def test_hairpin_rule_is_needed_only_with_endpoints(tmp_path: Path, members: str, missing: str) -> None:
    code = f"""
ipset() {{
  case "$*" in
    "list -n") printf 'KUBE-CLUSTER-IP\\nKUBE-LOOP-BACK\\n' ;;
    *KUBE-LOOP-BACK) printf 'Name: x\\nMembers:\\n{members}' ;;
    *) printf 'Name: x\\nMembers:\\n10.96.0.1,tcp:443\\n' ;;
  esac
}}
iptables-save() {{ echo '-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ'; }}
ipvsadm() {{ :; }}
create() {{ ipvs_differences | grep -v kube-ipvs0 || :; }}
"""
    output = stdout_of(VERIFICATION, code, tmp_path, MODE="ipvs", EXPECTED="set KUBE-CLUSTER-IP")
    assert output == (f"missing: a rule that masquerades by the set {missing}\n" if missing else "")


@pytest.mark.parametrize(
    ("networks", "elsewhere"),
    [
        ("", []),
        ("192.168.166.0/24", ["10.0.2.15", "192.168.167.9"]),
        ("192.168.166.102/32 10.0.0.0/8", ["192.168.167.9"]),
    ],
)
def test_node_ports_on_other_addresses_are_found(tmp_path: Path, networks: str, elsewhere: list[str]) -> None:
    """Services and excluded networks may have the same port."""
    put(tmp_path, "var/lib/kubeadm-ipvs/networks", "exclude 192.0.2.0/24\n")
    servers = ["192.168.166.102:30080", "10.0.2.15:30080", "192.168.167.9:30080", "10.96.0.7:30080"]
    servers += ["192.0.2.1:30080", "192.168.167.9:30081", "192.168.167.9:130080"]
    found = "address 10.96.0.7\n" + "".join(f"virtual TCP {server} rr\n" for server in servers)
    code = f"create() {{ local found='{found}'; node_ports_elsewhere; }}\n"
    expected = f"node-port-networks TCP 30080 {networks}" if networks else "set KUBE-CLUSTER-IP"
    lines = stdout_of(VERIFICATION, code, tmp_path, EXPECTED=expected).splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"unexpected: virtual TCP {address}:30080" for address in elsewhere
    ]


EXPECTED = """\
address 10.96.0.1
address 10.96.0.10
real TCP 10.96.0.1:443 192.168.166.101:6443 Masq
real UDP 10.96.0.10:53 10.244.0.2:53 Masq
set KUBE-CLUSTER-IP
virtual TCP 10.96.0.1:443 rr
virtual UDP 10.96.0.10:53 rr"""
# A kernel without differences. It also has the user's own virtual server, and a real server with weight 0
# that still has a connection.
ADDRESSES = (
    "5: kube-ipvs0    inet 10.96.0.1/32 scope global\n5: kube-ipvs0    inet 10.96.0.10/32 scope global\n"
)
SAVED = """\
-A -t 10.96.0.1:443 -s rr
-a -t 10.96.0.1:443 -r 192.168.166.101:6443 -m -w 1
-A -u 10.96.0.10:53 -s rr -p 10800
-a -u 10.96.0.10:53 -r 10.244.0.2:53 -m -w 1
-a -u 10.96.0.10:53 -r 10.244.0.7:53 -m -w 0
-A -t 192.0.2.1:80 -s wlc
-a -t 192.0.2.1:80 -r 192.0.2.9:80 -g -w 1
"""
SETS = "KUBE-LOOP-BACK\nKUBE-CLUSTER-IP\nmine\n"
RULES = """\
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
"""


@pytest.mark.parametrize(
    ("kernel", "differences"),
    [
        ({}, []),
        ({"state": "up\n"}, ["kube-ipvs0 is up, not DOWN"]),
        ({"addresses": ADDRESSES.splitlines()[0]}, ["missing: address 10.96.0.10"]),
        (
            {"saved": "".join(SAVED.splitlines(keepends=True)[2:])},
            [
                "missing: real TCP 10.96.0.1:443 192.168.166.101:6443 Masq",
                "missing: virtual TCP 10.96.0.1:443 rr",
            ],
        ),
        (
            {"saved": SAVED.replace("443 -s rr", "443 -s wlc")},
            ["missing: virtual TCP 10.96.0.1:443 rr", "unexpected: virtual TCP 10.96.0.1:443 wlc"],
        ),
        (
            {"saved": SAVED.replace(".101:6443", ".109:6443")},
            [
                "missing: real TCP 10.96.0.1:443 192.168.166.101:6443 Masq",
                "unexpected: real TCP 10.96.0.1:443 192.168.166.109:6443 Masq",
            ],
        ),
        (
            {"saved": SAVED.replace("6443 -m", "6443 -g")},
            [
                "missing: real TCP 10.96.0.1:443 192.168.166.101:6443 Masq",
                "unexpected: real TCP 10.96.0.1:443 192.168.166.101:6443 Route",
            ],
        ),
        (
            {"saved": SAVED.replace("-w 0", "-w 1")},
            ["unexpected: real UDP 10.96.0.10:53 10.244.0.7:53 Masq"],
        ),
        ({"sets": "KUBE-LOOP-BACK\n"}, ["missing: set KUBE-CLUSTER-IP"]),
        (
            {"rules": f"{RULES}:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]\n:KUBE-SEP-HFTVNR7P6CJIKS2I - [0:0]\n"},
            [
                "balanced in iptables: KUBE-SVC-NPX46M4PTMTKRN6Y",
                "balanced in iptables: KUBE-SEP-HFTVNR7P6CJIKS2I",
            ],
        ),
        ({"nft": "table ip kube-proxy {}\n"}, ["balanced in nftables: the table ip kube-proxy"]),
    ],
)
def test_missing_and_unexpected_entries_are_reported(
    tmp_path: Path, kernel: dict[str, str], differences: list[str]
) -> None:
    good = {
        "state": "down\n",
        "addresses": ADDRESSES,
        "saved": SAVED,
        "sets": SETS,
        "rules": RULES,
        "nft": "",
    }
    files = good | kernel
    put(tmp_path, "sys/class/net/kube-ipvs0/operstate", files.pop("state"))
    for name, text in files.items():
        put(tmp_path, f"kernel/{name}", text)
    code = f"""
cd {tmp_path}/kernel
ip() {{ cat addresses; }}
ipvsadm() {{ cat saved; }}
ipset() {{ if [[ $* == "list -n" ]]; then cat sets; fi; }}
iptables-save() {{ cat rules; }}
nft() {{ [[ -s nft ]]; }}
create() {{ differences; }}
"""
    output = stdout_of(VERIFICATION, code, tmp_path, MODE="ipvs", EXPECTED=EXPECTED)
    assert output.splitlines() == differences


OWN_ADDRESSES = """\
1: lo    inet 127.0.0.1/8 scope host lo
2: eth0    inet 10.0.0.12/24 brd 10.0.0.255 scope global eth0
3: kube-ipvs0    inet 10.96.0.1/32 scope global kube-ipvs0
4: cni0    inet 10.244.1.1/24 scope global cni0
"""


@pytest.mark.parametrize(
    ("address", "problem", "message"),
    [
        ("10.0.0.12", "", ""),
        ("10.0.0.12", "the node isn't Ready (stopped)", "FAILED: the node isn't Ready (stopped)"),
        ("10.0.0.1", "", "FAILED: the host no longer has the address 10.0.0.1, but 10.0.0.12\n"),
    ],
)
def test_node_that_isnt_ready_or_moved_fails(
    tmp_path: Path, address: str, problem: str, message: str
) -> None:
    put(tmp_path, "addresses", OWN_ADDRESSES)
    code = f"""
ip() {{ cat {tmp_path}/addresses; }}
differences() {{ :; }}
check_responses() {{ :; }}
"""
    values = {"NODE_ENDPOINT": f"{address}:30080", "NODE_PROBLEM": problem, "MODE": "iptables"}
    done = run(VERIFICATION, code, tmp_path, 1 if message else 0, WAIT_SECONDS="5", **values)
    assert message in done.stderr


REPORT = """\
== ipvs
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.12:30080 rr
  -> 10.244.1.2:80                Masq    1      0          0
TCP  10.0.2.15:30080 rr
  -> 10.244.1.2:80                Masq    1      0          0
UDP  10.0.0.12:30080 rr
TCP  10.0.0.12:30081 rr
  -> 10.244.1.9:80                Masq    1      0          0
TCP  10.96.0.1:443 rr
  -> 10.0.0.11:6443               Masq    1      0          0
TCP  10.97.0.1:30080 rr
  -> 10.244.1.9:80                Masq    1      0          0
FWM  1 rr
  -> 10.244.1.9:80                Masq    1      0          0
== addresses
10.96.0.1
10.97.0.1
== sets
KUBE-CLUSTER-IP
== spread
10.0.0.12:30080 10.244.1.2:80 5
"""


def test_only_verified_services_are_printed(tmp_path: Path) -> None:
    put(tmp_path, "services", "3: kube-ipvs0    inet 10.96.0.1/32\n3: kube-ipvs0    inet 10.97.0.1/32\n")
    put(
        tmp_path, "report", REPORT.replace("== addresses", f"== stats{REPORT[7:].split('==')[0]}== addresses")
    )
    expected = "address 10.96.0.1\nvirtual TCP 10.0.0.12:30080 rr\nvirtual TCP 10.96.0.1:443 rr"
    code = f"""
ip() {{ cat {tmp_path}/services; }}
create() {{ verified_only <{tmp_path}/report; }}
"""
    lines = stdout_of(VERIFICATION, code, tmp_path, EXPECTED=expected).splitlines()
    kept = ["TCP  10.0.0.12:30080 rr", "TCP  10.0.2.15:30080 rr", "TCP  10.96.0.1:443 rr"]
    assert [line for line in lines if line[:3] in ("TCP", "UDP", "FWM")] == kept * 2
    assert not [line for line in lines if "10.244.1.9" in line]
    assert len([line for line in lines if line.startswith("  -> 1")]) == 6
    assert lines[lines.index("== addresses") :] == [
        *("== addresses", "10.96.0.1", "== sets", "KUBE-CLUSTER-IP"),
        *("== spread", "10.0.0.12:30080 10.244.1.2:80 5"),
    ]


def spread(root: Path, choice: str, *, lag: int) -> subprocess.CompletedProcess[str]:
    """Send ten requests to three real servers; the third has weight 0.

    Args:
        root: The host's root folder.
        choice: Shell arithmetic that chooses the real server, 0 or 1, for request `n`.
        lag: After how many reads a request shows up in the kernel's statistics.
    """
    sent, reads = put(root, "sent"), put(root, "reads")
    code = f"""
create() {{ check_spread 10.96.0.20:80; }}
request() {{ n=$(wc -l <{sent}); echo $(({choice})) >>{sent}; }}
ipvsadm() {{
  if [[ $* != *--stats* ]]; then
    printf '  -> %s:80  Masq %s 0 0\\n' 10.244.1.0 1 10.244.1.1 1 10.244.2.9 0
    return
  fi
  cp {sent} {reads}.$(wc -l <{reads}); echo >>{reads}
  local now=$(($(wc -l <{reads}) - 1 - {lag}))
  echo 'Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes'
  echo 'TCP  10.96.0.20:80                      99       99       99       99       99'
  local server
  for server in 0 1; do
    echo "  -> 10.244.1.$server:80  $(cat {reads}.$((now < 0 ? 0 : now)) | grep -c "$server" || :) 9 9 9 9"
  done
  echo "  -> 10.244.2.9:80  7 9 9 9 9"
}}
pause() {{ :; }}
"""
    text = with_code(VERIFICATION, code, REQUESTS="10", SCHEDULER="rr", COUNT_SECONDS="1")
    return bash(text, root=root, check=False)


@pytest.mark.parametrize("lag", [0, 3])
def test_requests_are_counted_with_late_statistics(tmp_path: Path, lag: int) -> None:
    done = spread(tmp_path, "n % 2", lag=lag)
    assert done.stdout == "10.96.0.20:80 10.244.1.0:80 5\n10.96.0.20:80 10.244.1.1:80 5\n", done.stderr


def test_uneven_distribution_fails(tmp_path: Path) -> None:
    done = spread(tmp_path, "n % 5 == 0", lag=1)
    assert done.returncode == 1
    assert "FAILED: rr didn't distribute 10 requests to 10.96.0.20:80 as expected" in done.stderr
    assert "10.244.1.0:80 8 10.244.1.1:80 2" in done.stderr
