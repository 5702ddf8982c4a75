"""What a host's giving back takes away and what it leaves, with the host's tools replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.fast.shell import bash, code, redirected, with_lib
from tests.fast.test_script_parts import RESET


def run(tmp_path: Path, body: str, *files: str, status: int = 0) -> str:
    """What a `create` of the test's own says, on a host whose record is there."""
    (tmp_path / "record").mkdir(exist_ok=True)
    script = RESET + "".join(code(name) for name in files)
    done = bash(with_lib(redirected(script, tmp_path) + body), home=tmp_path, check=False)
    assert done.returncode == status, done.stderr
    # A part of a pipeline that finds nothing is no failure, nor told as one.
    assert ("FAILED" in done.stderr) == bool(status), done.stderr
    return done.stdout + done.stderr


def record(tmp_path: Path, **files: str) -> None:
    (tmp_path / "record").mkdir(exist_ok=True)
    for name, text in files.items():
        (tmp_path / "record" / name.replace("_", "-")).write_text(text)


# A node's table nat, with a port that one of its pods publishes, one of nerdctl's, and the user's rules.
RULES = (Path(__file__).parent / "data/iptables-of-others.txt").read_text()
OURS = ("KUBE-SERVICES", "FLANNEL-POSTRTG", "CNI-DN-0a1b2c")


def left_of(tmp_path: Path, rules: str) -> list[str]:
    (tmp_path / "rules").write_text(rules)
    said = run(tmp_path, f"create() {{ without_kubernetes <{tmp_path}/rules; }}\n")
    return said.splitlines()


def test_of_the_firewalls_rules_only_those_of_the_cluster_go(tmp_path: Path) -> None:
    expected = [line for line in RULES.splitlines() if not any(chain in line for chain in OURS)]
    assert left_of(tmp_path, RULES) == expected
    assert left_of(tmp_path, "\n".join(expected) + "\n") == expected, "a second time"


def test_cnis_chains_for_published_ports_go_with_the_last_that_used_them(tmp_path: Path) -> None:
    without_nerdctl = "".join(line for line in RULES.splitlines(keepends=True) if "CNI-DN-ffeedd" not in line)
    left = left_of(tmp_path, without_nerdctl)
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


def test_virtual_servers_that_were_there_and_those_that_kube_proxy_makes_none_of_stay(tmp_path: Path) -> None:
    (tmp_path / "ip_vs").write_text(IPVS)
    record(tmp_path, ipvs="TCP  C0000201:0050 wlc\n")
    body = 'ipvsadm() { echo "$*"; }\ncreate() { clear_ipvs; }\n'
    text = RESET.replace("/proc/net/ip_vs", f"{tmp_path}/ip_vs")
    said = bash(with_lib(text + body), home=tmp_path).stdout
    (tmp_path / "ip_vs").write_text("".join(IPVS.splitlines(keepends=True)[:3]))
    none = bash(with_lib(text + body), home=tmp_path)
    assert none.stdout + none.stderr == ""
    assert said.splitlines() == [
        "--delete-service --tcp-service 10.96.0.1:443",
        "--delete-service --udp-service 10.96.0.10:53",
        "--delete-service --sctp-service 10.96.0.11:53",
    ]


def test_a_folder_that_somebody_else_uses_too_loses_only_what_is_ours(tmp_path: Path) -> None:
    cni = tmp_path / "cni"
    (cni / "networks/cbr0").mkdir(parents=True)
    record(tmp_path, absent=f"{cni}\n")
    body = f"create() {{ remove_empty {cni}; }}\n"
    (cni / "networks/bridge").mkdir()
    (cni / "networks/bridge/10.4.0.2").touch()
    run(tmp_path, body)
    assert sorted(path.name for path in cni.rglob("*")) == ["10.4.0.2", "bridge", "networks"]
    (cni / "networks/bridge/10.4.0.2").unlink()
    run(tmp_path, body)
    assert not cni.exists()
    cni.mkdir()
    record(tmp_path, absent="/elsewhere\n")
    run(tmp_path, body)
    assert cni.exists(), "it was there before"


UFW = """
exec 5>&1
have() { true; }
# As ufw's own parser: after `delete` comes a rule's action, and `route` is none.
ufw() {
  echo "ufw $*" >&5
  case $* in '--force delete '[!r]* | '--force route delete '*) ;; *) return 1 ;; esac
}
create() { give_back_ufw; }
"""


