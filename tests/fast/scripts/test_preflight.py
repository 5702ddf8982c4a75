"""What the step `claim` finds on hosts that were something before."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import kubeadm
from model.settings_file import load
from model.steps import values_of
from tests.fast import recorded_run
from tests.fast.sample_settings import raw_settings, settings_with
from tests.fast.shell import home_of, put, record, run, stdout_of

CLAIM = "steps/claim.sh"
NETWORKS = "pod 10.244.0.0/16\nservice 10.96.0.0/12"
VALUES = {
    "ROLE": "control-plane",
    "MODE": "ipvs",
    "SCHEDULER": "rr",
    "VERSION": "1.37.2",
    "MANAGE": "true",
    "NETWORKS": NETWORKS,
    "IGNORED_CHECKS": "",
    "RESOLV_CONF": "",
    "REMOVE_LEFTOVERS": "",
    "FIRST_BOOT_SECONDS": "0",
}


def problems(root: Path, check: str, code: str = "", **values: str) -> list[str]:
    """The problems that one of the claim's checks finds."""
    print_problems = "printf '%s\\n' \"${problems[@]}\""
    body = f"{code}\ncreate() {{ local problems=() leftovers=() advice; {check}; {print_problems}; }}\n"
    return [line for line in stdout_of(CLAIM, body, root, **VALUES | values).splitlines() if line]