def test_ufws_rules_go_by_the_words_that_ufw_knows(tmp_path: Path) -> None:
    record(tmp_path, ufw="allow 10250/tcp\nallow 30000:32767/tcp\nroute allow from 10.244.0.0/16\n")
    assert run(tmp_path, UFW).splitlines() == [
        "ufw --force delete allow 10250/tcp",
        "ufw --force delete allow 30000:32767/tcp",
        "ufw --force route delete allow from 10.244.0.0/16",
    ]


def test_a_host_whose_ufw_was_removed_since_is_given_back(tmp_path: Path) -> None:
    record(tmp_path, ufw="allow 10250/tcp\n")
    assert run(tmp_path, UFW.replace("true", "[[ $1 != ufw ]]")) == ""


# A systemctl that knows units by a file each: ENABLED ACTIVE.
SYSTEMCTL = """
units={units}
systemctl() {{
  local verb=$1 unit=${{*: -1}} enabled active
  [[ -e $units/$unit ]] || return 4
  read -r enabled active <$units/$unit
  case $verb in
    cat) ;;
    is-enabled) [[ $* == *--quiet* ]] || echo $enabled; [[ $enabled == enabled ]] ;;
    is-active) [[ $* == *--quiet* ]] || echo $active; [[ $active == active ]] ;;
    enable) echo enabled $active >$units/$unit ;;
    start) echo $enabled active >$units/$unit ;;
    disable) echo disabled inactive >$units/$unit ;;
  esac
}}
firewalld_take_back() {{ :; }}
firewalld_forget_zones() {{ :; }}
open_firewall() {{ :; }}
"""


def firewall(tmp_path: Path, setting: str) -> None:
    """The step `firewall`, with its functions for the rules themselves left out."""
    units = SYSTEMCTL.format(units=tmp_path / "units")
    script = code("steps/firewall.sh")
    bash(with_lib(RESET + script + units, FIREWALL=setting), home=tmp_path)


def units_of(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (tmp_path / "units").iterdir()}


@pytest.fixture
def firewalls(tmp_path: Path) -> Path:
    """A host with ufw, and with a firewalld that runs by hand."""
    (tmp_path / "units").mkdir()
    (tmp_path / "units/ufw").write_text("enabled active\n")
    (tmp_path / "units/firewalld").write_text("disabled active\n")
    record(tmp_path)
    return tmp_path


def give_back(tmp_path: Path) -> str:
    units = SYSTEMCTL.format(units=tmp_path / "units")
    return run(tmp_path, units + "have() { false; }\ncreate() { give_back_firewall; }\n")


def test_firewalls_that_were_stopped_run_again_as_they_did(firewalls: Path) -> None:
    before = units_of(firewalls)
    firewall(firewalls, "disable")
    assert set(units_of(firewalls).values()) == {"disabled inactive"}
    firewall(firewalls, "disable")
    give_back(firewalls)
    assert units_of(firewalls) == before


def test_a_firewall_that_was_disabled_runs_again_where_it_is_to_be_open(firewalls: Path) -> None:
    before = units_of(firewalls)
    firewall(firewalls, "disable")
    firewall(firewalls, "open")
    assert units_of(firewalls) == before


@pytest.mark.parametrize("setting", ["open", "leave"])
def test_a_firewall_that_its_owner_has_stopped_since_stays_stopped(firewalls: Path, setting: str) -> None:
    firewall(firewalls, setting)
    (firewalls / "units/ufw").write_text("disabled inactive\n")
    give_back(firewalls)
    assert units_of(firewalls)["ufw"] == "disabled inactive"


def test_a_stopped_firewall_that_was_removed_since_is_told_and_holds_nothing_up(firewalls: Path) -> None:
    firewall(firewalls, "disable")
    (firewalls / "units/ufw").unlink()
    assert "ufw, which was stopped for the cluster, is not installed any more" in give_back(firewalls)
    assert units_of(firewalls) == {"firewalld": "disabled active"}


def test_kernel_settings_come_back_after_the_one_that_changes_others(tmp_path: Path) -> None:
    """A host that no longer forwards takes redirects again, whatever it did before (inet_forward_change)."""
    recorded = ["net.ipv4.conf.all.accept_redirects 0", "net/ipv4/conf/eth0.100/forwarding 0"]
    record(tmp_path, sysctls="\n".join([*recorded, "net.ipv4.ip_forward 0", "kernel.panic 0", ""]))
    assert run(tmp_path, "create() { recorded_sysctls; }\n").splitlines() == [
        "/proc/sys/net/ipv4/ip_forward 0",
        "/proc/sys/net/ipv4/conf/all/accept_redirects 0",
        "/proc/sys/net/ipv4/conf/eth0.100/forwarding 0",
        "/proc/sys/kernel/panic 0",
    ]


@pytest.mark.parametrize(
    ("file", "left"),
    [
        ("", {"net/ipv4/ip_forward": "0", "net/ipv4/conf/eth0/forwarding": "0", "vm/swappiness": "60"}),
        (
            "# a VPN\n-net.ipv4.ip_forward = 1\nvm.swappiness=33\n",
            {"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0/forwarding": "1", "vm/swappiness": "60"},
        ),
        (
            "net/ipv4/ip_forward=1\nnet.ipv4.ip_forward=0\n",
            {"net/ipv4/ip_forward": "0", "net/ipv4/conf/eth0/forwarding": "0", "vm/swappiness": "60"},
        ),
    ],
)
def test_a_host_that_forwards_for_somebody_who_came_later_goes_on_forwarding(
    tmp_path: Path, file: str, left: dict[str, str]
) -> None:
    record(tmp_path, sysctls="net/ipv4/conf/eth0/forwarding 0\nnet.ipv4.ip_forward 0\nvm.swappiness 60\n")
    for path, value in {
        "net/ipv4/ip_forward": "1",
        "net/ipv4/conf/eth0/forwarding": "1",
        "vm/swappiness": "0",
    }.items():
        (tmp_path / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / path).write_text(f"{value}\n")
    (tmp_path / "own.conf").write_text(file)
    body = f"""
sysctl_files() {{ cat {tmp_path}/own.conf; }}
give_back_swap() {{ :; }}
unload_modules() {{ :; }}
create() {{ give_back_kernel; }}
"""
    script = redirected(RESET, tmp_path).replace("/proc/sys/", f"{tmp_path}/sys/")
    done = bash(with_lib(script + body), home=tmp_path)
    assert {path: (tmp_path / "sys" / path).read_text().strip() for path in left} == left
    told = f"{tmp_path}/sys/net/ipv4/ip_forward stays 1, as a file of the host's own has it by now"
    assert (told in done.stderr) == (left["net/ipv4/ip_forward"] == "1")


SWAP = """
swapon() {{
  echo "swapon $*"
  [[ -e ${{*: -1}} ]] && echo "${{*: -1}} file 1 0 -2" >>{swaps}
}}
systemctl() {{
  echo "systemctl $*"
  [[ $* == 'start dev-zram0.swap' ]] || return 0
  : >{zram}
  echo "{zram} partition 1 0 100" >>{swaps}
}}
timeout() {{ shift; "$@"; }}
systemd-escape() {{ local path=${{*: -1}}; echo "dev-${{path##*/}}.swap"; }}
create() {{ give_back_swap; }}
"""


def swap_given_back(tmp_path: Path, *, zram: bool) -> tuple[str, list[str]]:
    swaps, there, gone = tmp_path / "swaps", tmp_path / "swapfile", tmp_path / "sdb2"
    swaps.write_text("Filename Type Size Used Priority\n")
    there.touch()
    device = tmp_path / "zram0"
    names = [f"{there} file -2", f"{gone} partition -3", *([f"{device} partition 100"] if zram else [])]
    record(tmp_path, swaps="".join(f"{name}\n" for name in names))
    text = with_lib(RESET.replace("/proc/swaps", str(swaps)) + SWAP.format(swaps=swaps, zram=device))
    done = bash(text, home=tmp_path)
    return done.stdout + done.stderr, [line.split()[0] for line in swaps.read_text().splitlines()[1:]]


def test_swap_that_is_gone_is_told_and_the_rest_comes_back(tmp_path: Path) -> None:
    said, on = swap_given_back(tmp_path, zram=False)
    assert on == [str(tmp_path / "swapfile")]
    assert f"{tmp_path}/sdb2, which was swapped to before, can't be any more: left as it is" in said


def test_swap_in_memory_is_made_anew_by_its_unit(tmp_path: Path) -> None:
    said, on = swap_given_back(tmp_path, zram=True)
    assert on == [str(tmp_path / "swapfile"), str(tmp_path / "zram0")]
    assert "systemctl start dev-zram0.swap" in said