# A previous cluster's leftovers, as the tools show them. `removed` has the commands that change the host.
LEFTOVERS = """
have() { true; }
module_loaded() { true; }
ip() {
  case $* in
    '-4 -o address show dev cni0') echo '5: cni0    inet 10.244.3.1/24 brd 10.244.3.255 scope global cni0' ;;
    '-4 -o address show')
      echo '1: lo    inet 127.0.0.1/8 scope host lo'
      echo '2: eth0    inet 192.0.2.10/24 scope global eth0'
      if [[ -e $ROOT/sys/class/net/kube-ipvs0 ]]; then echo '4: kube-ipvs0    inet 203.0.113.7/32'; fi
      ;;
    'link delete '*) echo "$*" >>"$ROOT/removed"; rmdir "$ROOT/sys/class/net/$3" ;;
  esac
}
ipvsadm() {
  echo "ipvsadm $*" >>"$ROOT/removed"
  local ip=${3%:*} port=${3#*:}
  sed -i "/$(printf '%02X%02X%02X%02X:%04X' ${ip//./ } "$port")/d" "$ROOT/proc/net/ip_vs"
}
iptables-nft-save() { cat "$ROOT/rules" 2>/dev/null || :; }
iptables-legacy-save() { cat "$ROOT/legacy" 2>/dev/null || :; }
ip6tables-nft-save() { :; }
ip6tables-legacy-save() { :; }
iptables-nft-restore() { cat >"$ROOT/rules"; }
iptables-legacy-restore() { cat >"$ROOT/legacy"; }
nft() {
  case $* in
    'list tables') cat "$ROOT/tables" ;;
    'list table '*) grep -qx "table $3 $4" "$ROOT/tables" ;;
    'delete table '*) echo "nft $*" >>"$ROOT/removed"; sed -i "/^table $3 $4\\$/d" "$ROOT/tables" ;;
  esac
}
ipset() {
  case $1 in
    list) cat "$ROOT/sets" ;;
    destroy) echo "ipset $*" >>"$ROOT/removed"; sed -i "/^$2\\$/d" "$ROOT/sets" ;;
  esac
}
"""
RULES = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:FLANNEL-POSTRTG - [0:0]
:MINE - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -j MINE
COMMIT
"""


def previous_cluster(root: Path) -> None:
    """A host after `kubeadm reset`, which its user uses for other things too."""
    for link in ("kube-ipvs0", "cni0", "eth0", "docker0"):
        (root / "sys/class/net" / link).mkdir(parents=True)
    put(
        root,
        "proc/net/ip_vs",
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "TCP  0A600001:01BB rr\n"  # 10.96.0.1:443
        "TCP  CB007107:0050 rr\n"  # 203.0.113.7:80, on kube-ipvs0
        "TCP  C000020A:7580 rr\n",  # 192.0.2.10:30080, a node port
    )
    put(root, "proc/net/ip_tables_names", "nat\n")
    put(root, "rules", RULES)
    put(root, "legacy", RULES.replace("MINE", "THEIRS"))
    put(root, "tables", "table ip kube-proxy\ntable inet mine\ntable ip nat\n")
    put(root, "sets", "KUBE-CLUSTER-IP\nKUBE-LOOP-BACK\nmine\n")
    put(root, "etc/cni/net.d/10-flannel.conflist")
    put(root, "var/lib/cni/networks/cbr0/10.244.3.7")
    put(root, "var/lib/cni/networks/bridge/10.4.0.2")
    put(root, "run/flannel/subnet.env")


LEFTOVER = "leftover of a previous cluster: "
CHAINS = "chains KUBE-SERVICES, FLANNEL-POSTRTG in iptables-"


def test_leftovers_of_a_previous_cluster_are_listed(tmp_path: Path) -> None:
    previous_cluster(tmp_path)
    found = problems(tmp_path, "check_leftovers", LEFTOVERS)
    assert [line.removeprefix(LEFTOVER).partition(" (")[0] for line in found] == [
        "network interface kube-ipvs0",
        "network interface cni0 with 10.244.3.1/24",
        "IPVS virtual servers 10.96.0.1:443/tcp, 203.0.113.7:80/tcp, 192.0.2.10:30080/tcp",
        f"{CHAINS}nft",
        f"{CHAINS}legacy",
        "nftables table ip kube-proxy",
        "IP sets KUBE-CLUSTER-IP, KUBE-LOOP-BACK",
        "/etc/cni/net.d/10-flannel.conflist",
        "/var/lib/cni/networks/cbr0",
        "/run/flannel",
    ]
    assert all(line.startswith(LEFTOVER) and line.endswith(")") for line in found)
    assert not (tmp_path / "removed").exists()


def test_host_without_a_previous_cluster_has_no_leftovers(tmp_path: Path) -> None:
    for link in ("eth0", "docker0", "podman0"):
        (tmp_path / "sys/class/net" / link).mkdir(parents=True)
    put(tmp_path, "proc/net/ip_vs", "TCP  C000020A:7580 rr\n")
    put(tmp_path, "rules", "*nat\n:MINE - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\nCOMMIT\n")
    put(tmp_path, "tables", "table inet mine\n")
    put(tmp_path, "sets", "mine\n")
    put(tmp_path, "var/lib/cni/networks/bridge/10.4.0.2")
    assert problems(tmp_path, "check_leftovers", LEFTOVERS) == []


def test_looking_for_leftovers_loads_no_module(tmp_path: Path) -> None:
    previous_cluster(tmp_path)
    loading = ("iptables-nft-save", "ip6tables-nft-save", "ip6tables-legacy-save", "nft", "ipset", "ipvsadm")
    tools = "".join(f"{name}() {{ echo called >>$ROOT/called; }}\n" for name in loading)
    found = problems(tmp_path, "check_leftovers", f"{LEFTOVERS}module_loaded() {{ false; }}\n{tools}")
    assert f"{LEFTOVER}{CHAINS}legacy" in found[3]
    assert not (tmp_path / "called").exists()


REMOVE = """
create() { local problems=() leftovers=() advice; check_leftovers; claim_host; cat "$RECORD/leftovers"; }
"""
RECORDING = """
record_state() { mkdir -p "$RECORD"; ls "$ROOT/sys/class/net" >"$RECORD/links"; }
"""


def test_leftovers_are_removed_before_the_record(tmp_path: Path) -> None:
    previous_cluster(tmp_path)
    values = VALUES | {"REMOVE_LEFTOVERS": "true", "OWNER": "dev 1", "NODE_PORT": "30080"}
    removed = stdout_of(CLAIM, LEFTOVERS + RECORDING + REMOVE, tmp_path, **values)
    assert "network interface kube-ipvs0" in removed
    assert (home_of(tmp_path) / "record/links").read_text().split() == ["docker0", "eth0"]
    assert (tmp_path / "removed").read_text().splitlines() == [
        "ipvsadm --delete-service --tcp-service 10.96.0.1:443",
        "ipvsadm --delete-service --tcp-service 203.0.113.7:80",
        "ipvsadm --delete-service --tcp-service 192.0.2.10:30080",
        "nft delete table ip kube-proxy",
        "ipset destroy KUBE-CLUSTER-IP",
        "ipset destroy KUBE-LOOP-BACK",
        "link delete kube-ipvs0",
        "link delete cni0",
    ]
    for rules in ("rules", "legacy"):
        assert "KUBE" not in (tmp_path / rules).read_text()
    assert "-A PREROUTING -j MINE" in (tmp_path / "rules").read_text()
    assert not (tmp_path / "etc/cni/net.d/10-flannel.conflist").exists()
    assert not (tmp_path / "run/flannel").exists()
    assert (tmp_path / "var/lib/cni/networks/bridge/10.4.0.2").exists()


OTHER_CHECKS = (
    "await_first_boot",
    "check_system",
    "check_cgroups",
    "check_modules",
    "check_packages",
    "check_containers",
    "check_dns",
    "check_cloud_setup",
    "check_ports",
)


@pytest.mark.parametrize("removing", [True, False])
def test_refused_host_keeps_its_leftovers(tmp_path: Path, removing: bool) -> None:
    previous_cluster(tmp_path)
    put(tmp_path, "var/lib/etcd/lost+found/x")
    code = LEFTOVERS + "".join(f"{name}() {{ :; }}\n" for name in OTHER_CHECKS)
    values = VALUES | {"REMOVE_LEFTOVERS": "true" if removing else ""}
    done = run(CLAIM, code, tmp_path, 1, **values)
    assert "- /var/lib/etcd isn't empty" in done.stderr
    assert ("leftovers removed with preflight.removeLeftovers: true" in done.stderr) != removing
    assert f"{1 if removing else 11} problem(s), listed above" in done.stderr
    assert not (tmp_path / "removed").exists()
    assert not (home_of(tmp_path) / "record").exists()


def test_leftover_that_cannot_be_removed_fails(tmp_path: Path) -> None:
    previous_cluster(tmp_path)
    values = VALUES | {"REMOVE_LEFTOVERS": "true", "OWNER": "dev 1", "NODE_PORT": "30080"}
    code = f"{LEFTOVERS}{RECORDING}ipset() {{ [[ $1 != list ]] || echo KUBE-CLUSTER-IP; }}\n{REMOVE}"
    done = run(CLAIM, code, tmp_path, 1, **values)
    assert "can't be removed: IP sets KUBE-CLUSTER-IP" in done.stderr
    assert not (home_of(tmp_path) / "record").exists()


def test_bridge_of_running_containers_is_not_removed(tmp_path: Path) -> None:
    previous_cluster(tmp_path)
    for name in ("veth1", "veth2"):
        (tmp_path / "sys/class/net/cni0/brif" / name).mkdir(parents=True)
    # One of the two belongs to a pod without processes.
    put(tmp_path, "run/netns/cni-left")
    found = problems(tmp_path, "check_leftovers", LEFTOVERS, REMOVE_LEFTOVERS="true")
    assert [line.partition(";")[0] for line in found] == [
        f"{LEFTOVER}cni0 connects 1 container(s) that may be running"
    ]


def test_other_pod_networks_are_found_and_kept(tmp_path: Path) -> None:
    for link in ("eth0", "cali123abc", "cilium_host"):
        (tmp_path / "sys/class/net" / link).mkdir(parents=True)
    put(tmp_path, "rules", "*nat\n:cali-PREROUTING - [0:0]\nCOMMIT\n")
    put(tmp_path, "tables")
    put(tmp_path, "sets")
    found = problems(tmp_path, "check_leftovers", LEFTOVERS, REMOVE_LEFTOVERS="true")
    assert found == [
        f"leftover of another pod network: {what} (reboot the host)"
        for what in (
            "network interface cali123abc",
            "network interface cilium_host",
            "chains cali-PREROUTING in iptables-nft",
        )
    ]


@pytest.mark.parametrize(
    ("unit", "refused"), [("k3s.service", True), ("rke2-agent.service", True), ("k3sless.service", False)]
)
def test_node_of_another_distribution_is_refused(tmp_path: Path, unit: str, refused: bool) -> None:
    put(tmp_path, f"etc/systemd/system/{unit}")
    done = run(CLAIM, "create() { refuse_foreign_node; }\n", tmp_path, 1 if refused else 0)
    assert (f"{unit} exists" in done.stderr) == refused


VIRTUAL_SERVERS = """TCP  0A600001:01BB rr
TCP  C6336401:0050 wlc
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 wlc
FWM  00000001 wlc
"""
NO_NODE = "ip() { echo '2: eth0    inet 192.0.2.10/24 scope global eth0'; }\n"


@pytest.mark.parametrize(
    ("mode", "excluded", "found"),
    [
        ("ipvs", "", ["TCP 198.51.100.1:80"]),
        ("ipvs", "198.51.100.0/24", []),
        ("ipvs", "198.51.101.0/24", ["TCP 198.51.100.1:80"]),
        ("iptables", "", []),
        (
            "nftables",
            "198.51.100.0/24",
            [
                "TCP 198.51.100.1:80",
                "TCP [2001:0db8:0000:0000:0000:0000:0000:0001]:0050",
                "FWM 00000001",
            ],
        ),
    ],
)
def test_virtual_server_that_kube_proxy_would_delete_is_found(
    tmp_path: Path, mode: str, excluded: str, found: list[str]
) -> None:
    put(tmp_path, "proc/net/ip_vs", VIRTUAL_SERVERS)
    networks = NETWORKS + (f"\nexclude {excluded}" if excluded else "")
    lines = problems(tmp_path, "check_virtual_servers", NO_NODE, MODE=mode, NETWORKS=networks)
    assert [line.partition(": ")[0].removeprefix("IPVS virtual server ") for line in lines] == found


def test_new_proxy_mode_on_a_node_checks_virtual_servers_again(tmp_path: Path) -> None:
    put(tmp_path, "proc/net/ip_vs", VIRTUAL_SERVERS)
    record(tmp_path)
    iptables = kubeadm.proxy_config(settings_with(proxy={"mode": "iptables"}))
    for name, text in (("node.started", ""), ("node.done", ""), ("proxy.yaml", iptables)):
        (home_of(tmp_path) / name).write_text(text)
    for mode, count in (("iptables", 0), ("ipvs", 1), ("nftables", 3)):
        assert len(problems(tmp_path, "check_virtual_servers", NO_NODE, MODE=mode)) == count, mode
    # kube-proxy in mode ipvs has deleted all others itself.
    (home_of(tmp_path) / "proxy.yaml").write_text("mode: ipvs\n")
    (tmp_path / "sys/class/net/kube-ipvs0").mkdir(parents=True)
    assert problems(tmp_path, "check_virtual_servers", NO_NODE) == []
    networks = f"{NETWORKS}\nexclude 198.51.100.0/24"
    assert len(problems(tmp_path, "check_virtual_servers", NO_NODE, MODE="nftables", NETWORKS=networks)) == 3


ROUTES = """
ip() {
  case ${!#} in
    10.244.0.0/16)
      echo '10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink'
      echo '10.244.9.0/24 via 192.0.2.1 dev eth0'
      echo '10.244.8.0/24 via 192.0.2.1 dev eth0'
      echo 'blackhole 10.244.7.0/26 proto bird'
      echo 'broadcast 10.244.3.255 dev cni0 table local proto kernel scope link'
      ;;
    10.96.0.0/12)
      echo 'local 10.96.0.1 dev kube-ipvs0 table local proto kernel scope host'
      echo '10.100.0.0/16 dev tun0 scope link'
      ;;
  esac
}
"""


def test_routes_inside_the_clusters_networks_are_found(tmp_path: Path) -> None:
    found = problems(tmp_path, "check_routes", ROUTES)
    assert [line.partition(";")[0] for line in found] == [
        "route 10.244.9.0/24 dev eth0 (and 1 more) is inside network.podSubnet 10.244.0.0/16",
        "route blackhole 10.244.7.0/26 is inside network.podSubnet 10.244.0.0/16",
        "route 10.100.0.0/16 dev tun0 is inside network.serviceSubnet 10.96.0.0/12",
    ]
    assert problems(tmp_path, "check_routes", ROUTES, IGNORED_CHECKS="routes") == []
    (home_of(tmp_path) / "node.started").touch()
    assert problems(tmp_path, "check_routes", ROUTES) == []


def test_addresses_are_compared_with_networks(tmp_path: Path) -> None:
    inside = (
        ("10.244.255.255", "10.244.0.0/16"),
        ("10.111.255.255", "10.96.0.0/12"),
        ("192.0.2.1", "10.0.0.0/8 192.0.2.1/32"),
        ("255.1.2.3", "0.0.0.0/0"),
    )
    outside = (
        ("10.245.0.0", "10.244.0.0/16"),
        ("10.112.0.0", "10.96.0.0/12"),
        ("192.0.2.1", "192.0.2.2/32"),
        ("192.0.2.1", ""),
    )
    lines = "".join(
        f"if in_network {address} {networks}; then echo {address} {networks}; fi\n"
        for address, networks in (*inside, *outside)
    )
    found = stdout_of("lib/networks.sh", f"create() {{\n{lines}}}\n", tmp_path)
    assert found.splitlines() == [" ".join(pair) for pair in inside]


def test_networks_reach_the_claim(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path) | {"proxy": {"excludeCidrs": ["198.51.100.0/24"]}}
    recorded = recorded_run.run(load(raw, tmp_path))
    values = values_of(recorded.inputs["node1-preparation"]["stdin"])
    assert values is not None
    code = "create() { cluster_networks pod service; cluster_networks exclude; }\n"
    assert stdout_of("lib/networks.sh", code, tmp_path, NETWORKS=values["NETWORKS"]).split() == [
        "10.244.0.0/16",
        "10.96.0.0/12",
        "198.51.100.0/24",
    ]


@pytest.mark.parametrize(
    ("resolved", "setting", "servers", "found"),
    [
        (False, "", ["192.0.2.53"], ""),
        (False, "", ["127.0.0.1", "192.0.2.53"], "/etc/resolv.conf has nameserver 127.0.0.1"),
        (False, "", ["127.0.0.53"], "/etc/resolv.conf has nameserver 127.0.0.53"),
        (False, "", ["::1"], "/etc/resolv.conf has nameserver ::1"),
        (False, "", [], "/etc/resolv.conf has no nameserver"),
        (False, "", ["10.96.0.10"], "/etc/resolv.conf has nameserver 10.96.0.10, which is inside"),
        (False, "", ["fe80::1%eth0"], ""),
        (False, "", None, "/etc/resolv.conf doesn't exist"),
        (True, "", ["127.0.0.1"], "/run/systemd/resolve/resolv.conf has nameserver 127.0.0.1"),
        (True, "/etc/resolv.pods.conf", ["192.0.2.53"], ""),
        (False, "/etc/resolv.pods.conf", None, "/etc/resolv.pods.conf doesn't exist"),
    ],
)
def test_dns_servers_that_pods_cannot_use_are_found(
    tmp_path: Path, resolved: bool, setting: str, servers: list[str] | None, found: str
) -> None:
    file = setting or ("/run/systemd/resolve/resolv.conf" if resolved else "/etc/resolv.conf")
    if servers is not None:
        put(tmp_path, file, "# nameserver 127.0.0.1\n" + "".join(f"nameserver {one}\n" for one in servers))
    tools = f"unit_active() {{ {'true' if resolved else 'false'}; }}\n"
    lines = problems(tmp_path, "check_dns", tools, RESOLV_CONF=setting)
    assert len(lines) == bool(found)
    assert all(line.startswith(found) for line in lines)
    # An existing node is checked only for a setting of its own.
    (home_of(tmp_path) / "node.started").touch()
    assert len(problems(tmp_path, "check_dns", tools, RESOLV_CONF=setting)) == bool(found and setting)


@pytest.mark.parametrize(
    ("arguments", "version", "found"),
    [
        ('"--network-plugin=cni -v 2"', "1.34.4", "--network-plugin "),
        ("--container_runtime=remote", "1.37.2", "--container-runtime "),
        ("--container-runtime-endpoint=unix:///x", "1.37.2", ""),
        ("--pod-infra-container-image=p", "1.34.4", ""),
        ("--pod-infra-container-image=p", "1.35.0", "--pod-infra-container-image "),
        ("--containerd=/run/x", "1.36.4", ""),
        ("--containerd=/run/x", "1.37.2", "--containerd "),
        ("--node-labels=network-plugin=cni", "1.37.2", ""),
        ("--cgroup-driver=cgroupfs", "1.37.2", "--cgroup-driver "),
        ("--cgroup-driver=systemd", "1.37.2", ""),
    ],
)
def test_kubelet_flags_that_were_removed_are_found(
    tmp_path: Path, arguments: str, version: str, found: str
) -> None:
    line = f"KUBELET_EXTRA_ARGS={arguments}"
    for name in ("etc/default/kubelet", "etc/systemd/system/kubelet.service.d/20-mine.conf"):
        file = put(tmp_path, name, f"# {line}\n  {line}\n")
        lines = problems(tmp_path, "check_kubelet_files", VERSION=version)
        assert len(lines) == bool(found)
        assert all(one.startswith(f"{file}: ") and found in one and one.endswith(line) for one in lines)
        file.unlink()


KUBEADMS = (
    "/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS"
)


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("kubelet.service.d/20-mine.conf", "LimitNOFILE=65536", False),
        ("kubelet.service.d/20-mine.conf", "ExecStart=", False),
        ("kubelet.service.d/20-mine.conf", "ExecStart=/usr/local/bin/kubelet --config=/etc/mine", True),
        ("kubelet.service.d/10-kubeadm.conf", f"ExecStart={KUBEADMS}", False),
        ("kubelet.service", "ExecStart=/usr/bin/kubelet", False),
    ],
)
def test_other_kubelet_command_is_found(tmp_path: Path, file: str, line: str, found: bool) -> None:
    path = put(tmp_path, f"etc/systemd/system/{file}", f"[Service]\n{line}\n")
    lines = problems(tmp_path, "check_kubelet_files")
    assert len(lines) == found
    assert all(one.startswith(f"{path}: ") and one.endswith(line) for one in lines)


def test_other_kubelet_command_is_accepted_without_packages(tmp_path: Path) -> None:
    put(tmp_path, "etc/systemd/system/kubelet.service", "ExecStart=/opt/bin/kubelet\n")
    assert len(problems(tmp_path, "check_kubelet_files")) == 1
    assert problems(tmp_path, "check_kubelet_files", MANAGE="false") == []


def test_etcd_folder_that_is_not_empty_is_found(tmp_path: Path) -> None:
    assert problems(tmp_path, "check_etcd_folder") == []
    (tmp_path / "var/lib/etcd").mkdir(parents=True)
    assert problems(tmp_path, "check_etcd_folder") == []
    (tmp_path / "var/lib/etcd/lost+found").mkdir()
    put(tmp_path, "var/lib/etcd/.hidden")
    (found,) = problems(tmp_path, "check_etcd_folder")
    assert found.startswith("/var/lib/etcd isn't empty (.hidden lost+found)")
    assert problems(tmp_path, "check_etcd_folder", IGNORED_CHECKS="diravailable--var-lib-etcd") == []
    assert problems(tmp_path, "check_etcd_folder", ROLE="worker") == []


@pytest.mark.parametrize(
    ("controllers", "found"),
    [
        ("cpuset cpu io memory hugetlb pids rdma misc", ""),
        ("cpuset cpu io hugetlb pids", "cgroup controllers are off: memory; "),
        ("cpu io", "cgroup controllers are off: cpuset memory pids; "),
        ("cpuset io memory pids", "cgroup controllers are off: cpu; "),
        (None, "cgroup v1: "),
    ],
)
def test_missing_cgroup_controllers_are_found(tmp_path: Path, controllers: str | None, found: str) -> None:
    if controllers is not None:
        put(tmp_path, "sys/fs/cgroup/cgroup.controllers", f"{controllers}\n")
    # coreutils before 9.0 and old uutils print other words for the file system.
    lines = problems(tmp_path, "check_cgroups", "stat() { echo UNKNOWN; }\n")
    assert len(lines) == bool(found)
    assert all(line.startswith(found) for line in lines)
    if controllers == "cpu io":
        assert "cgroup_enable=cpuset cgroup_enable=memory cgroup_enable=pids" in lines[0]


MODULES = """
uname() { echo 0.0.0-test; }
modprobe() { cat "$ROOT/modprobe" 2>/dev/null || :; }
modinfo() { ! grep -qx "$1" "$ROOT/missing"; }
"""


@pytest.mark.parametrize(
    ("system", "family", "package"),
    [
        ("ID=ubuntu", "deb", "linux-modules-extra-0.0.0-test"),
        ("ID=almalinux", "rpm", "kernel-modules-extra-0.0.0-test"),
        ("ID=debian", "deb", "the distribution's full kernel package"),
        ("", "deb", "reboot into a kernel whose modules are installed"),
    ],
)
def test_missing_modules_are_found_with_their_package(
    tmp_path: Path, system: str, family: str, package: str
) -> None:
    put(tmp_path, "etc/os-release", f"{system}\n")
    put(tmp_path, "missing", "ip_set\nxt_set\n")
    if system:
        (tmp_path / "lib/modules/0.0.0-test").mkdir(parents=True)
    tools = f"{MODULES}package_family() {{ echo {family}; }}\n"
    (found,) = problems(tmp_path, "check_modules", tools)
    assert found.startswith("kernel 0.0.0-test lacks the modules xt_set ip_set; ")
    assert package in found
    assert problems(tmp_path, "check_modules", tools, MODE="iptables") == []


def test_modules_of_a_running_node_are_not_checked_again(tmp_path: Path) -> None:
    put(tmp_path, "missing", "xt_set\n")
    tools = f"{MODULES}package_family() {{ echo deb; }}\n"
    (home_of(tmp_path) / "node.done").touch()
    (home_of(tmp_path) / "proxy.yaml").write_text("mode: ipvs\n")
    assert problems(tmp_path, "check_modules", tools) == []
    (home_of(tmp_path) / "proxy.yaml").write_text("mode: iptables\n")
    assert len(problems(tmp_path, "check_modules", tools)) == 1


def test_modules_turned_off_by_a_hardening_guide_are_found(tmp_path: Path) -> None:
    put(tmp_path, "missing")
    lines = ("alias x overlay", "install overlay /bin/false", "install cramfs /bin/true", "install vxlan /x")
    put(tmp_path, "modprobe", "".join(f"{line}\n" for line in lines))
    tools = f"{MODULES}package_family() {{ echo deb; }}\n"
    (found,) = problems(tmp_path, "check_modules", tools)
    assert found.startswith("modules that /etc/modprobe.d turns off: overlay;")


@pytest.mark.parametrize("unit", ["nm-cloud-setup.timer", "nm-cloud-setup.service", "NetworkManager.service"])
def test_active_cloud_setup_is_found(tmp_path: Path, unit: str) -> None:
    tools = f"unit_active() {{ [[ $1 == {unit} ]]; }}\n"
    found = problems(tmp_path, "check_cloud_setup", tools)
    assert len(found) == unit.startswith("nm-cloud-setup")


FIRST_BOOT = """
have() { true; }
pause() { echo 'status: done' >"$ROOT/cloud-init"; : >"$ROOT/updates"; }
timeout() { shift; "$@"; }
cloud-init() { cat "$ROOT/cloud-init"; return 1; }
systemctl() { cat "$ROOT/updates"; }
create() { await_first_boot; }
"""


@pytest.mark.parametrize(
    ("status", "updates", "running"),
    [
        ("status: done", "", ""),
        ("status: error", "", ""),
        ("status: not started", "", ""),
        ("status: running", "", "cloud-init"),
        ("status: done", "apt-daily-upgrade.service loaded activating start", "apt-daily-upgrade.service"),
    ],
)
def test_first_boot_is_awaited_up_to_a_limit(tmp_path: Path, status: str, updates: str, running: str) -> None:
    put(tmp_path, "cloud-init", f"{status}\n")
    put(tmp_path, "updates", f"{updates}\n" if updates else "")
    never_ends = FIRST_BOOT.replace("pause() {", "pause() { return;")
    done = run(CLAIM, never_ends, tmp_path, 1 if running else 0, **VALUES)
    assert (f"{running} is still at work after 0 s" in done.stderr) == bool(running)
    run(CLAIM, FIRST_BOOT, tmp_path, **VALUES | {"FIRST_BOOT_SECONDS": "30"})
    record(tmp_path)
    put(tmp_path, "cloud-init", "status: running\n")
    run(CLAIM, never_ends, tmp_path, **VALUES)