DEBS = """
dpkg-query() {{
  case $* in
    *Conffiles*) cat {folder}/conffiles-${{*: -1}} 2>/dev/null || : ;;
    *) echo 'ii ' ;;
  esac
}}
dpkg() {{ :; }}
ls() {{ :; }}
systemctl() {{ :; }}
apt-mark() {{ :; }}
apt-cache() {{ cat {folder}/needs; }}
apt-get() {{
  case $* in
    *' -s '*)
      cat {folder}/plan
      printf 'Purg %s [1]\\n' ${{*:5}}
      ;;
    *) echo "$*" >>{folder}/done ;;
  esac
}}
find() {{ :; }}
create() {{
  choose_debs
  give_back_debs
}}
"""


FOLDERS = """
have() {{ true; }}
find() {{ :; }}
restore_file_if_recorded() {{ :; }}
tar() {{ :; }}
systemctl() {{ :; }}
create() {{ {what}; }}
"""


def folders(tmp_path: Path, what: str, **recorded: str) -> str:
    """Runs what gives folders back, in a root of the test's own."""
    record(tmp_path, copied="", **recorded)
    done = bash(with_lib(redirected(RESET, tmp_path) + FOLDERS.format(what=what)), home=tmp_path)
    return done.stderr


@pytest.mark.parametrize(("unit", "left"), [("disabled inactive", False), ("not-found inactive", True)])
def test_what_a_containerd_has_made_goes_unless_it_is_another_than_ours(
    tmp_path: Path, unit: str, left: bool
) -> None:
    folder = tmp_path / "var/lib/containerd"
    folder.mkdir(parents=True)
    said = folders(tmp_path, "give_back_files", absent=f"{folder}\n", units=f"containerd {unit}\n")
    assert folder.exists() == left
    assert ("a containerd that is none of ours is here" in said) == left


def test_of_the_hosts_links_and_network_namespaces_those_of_others_stay(tmp_path: Path) -> None:
    links, spaces = tmp_path / "net", tmp_path / "netns"
    for name in ("kube-ipvs0", "cni0", "eth0", "podman0"):
        (links / name).mkdir(parents=True)
    spaces.mkdir()
    for name in ("cni-left", "cni-podman"):
        (spaces / name).touch()
    # Of podman's there is a process; a cni0 that was there before is a person's own.
    record(tmp_path, links="cni0\neth0\npodman0\n")
    body = f"""
ip() {{ echo "$*"; }}
umount() {{ :; }}
readlink() {{ echo "net:[{(spaces / "cni-podman").stat().st_ino}]"; }}
create() {{ clear_links; }}
"""
    script = RESET.replace("/sys/class/net", str(links)).replace("/run/netns", str(spaces))
    assert bash(with_lib(script + body), home=tmp_path).stdout.splitlines() == ["link delete kube-ipvs0"]
    assert [path.name for path in spaces.iterdir()] == ["cni-podman"]


def test_mounts_of_pods_go_and_those_of_others_containers_stay(tmp_path: Path) -> None:
    (tmp_path / "node.started").touch()
    ours = (
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/0a1b/rootfs",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/9cea/shm",
        "/var/lib/kubelet/pods/7/volumes/token",
    )
    mine = (
        "/run/containerd/io.containerd.runtime.v2.task/default/mine/rootfs",
        "/run/docker/mine/shm",
        "/var/lib/kubelet-of-mine",
    )
    (tmp_path / "mounts").write_text("".join(f"tmpfs {path} tmpfs rw 0 0\n" for path in (*mine, *ours)))
    others = ("remove_pods", "clear_ipvs", "clear_iptables", "clear_ipsets", "clear_links", "clear_folders")
    stubs = "".join(f"{name}() {{ :; }}\n" for name in (*others, "systemctl"))
    body = f'{stubs}umount() {{ echo "$1"; }}\ncreate() {{ reset_node; }}\n'
    script = RESET.replace("/proc/mounts", str(tmp_path / "mounts"))
    said = bash(with_lib(script + body), home=tmp_path).stdout.splitlines()
    assert sorted(line for line in said if line.startswith("/")) == sorted(ours)


def test_etcds_data_go_also_where_the_folder_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "var/lib/etcd/member/snap").mkdir(parents=True)
    (tmp_path / "var/lib/etcd/mine").touch()
    folders(tmp_path, "clear_folders", absent="", present=f"{tmp_path}/var/lib/etcd\n")
    assert [path.name for path in (tmp_path / "var/lib/etcd").iterdir()] == ["mine"]


def test_what_a_reset_that_ended_early_has_left_goes_also_where_the_folders_were_there_before(
    tmp_path: Path,
) -> None:
    ours = (
        "etc/kubernetes/pki/ca.key",
        "etc/kubernetes/manifests/etcd.yaml",
        "etc/kubernetes/admin.conf",
        "var/lib/kubelet/pki/kubelet.key",
        "var/lib/kubelet/config.yaml",
        "var/lib/kubelet/kubeadm-flags.env",
    )
    mine = ("etc/kubernetes/mine.yaml", "var/lib/kubelet/mine")
    for name in (*ours, *mine):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folders(tmp_path, "clear_folders", absent="")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left & {*ours, *mine} == set(mine)
    assert (tmp_path / "etc/kubernetes/manifests").is_dir()


def test_firewalld_is_asked_once_for_what_was_added(tmp_path: Path) -> None:
    record(tmp_path, firewalld="runtime public Port 10250 tcp\npermanent trusted Interface cni0\n")
    body = """
unit_active() { true; }
firewalld_zone() { echo "$*" >&2; if [[ $3 == query* ]]; then echo "b true"; fi; }
firewalld_tidy() { echo tidied >&2; }
create() { firewalld_take_back; }
"""
    assert run(tmp_path, body).splitlines() == [
        "runtime public queryPort ss 10250 tcp",
        "runtime public removePort ss 10250 tcp",
        "permanent trusted queryInterface s cni0",
        "permanent trusted removeInterface s cni0",
        "tidied",
    ]
    assert run(tmp_path, body) == ""


def test_kubeadms_reset_is_told_which_runtime(tmp_path: Path) -> None:
    body = """
have() { true; }
unit_active() { true; }
timeout() { echo "$*" >&3; }
create() { reset_kubeadm 3>&1; }
"""
    assert "--cri-socket unix:///run/containerd/containerd.sock" in run(tmp_path, body)


@pytest.fixture
def debs(tmp_path: Path) -> Path:
    record(
        tmp_path,
        packages_added="kubelet\ncontainerd\nnftables\nlibnftables1\nipset\n",
        holds="",
        units="",
        packages="",
    )
    for name in ("plan", "needs"):
        (tmp_path / name).write_text("")
    conf = tmp_path / "nftables.conf"
    conf.write_text("as packaged\n")
    (tmp_path / "conffiles-nftables").write_text(f" {conf} 3e9dd59cb2e4d3d1a8dd2a9b4ac9e80c\n")
    (tmp_path / "conffiles-containerd").write_text(f" {conf} 0123456789abcdef0123456789abcdef\n")
    return tmp_path


def removed(tmp_path: Path, status: int = 0) -> tuple[list[str], str]:
    said = run(tmp_path, DEBS.format(folder=tmp_path), status=status)
    done = tmp_path / "done"
    words = done.read_text().split() if done.exists() else []
    return words[words.index("Dpkg::Use-Pty=0") + 1 :] if words else [], said


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_packages_that_came_with_the_cluster_go(debs: Path) -> None:
    conf = debs / "nftables.conf"
    (debs / "conffiles-nftables").write_text(f" {conf} {md5(conf)}\n /gone 0123\n /new newconffile\n")
    assert removed(debs)[0] == ["kubelet", "containerd", "nftables", "libnftables1", "ipset"]


def test_a_package_whose_configuration_somebody_has_written_since_stays_with_what_it_needs(
    debs: Path,
) -> None:
    (debs / "needs").write_text(
        "nftables\n  Depends: libnftables1\n  Depends: <virtual>\nlibnftables1\nlibc6\n"
    )
    packages, said = removed(debs)
    assert packages == ["kubelet", "containerd", "ipset"]
    assert f"nftables stays: somebody has edited its {debs}/nftables.conf since" in said
    assert "libnftables1 stays: nftables needs it" in said


def test_a_package_that_stays_and_needs_nothing_of_ours_holds_nothing_up(debs: Path) -> None:
    (debs / "needs").write_text("nftables\nlibc6\n")
    assert removed(debs)[0] == ["kubelet", "containerd", "libnftables1", "ipset"]


def test_what_somebody_elses_package_needs_stays(debs: Path) -> None:
    conf = debs / "nftables.conf"
    (debs / "conffiles-nftables").write_text(f" {conf} {md5(conf)}\n")
    (debs / "needs").write_text("shorewall\nipset\n")
    # apt would take it along as long as ipset goes.
    (debs / "plan").write_text("Purg shorewall [1]\n")
    script = DEBS.replace("cat {folder}/plan", "[[ $* != *ipset* ]] || cat {folder}/plan")
    said = run(debs, script.format(folder=debs))
    assert "ipset stays: shorewall needs it" in said
    assert "ipset" not in (debs / "done").read_text()


def test_a_node_is_not_taken_apart_where_a_package_of_somebody_else_is_on_our_container_runtime(
    debs: Path,
) -> None:
    (debs / "conffiles-nftables").write_text("")
    (debs / "needs").write_text("docker.io\ncontainerd\n")
    (debs / "plan").write_text("Purg docker.io [1]\n")
    body = f"""
family() {{ echo deb; }}
refuse_others_containers() {{ :; }}
reset_node() {{ touch {debs}/done; }}
create() {{ delete; }}
"""
    text = code("steps/claim.sh") + DEBS.format(folder=debs) + body
    said = run(debs, text, status=1)
    assert "docker.io: not ours, and in need of containerd, which we installed" in said
    assert "nothing was changed here" in said
    assert not (debs / "done").exists()


def test_containers_of_others_on_a_containerd_of_ours_keep_the_host_from_being_given_back(
    tmp_path: Path,
) -> None:
    record(tmp_path, packages_added="containerd\n")
    body = """
unit_active() { true; }
have() { true; }
timeout() { shift; "$@"; }
ctr() {
  case $* in
    'namespaces ls -q') printf '%s\\n' k8s.io moby empty ;;
    '-n moby '*) echo 0a1b ;;
    '-n k8s.io'*) echo pod ;;
  esac
}
create() { refuse_others_containers; }
"""
    said = run(tmp_path, body, "steps/claim.sh", status=1)
    assert "in the namespaces moby" in said
    record(tmp_path, packages_added="kubelet\n")
    assert run(tmp_path, body, "steps/claim.sh") == ""


def test_containerds_own_mirrors_stay_and_ours_go_from_one_that_was_there_before(tmp_path: Path) -> None:
    certs = tmp_path / "certs.d"
    for registry, text in (("docker.io", "# kubeadm-ipvs\n"), ("example.com", "# mine\n")):
        (certs / registry).mkdir(parents=True)
        (certs / registry / "hosts.toml").write_text(text)
    record(
        tmp_path,
        units="containerd disabled inactive\nkubelet not-found inactive\nufw  inactive\n",
        image_list="",
    )
    body = """
unit_active() { false; }
restore_file() { :; }
systemctl() { echo "$*"; }
create() { recorded_unit kubelet || recorded_unit ufw || give_back_runtime; }
"""
    text = RESET.replace("/etc/containerd/certs.d", str(certs))
    said = bash(with_lib(text + body), home=tmp_path).stdout
    assert said.splitlines() == ["stop containerd", "disable --quiet containerd"]
    assert [path.name for path in certs.iterdir()] == ["example.com"]


@pytest.mark.parametrize(
    ("namespaces", "removed"),
    [("default\n", True), ("default\nk8s.io\n", False), (None, False)],
)
def test_a_containerd_that_stays_keeps_the_images_and_namespaces_that_it_had(
    tmp_path: Path, namespaces: str | None, removed: bool
) -> None:
    parts = {} if namespaces is None else {"containerd_namespaces": namespaces}
    record(tmp_path, image_list="mine\n", **parts)
    body = """
ctr() {
  case $* in
    'namespaces ls -q') printf '%s\\n' default k8s.io ;;
    '-n k8s.io images ls -q') printf '%s\\n' mine pause nginx ;;
    *) echo "$*" >&3 ;;
  esac
}
create() { give_back_images 3>&1; }
"""
    done = run(tmp_path, body).splitlines()
    assert done == ["-n k8s.io images rm --sync pause nginx"] + ["namespaces rm k8s.io"] * removed


@pytest.mark.parametrize("node", [True, False])
def test_a_node_whose_record_somebody_has_deleted_stays_and_is_told(tmp_path: Path, node: bool) -> None:
    (tmp_path / "etc/kubernetes").mkdir(parents=True)
    if node:
        (tmp_path / "etc/kubernetes/kubelet.conf").touch()
    home = tmp_path / "home"
    home.mkdir()
    script = redirected(RESET + code("steps/claim.sh"), tmp_path)
    deleted = 'create() { rm -r "$HOME_DIR"; delete; }\n'
    done = bash(with_lib(script + deleted), home=home, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing of ours is here any more" in done.stderr
    assert ("a node is here, and stays" in done.stderr) == node
    assert (tmp_path / "etc/kubernetes/kubelet.conf").exists() == node
