"""What single functions of the scripts make of what a host's tools print, with the tools replaced."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fast.shell import bash, code, redirected, with_lib

DATA = Path(__file__).parent / "data"
# As a node in that mode prints them, cut down to a rule of each kind.
IPTABLES = (DATA / "iptables.txt").read_text()
NFTABLES = (DATA / "nftables.txt").read_text()
INIT = code("lib/kubeadm.sh") + code("steps/init.sh")
JOIN = code("lib/kubeadm.sh") + code("steps/join.sh")
NODE = code("lib/kubectl.sh") + code("steps/node.sh")
RESET = code("lib/firewalld.sh") + code("lib/reset.sh")
DEREGISTER = code("lib/kubectl.sh") + code("steps/deregister.sh")


def part(script: str, body: str, tmp_path: Path, **values: str) -> str:
    """What `create` of a test's own prints, with a script's functions and without its steps."""
    return bash(with_lib(code(script) + body, **values), home=tmp_path).stdout


MINE, OLD = "dev 4fd1", "dev"


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (None, ""),
        (MINE, ""),
        (OLD, ""),
        ("dev 77ab", "another state than this one of the same name"),
        ("prod 4fd1", "the host belongs to the stack prod"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "update", "delete"])
def test_a_host_that_is_anothers_is_refused_and_left_alone_by_whatever_would_delete_on_it(
    tmp_path: Path, owner: str | None, said: str, verb: str
) -> None:
    if owner:
        (tmp_path / "owner").write_text(f"{owner}\n")
    text = with_lib("create() { echo done; }\ndelete() { echo done; }\n", OWNER=f"'{MINE}'")
    done = bash(text, verb, "claim", "node1", home=tmp_path, check=False)
    assert done.returncode == (1 if said and verb != "delete" else 0), done.stderr
    assert said in done.stderr
    assert done.stdout == ("" if said else "done\n")


@pytest.mark.parametrize(
    ("name", "role", "started", "said"),
    [
        ("node1", "worker", True, ""),
        (None, None, True, ""),
        ("node2", "worker", False, "the host is node2 of this same stack"),
        (
            "node2",
            "worker",
            False,
            "take node2 out of the configuration in one change, and add node1 in the next",
        ),
        ("node2", "control-plane", True, "the host is node2 of this same stack"),
        ("node2", "control-plane", True, "give node2 its name back, or `pulumi destroy` first"),
        ("node1", "control-plane", True, "can't become its worker"),
        ("node1", "control-plane", False, ""),
    ],
)
def test_a_host_that_is_another_of_the_same_stack_is_refused(
    tmp_path: Path, name: str | None, role: str | None, started: bool, said: str
) -> None:
    (tmp_path / "record").mkdir()
    for file, text in (("name", name), ("role", role), ("node.started", "" if started else None)):
        if text is not None:
            (tmp_path / file).write_text(f"{text}\n")
    body = "create() { refuse_other_uses; }\n"
    text = with_lib(code("steps/claim.sh") + body, ROLE="worker")
    done = bash(text, home=tmp_path, check=False)
    assert done.returncode == (1 if said else 0), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    "path",
    ["kubernetes/admin.conf", "kubernetes/pki/ca.key", "kubernetes/manifests/x.yaml", "etcd/member/snap", ""],
)
def test_a_host_with_another_clusters_files_or_authority_is_refused(tmp_path: Path, path: str) -> None:
    folders = [tmp_path / name for name in ("kubernetes", "etcd", "kubelet")]
    for folder in [*folders, tmp_path / "kubernetes/manifests", (tmp_path / path).parent]:
        folder.mkdir(exist_ok=True, parents=True)
    if path:
        (tmp_path / path).touch()
    body = f"create() {{ refuse_others_nodes {' '.join(map(str, folders))}; }}\n"
    done = bash(with_lib(code("steps/claim.sh") + body), home=tmp_path, check=False)
    assert ("another cluster, or prepared for one" in done.stderr) == bool(path)
    assert done.returncode == (1 if path else 0)
    assert path or done.stderr == ""


CONTAINERD = """
version = 2
root = "/var/lib/containerd"
imports = []
disabled_plugins = ["cri"]
[proxy_plugins]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
"""


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("", []),
        ('#root = "/data"\n', []),
        ("imports = ['/etc/containerd/conf.d/*.toml']\n", []),
        ('  root = "/data/containerd"\n', ['root = "/data/containerd"']),
        ('imports = ["/etc/mine.toml"]\n', ['imports = ["/etc/mine.toml"]']),
        ("[proxy_plugins.stargz]\n", ["[proxy_plugins.stargz]"]),
        (
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]\n",
            ["[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]"],
        ),
    ],
)
def test_what_containerd_does_beyond_its_defaults_is_found_before_its_configuration_is_replaced(
    tmp_path: Path, more: str, found: list[str]
) -> None:
    (tmp_path / "config.toml").write_text(CONTAINERD + more)
    body = f"create() {{ own_containerd_settings {tmp_path}; }}\n"
    assert part("steps/claim.sh", body, tmp_path).splitlines() == found


def claim(tmp_path: Path, verb: str) -> None:
    """Runs the claim's create or delete with a host that is fit, and nothing to be given back."""
    looks = (
        "refuse_other_uses",
        "look_at_system",
        "look_at_packages",
        "look_at_containers",
        "look_at_ports",
        "choose_packages",
        "reset_node",
    )
    gives = (f"give_back_{what}" for what in ("firewall", "runtime", "packages", "kernel", "files"))
    fit = "".join(f"{name}() {{ :; }}\n" for name in (*looks, *gives))
    text = with_lib(code("steps/claim.sh") + fit, ROLE="worker", OWNER="dev").replace('"$1"', verb)
    text = text.replace("${KUBEADM_IPVS_LOCK:-/run/kubeadm-ipvs.lock}", str(tmp_path / "lock"))
    bash(text, home=tmp_path / "home")


def test_what_goes_if_it_was_not_there_before_is_looked_for_before_the_first_change(tmp_path: Path) -> None:
    recorded = set(part("steps/claim.sh", 'create() { printf "%s\\n" "${TOUCHED[@]}"; }\n', tmp_path).split())
    reset = code("lib/reset.sh")
    loops = re.findall(r"for path in ((?:/|\\\n).*?); do\n(.*?)\n  done", reset, re.DOTALL)
    asked = [
        path for paths, body in loops if "RECORD/absent" in body for path in paths.split() if path != "\\"
    ]
    # No package takes these along everywhere.
    assert {"/etc/containerd", "/etc/crictl.yaml"} <= set(asked)
    assert set(asked) | set(re.findall(r"restore_file(?:_if_recorded)? (/\S+)", reset)) <= recorded


ONE_CPU = "one CPU: kubeadm needs two on a control plane; add NumCPU to preflight.ignore to accept one"
LITTLE_MEMORY = (
    "1699 MiB of memory: kubeadm needs 1700 on a control plane; add Mem to preflight.ignore to accept less"
)


@pytest.mark.parametrize(
    ("role", "cpus", "memory", "lacking", "found"),
    [
        ("control-plane", 1, 2000, "", [ONE_CPU]),
        ("control-plane", 2, 1699, "", [LITTLE_MEMORY]),
        ("control-plane", 2, 1700, "", []),
        ("control-plane", 2, 800, "", ["800 MiB of memory: at least 1 GiB is needed"]),
        ("worker", 1, 1000, "", []),
        ("worker", 1, 1000, "tar", ["tar is not here, by which what was before is recorded; install it"]),
    ],
)
def test_a_host_that_is_too_small_or_lacks_a_tool_is_found_before_anything_is_changed(
    tmp_path: Path, role: str, cpus: int, memory: int, lacking: str, found: list[str]
) -> None:
    assert found_in_system(tmp_path, role, cpus, memory, lacking) == found


@pytest.mark.parametrize(
    ("ignored", "memory", "found"),
    [
        ("", 1699, [ONE_CPU, LITTLE_MEMORY]),
        ("Swap", 1699, [ONE_CPU, LITTLE_MEMORY]),
        ("NumCPU", 1699, [LITTLE_MEMORY]),
        ("Swap\nnumcpu", 1699, [LITTLE_MEMORY]),
        ("MEM", 1699, [ONE_CPU]),
        ("NumCPU\nMem", 1699, []),
        ("NumCPU\nMem", 800, ["800 MiB of memory: at least 1 GiB is needed"]),
    ],
)
def test_a_small_control_plane_is_accepted_where_kubeadms_check_is_ignored(
    tmp_path: Path, ignored: str, memory: int, found: list[str]
) -> None:
    assert found_in_system(tmp_path, "control-plane", 1, memory, ignored=ignored) == found


def found_in_system(
    tmp_path: Path, role: str, cpus: int, memory: int, lacking: str = "", ignored: str = ""
) -> list[str]:
    """The claim's findings on a host of that size."""
    body = f"""
family() {{ echo deb; }}
stat() {{ echo cgroup2fs; }}
uname() {{ echo 6.1.0; }}
have() {{ [[ $1 != {lacking or "nothing"} ]]; }}
modinfo() {{ :; }}
awk() {{ echo {memory}; }}
ip() {{ echo '2: eth1 inet 10.0.0.1/24'; }}
nproc() {{ echo {cpus}; }}
create() {{ look_at_system; printf '%s\\n' "${{problems[@]}}"; }}
"""
    values = {"ROLE": role, "MODE": "ipvs", "SCHEDULER": "rr", "ADDRESS": "10.0.0.1", "problems": "()"}
    said = part("steps/claim.sh", body, tmp_path, **values, IGNORED_CHECKS=shlex.quote(ignored))
    return [line for line in said.splitlines() if line]


def test_another_network_for_pods_and_a_containerd_with_settings_are_found_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    network, containerd = tmp_path / "net.d", tmp_path / "containerd"
    for folder in (network, containerd):
        folder.mkdir()
    (network / "10-calico.conflist").touch()
    (network / "README").touch()
    (containerd / "config.toml").write_text('disabled_plugins = ["cri"]\nroot = "/data/containerd"\n')
    script = code("steps/claim.sh").replace("/etc/cni/net.d", str(network))
    script = script.replace(
        "own_containerd_settings /etc/containerd", f"own_containerd_settings {containerd}"
    )
    body = """
unit_active() { true; }
have() { true; }
timeout() { shift; "$@"; }
ctr() { [[ $* != '-n k8s.io containers ls -q' ]] || echo mine; }
create() { look_at_containers; printf '%s\\n' "${problems[@]}"; }
"""
    said = bash(with_lib(script + body, problems="()"), home=tmp_path).stdout.splitlines()
    assert [re.split("[;,]", line)[0] for line in said] == [
        f"{network}/10-calico.conflist: another network for pods is configured",
        'containerd is configured for more than this cluster: root = "/data/containerd"',
        "containerd has containers in Kubernetes' own namespace",
    ]


def packages(tmp_path: Path, *, plugins: bool) -> str:
    """The step's script on a host with CNI's plugins in their place, or without."""
    plugin = tmp_path / "loopback"
    if plugins:
        plugin.touch(mode=0o755)
    return code("steps/packages.sh").replace("/opt/cni/bin/loopback", str(plugin))


@pytest.mark.parametrize(
    ("lacking", "version", "said"),
    [
        ("", "v1.37.2", "packages are the host's own business; kubeadm is at 1.37.2"),
        ("", "v1.36.0", "kubeadm is v1.36.0, not v1.37.2"),
        ("crictl", "v1.37.2", "crictl isn't here"),
        ("loopback", "v1.37.2", "the CNI plugins aren't in"),
    ],
)
def test_packages_of_the_hosts_own_are_looked_at_and_left(
    tmp_path: Path, lacking: str, version: str, said: str
) -> None:
    (tmp_path / "record").mkdir()
    body = f"""
kubeadm() {{ echo {version}; }}
have() {{ [[ $1 != {lacking or "nothing"} ]]; }}
install_deb() {{ echo changed; }}
install_rpm() {{ echo changed; }}
systemctl() {{ echo changed; }}
"""
    script = packages(tmp_path, plugins=lacking != "loopback")
    done = bash(with_lib(script + body, MANAGE="false", VERSION="1.37.2"), home=tmp_path, check=False)
    assert said in done.stderr
    assert ("FAILED" in done.stderr) == (said[0] != "p")
    assert done.stdout == ""


@pytest.mark.parametrize("sixth", [True, False])
def test_a_port_that_is_taken_is_found_also_where_there_is_no_ipv6(tmp_path: Path, sixth: bool) -> None:
    # As the kernel shows them: 30080 listens, 10250 only has a connection.
    (tmp_path / "sockets").write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 00000000:7580 00000000:0000 0A\n"
        "   1: 0100007F:280A 0100007F:9C40 01\n"
    )
    body = f"""
cat() {{ command cat {tmp_path}/sockets; {str(sixth).lower()}; }}
ss() {{ echo 'LISTEN 0 511 *:30080 *:* users:(("nginx",pid=1,fd=6))'; }}
create() {{ look_at_ports; printf '%s\\n' "${{problems[@]}}"; }}
"""
    for ignored, found in {"''": "port 30080/tcp is taken by nginx\n", "port-30080": "\n"}.items():
        values = {"ROLE": "worker", "NODE_PORT": "30080", "problems": "()", "IGNORED_CHECKS": ignored}
        assert part("steps/claim.sh", body, tmp_path, **values) == found


ARMORED = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("echo 'no route' >&2; return 7", "can't be had from"),
        ("echo '<html>'", "something else than an armored key"),
    ],
)
def test_a_signing_key_that_cannot_be_had_fails_and_leaves_the_former_one(
    tmp_path: Path, answer: str, said: str
) -> None:
    file = tmp_path / "key.asc"
    for answers, status in ((f"echo '{ARMORED}'", 0), (answer, 1)):
        body = f"""
have() {{ [[ $1 == curl ]]; }}
curl() {{ {answers}; }}
create() {{ put_key {file} https://packages.example.com/Release.key; }}
"""
        text = with_lib(code("steps/packages.sh") + body, KEY="", KEY_URL="")
        done = bash(text, home=tmp_path, check=False)
        assert done.returncode == status, done.stderr
        assert file.read_text() == f"{ARMORED}\n"
    assert said in done.stderr and "https://packages.example.com/Release.key" in done.stderr
    assert done.stderr.count("FAILED") == 1


@pytest.mark.parametrize(("there", "asked"), [(False, ["kubernetes-cni"]), (True, [])])
def test_cni_plugins_are_installed_where_a_package_that_passes_for_them_has_put_none_there(
    tmp_path: Path, there: bool, asked: list[str]
) -> None:
    (tmp_path / "record").mkdir()
    body = """
rpm() { [[ $* == *--quiet* ]] || echo 1.37.2; }
have() { :; }
put_key() { :; }
put_file() { cat >/dev/null; }
rpm_keys() { echo gpg-pubkey-1; }
grep() { :; }
install_rpms() { printf '%s\\n' "$@"; }
create() { install_rpm; }
"""
    script = packages(tmp_path, plugins=there)
    text = with_lib(script + body, VERSION="1.37.2", REVISION="'*'", REPOSITORY_RPM="http://x/", KEY="key")
    assert bash(text, home=tmp_path).stdout.split() == asked


def test_a_claim_that_was_cut_off_after_its_record_gets_its_owner_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "home/record").mkdir(parents=True)
    claim(tmp_path, "create")
    assert (tmp_path / "home/owner").read_text() == "dev\n"
    assert (tmp_path / "home/name").read_text() == "node1\n"


def test_what_a_removal_that_was_cut_off_has_left_goes_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "home.given-back/record").mkdir(parents=True)
    claim(tmp_path, "delete")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    (tmp_path / "home/record").mkdir(parents=True)
    claim(tmp_path, "delete")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_iptables_rules_are_read_as_services_node_ports_and_endpoints(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(IPTABLES)
    body = f"iptables-save() {{ cat {tmp_path}/rules; }}\ncreate() {{ seen; }}\n"
    assert part("steps/verification.sh", body, tmp_path, MODE="iptables").splitlines() == [
        "node-port TCP 30080",
        "endpoint TCP 10.244.1.2:80",
        "service UDP 10.96.0.10:53",
    ]


def test_nftables_maps_are_read_as_services_node_ports_and_endpoints(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(NFTABLES)
    body = f"nft() {{ cat {tmp_path}/rules; }}\ncreate() {{ seen; }}\n"
    assert part("steps/verification.sh", body, tmp_path, MODE="nftables").splitlines() == [
        "service UDP 10.96.0.10:53",
        "service TCP 10.96.0.1:443",
        "node-port TCP 30080",
        "endpoint TCP 10.244.1.2:80",
        "endpoint TCP 10.244.2.2:80",
        "endpoint TCP 192.168.166.101:6443",
    ]


def test_only_the_former_modes_chains_go_with_the_rules_that_lead_to_them(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(IPTABLES)
    body = f"""
iptables-save() {{ if [[ $2 == nat ]]; then cat {tmp_path}/rules; fi; }}
ip6tables-save() {{ :; }}
iptables-restore() {{ echo "restore $*"; cat; }}
clear_ipvs() {{ :; }}
create() {{ clear_other_modes; }}
"""
    assert part("steps/proxy.sh", body, tmp_path, MODE="ipvs").splitlines() == [
        "restore --noflush --wait 30",
        "*nat",
        ":KUBE-EXT-TEOBKOQ2TXYEFV6A - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-SEP-XQYWTQ4XQHX2AXBK - [0:0]",
        ":KUBE-SVC-TEOBKOQ2TXYEFV6A - [0:0]",
        *(
            line.replace("-A ", "-D ")
            for line in IPTABLES.splitlines()
            if line.startswith("-A KUBE-SERVICES ")
        ),
        "-X KUBE-EXT-TEOBKOQ2TXYEFV6A",
        "-X KUBE-NODEPORTS",
        "-X KUBE-SEP-XQYWTQ4XQHX2AXBK",
        "-X KUBE-SVC-TEOBKOQ2TXYEFV6A",
        "COMMIT",
    ]


BEFORE = {"label": "disk rack", "taint": "flaky:NoExecute gone:NoSchedule"}
PRESENT = "flaky:NoExecute node.kubernetes.io/not-ready:NoSchedule "


@pytest.mark.parametrize(
    ("verb", "wanted", "done"),
    [
        ("label", "disk=ssd", "label --overwrite node node1 disk=ssd rack-"),
        (
            "taint",
            "new=x:NoSchedule",
            "taint --overwrite node node1 new=x:NoSchedule flaky:NoExecute-",
        ),
        ("taint", "", "taint --overwrite node node1 flaky:NoExecute-"),
    ],
)
def test_labels_and_taints_that_are_no_longer_wanted_go_and_others_stay(
    tmp_path: Path, verb: str, wanted: str, done: str
) -> None:
    # What kubectl is asked to do goes to /dev/null in the script: here it is looked at.
    script = NODE.replace(">/dev/null", "")
    body = f"""
kubectl() {{ printf '%s\\n' "$*"; }}
create() {{ set_ours {verb} '{wanted}' '{BEFORE[verb]}' '{PRESENT}'; }}
"""
    said = bash(with_lib(script + body, NODE="node1"), home=tmp_path).stdout
    assert done in said.splitlines()


def test_a_mirror_that_is_taken_out_of_the_settings_goes_and_the_users_stay(tmp_path: Path) -> None:
    certs = tmp_path / "certs.d"
    body = f"CERTS={certs}\ncreate() {{ write_mirrors; }}\n"
    script = code("steps/runtime.sh").replace("readonly CERTS", "CERTS")

    def write(mirrors: str) -> None:
        bash(with_lib(script + body, MIRRORS=f"$'{mirrors}'"), home=tmp_path)

    theirs = certs / "example.com" / "hosts.toml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("# mine\n")
    write(r"docker.io http://a:5000\nghcr.io http://b:5000 http://c:5000")
    assert 'host."http://c:5000"' in (certs / "ghcr.io/hosts.toml").read_text()
    write("docker.io http://a:5000")
    assert sorted(path.parent.name for path in certs.glob("*/hosts.toml")) == ["docker.io", "example.com"]
    assert not (certs / "ghcr.io").exists()


def what_is_lacking(tmp_path: Path, lines: list[str], services: str) -> str:
    """What the look says of a cluster of which kubectl tells these lines."""
    told = " ".join(f"'{line}'" for line in lines)
    body = f"""
kubectl() {{ printf '%s\\n' {told}; }}
create() {{ local lacking= seen= dead_looked=$SECONDS; all_ready || :; printf '%s' "$lacking"; }}
"""
    return part("steps/expected_services.sh", body, tmp_path, SERVICES=services)


def runtime(tmp_path: Path, config: Path, more: str = "") -> list[str]:
    """The calls of systemctl by a run of the step on a host where containerd runs."""
    script = code("steps/runtime.sh").replace("/etc/containerd/config.toml", str(config))
    calls = tmp_path / "calls"
    calls.write_text("")
    tools = (
        f'systemctl() {{ echo "$*" >>{calls}; }}\n'
        "ctr() { :; }\ncrictl() { :; }\ncontainerd() { echo containerd x v1.7.24; }\n"
        "write_mirrors() { :; }\nput_crictl_config() { :; }\nforget_pods_at_boot() { :; }\n"
    )
    (tmp_path / "record").mkdir(exist_ok=True)
    bash(with_lib(script + tools + more, SANDBOX_IMAGE="pause", IMAGES=""), home=tmp_path, check=not more)
    return calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("version", "of_images", "of_pods", "sandbox"),
    [
        (
            "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6",
            *["io.containerd.grpc.v1.cri"] * 2,
            "sandbox_image",
        ),
        (
            "containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "pinned_images.sandbox",
        ),
    ],
)
def test_containerd_is_told_the_same_in_the_form_of_each_of_its_versions(
    tmp_path: Path, version: str, of_images: str, of_pods: str, sandbox: str
) -> None:
    """containerd's docs/cri/config.md has both forms."""
    body = f"containerd() {{ echo '{version}'; }}\ncreate() {{ runtime_config; }}\n"
    said = part("steps/runtime.sh", body, tmp_path, SANDBOX_IMAGE="registry.example.com/pause:3.10")
    plugins = tomllib.loads(said)["plugins"]
    image = plugins[of_images]
    for name in sandbox.split("."):
        image = image[name]
    assert image == "registry.example.com/pause:3.10"
    assert plugins[of_images]["registry"]["config_path"] == "/etc/containerd/certs.d"
    assert plugins[of_pods]["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    network = plugins[of_pods]["cni"]
    assert [network["conf_dir"], *network.get("bin_dirs", [network.get("bin_dir")])] == [
        "/etc/cni/net.d",
        "/opt/cni/bin",
    ]


def test_another_containerd_is_refused_with_the_versions_that_will_do(tmp_path: Path) -> None:
    body = "containerd() { echo 'containerd x v3.0.0'; }\ncreate() { runtime_config; }\n"
    done = bash(with_lib(code("steps/runtime.sh") + body), home=tmp_path, check=False)
    assert (done.returncode, "next: install containerd 1.7 or 2" in done.stderr) == (1, True)


def test_containerd_is_restarted_by_the_run_after_one_that_was_killed_before_it(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    killed = "systemctl() { if [[ $1 == restart ]]; then kill -KILL $$; fi; }\n"
    runtime(tmp_path, config, killed)
    assert config.exists()
    assert "restart containerd" in runtime(tmp_path, config)
    assert "restart containerd" not in runtime(tmp_path, config), "nothing has changed since"


def test_a_repair_restarts_containerd_once(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    runtime(tmp_path, config)
    repair = "REPAIR='after a bad night'\n"
    assert "restart containerd" in runtime(tmp_path, config, repair)
    assert "restart containerd" not in runtime(tmp_path, config, repair), "it was asked for once"
    assert "restart containerd" not in runtime(tmp_path, config)


def test_what_killed_runs_have_left_beside_files_goes_with_them(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    left, users = etc / "apt/keyrings/.kubeadm-ipvs.key.asc", etc / "apt/.kubeadm"
    left.parent.mkdir(parents=True)
    left.touch()
    users.touch()
    part("lib/reset.sh", f"create() {{ remove_unfinished_files {etc}; }}\n", tmp_path)
    assert not left.exists()
    assert users.exists()


@pytest.mark.parametrize(
    ("dns", "lacking"),
    [
        ("true,10.244.0.2 true,10.244.0.3", ""),
        ("true,10.244.0.2 false,10.244.0.3", "kube-system/kube-dns has 1 ready endpoints, not 2"),
    ],
)
def test_services_that_lack_endpoints_are_named_with_how_many(tmp_path: Path, dns: str, lacking: str) -> None:
    slices = ["default/kubernetes true,192.0.2.1", f"kube-system/kube-dns {dns}", "x/other"]
    services = "$'default/kubernetes 1\\nkube-system/kube-dns 2'"
    assert what_is_lacking(tmp_path, [f"endpoints {line}" for line in slices], services) == lacking


@pytest.mark.parametrize(
    ("endpoints", "lacking"),
    [
        ("true,10.244.0.2 true,10.244.0.3 true,10.244.1.4", ""),
        ("true,10.244.0.2 true,10.244.0.3", "kube-system/kube-dns has 2 ready endpoints, not 3"),
    ],
)
def test_dns_has_as_many_endpoints_as_somebody_has_asked_of_its_deployment(
    tmp_path: Path, endpoints: str, lacking: str
) -> None:
    lines = ["deployed kube-system/coredns 2,2,3,3,3,3", f"endpoints kube-system/kube-dns {endpoints}"]
    assert what_is_lacking(tmp_path, lines, "'kube-system/kube-dns 2'") == lacking


@pytest.mark.parametrize(
    ("deployment", "numbers", "lacking"),
    [
        ("default/nginx", "3,3,2,2,2,2", ""),
        ("default/nginx", "4,3,2,2,2,2", "goes on (2 of 2 pods new, 2 available, 2 in all)"),
        ("default/nginx", "4,4,2,1,3,2", "goes on (1 of 2 pods new, 2 available, 3 in all)"),
        ("kube-system/coredns", "1,1,2,2,2,", "goes on (2 of 2 pods new, 0 available, 2 in all)"),
        ("x/other", "4,3,2,1,3,2", ""),
    ],
)
def test_endpoints_are_counted_when_no_rollout_behind_them_goes_on(
    tmp_path: Path, deployment: str, numbers: str, lacking: str
) -> None:
    lines = [f"deployed {deployment} {numbers}", "endpoints default/nginx true,10.244.1.2 true,10.244.2.2"]
    said = what_is_lacking(tmp_path, lines, "'default/nginx 2'")
    assert said == (f"the rollout of {deployment} {lacking}" if lacking else "")


def test_what_is_promised_is_read_in_the_moment_in_which_all_is_ready(tmp_path: Path) -> None:
    """CoreDNS' pods on a busy host come and go: another call would tell of another moment."""
    body = f"""
pause() {{ :; }}
kubectl() {{
  echo "$*" >>{tmp_path}/calls
  [[ -e {tmp_path}/second ]] || {{ touch {tmp_path}/second; return 1; }}
  echo endpoints kube-system/kube-dns true,10.244.0.2 true,10.244.0.3
  echo 'object kube-system/kube-dns {{"kind": "EndpointSlice"}}'
  echo 'object default/mine {{"kind": "Service", "a": "b c"}}'
  echo 'object kube-system/kube-dns {{"kind": "Service", "a": "b c"}}'
}}
"""
    text = with_lib(
        code("steps/expected_services.sh") + body, SERVICES="'kube-system/kube-dns 2'", WAIT_SECONDS="30"
    )
    told = json.loads(bash(text, home=tmp_path).stdout)
    assert told == {"items": [{"kind": "EndpointSlice"}, {"kind": "Service", "a": "b c"}]}
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_what_a_service_lacks_is_moved_from_dead_nodes_and_from_no_other(tmp_path: Path) -> None:
    body = """
kubectl() {
  case $* in
    *'get deployments,services,endpointslices'*) echo endpoints kube-system/kube-dns ;;
    *'get nodes'*) printf '%s\\n' 'node1 True' 'node2 Unknown' 'node3 False' ;;
    *) echo "$*" >&5 ;;
  esac
}
exec 5>&1
"""
    text = with_lib(
        code("steps/expected_services.sh") + body, SERVICES="'kube-system/kube-dns 1'", WAIT_SECONDS="2"
    )
    done = bash(text, home=tmp_path, check=False)
    assert "kube-system/kube-dns has 0 ready endpoints, not 1" in done.stderr
    said = done.stdout
    of_node2 = "--field-selector spec.nodeName=node2 --wait=false"
    assert said.splitlines() == [
        f"-n kube-system delete pods --selector k8s-app=kube-dns {of_node2}",
        f"-n default delete pods --selector app.kubernetes.io/name=nginx {of_node2}",
    ]


@pytest.mark.parametrize(
    ("members", "missing"), [("", ""), ("10.244.0.2,tcp:53,10.244.0.2", "KUBE-LOOP-BACK")]
)
def test_a_host_without_endpoints_of_its_own_needs_no_rule_for_hairpin_traffic(
    tmp_path: Path, members: str, missing: str
) -> None:
    body = f"""
ipset() {{
  case "$*" in
    "list -n") printf 'KUBE-CLUSTER-IP\\nKUBE-LOOP-BACK\\n' ;;
    *KUBE-LOOP-BACK) printf 'Name: x\\nMembers:\\n{members}' ;;
    *) printf 'Name: x\\nMembers:\\n10.96.0.1,tcp:443\\n' ;;
  esac
}}
iptables-save() {{ echo '-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ'; }}
ipvsadm() {{ :; }}
create() {{ differences_ipvs | grep -v kube-ipvs0 || :; }}
"""
    said = part("steps/verification.sh", body, tmp_path, MODE="ipvs", EXPECTED="'set KUBE-CLUSTER-IP'")
    assert said == (f"missing: a rule that masquerades by the set {missing}\n" if missing else "")


PROMISED = """\
address 10.96.0.1
address 10.96.0.10
real TCP 10.96.0.1:443 192.168.166.101:6443 Masq
real UDP 10.96.0.10:53 10.244.0.2:53 Masq
set KUBE-CLUSTER-IP
virtual TCP 10.96.0.1:443 rr
virtual UDP 10.96.0.10:53 rr
"""
# What the tools print where all is so: also a person's own virtual server, and a real server of weight 0
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
IPSETS = "KUBE-LOOP-BACK\nKUBE-CLUSTER-IP\nmine\n"
RULES = """\
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
"""


@pytest.mark.parametrize(
    ("kernel", "found"),
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
            ["missing: virtual TCP 10.96.0.1:443 rr", "too many: virtual TCP 10.96.0.1:443 wlc"],
        ),
        (
            {"saved": SAVED.replace(".101:6443", ".109:6443")},
            [
                "missing: real TCP 10.96.0.1:443 192.168.166.101:6443 Masq",
                "too many: real TCP 10.96.0.1:443 192.168.166.109:6443 Masq",
            ],
        ),
        (
            {"saved": SAVED.replace("6443 -m", "6443 -g")},
            [
                "missing: real TCP 10.96.0.1:443 192.168.166.101:6443 Masq",
                "too many: real TCP 10.96.0.1:443 192.168.166.101:6443 Route",
            ],
        ),
        (
            {"saved": SAVED.replace("-w 0", "-w 1")},
            ["too many: real UDP 10.96.0.10:53 10.244.0.7:53 Masq"],
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
def test_what_a_kernel_has_missing_or_too_many_is_said(
    tmp_path: Path, kernel: dict[str, str], found: list[str]
) -> None:
    shown = {
        "state": "down\n",
        "addresses": ADDRESSES,
        "saved": SAVED,
        "sets": IPSETS,
        "rules": RULES,
        "nft": "",
    }
    folder = tmp_path / "kernel"
    folder.mkdir()
    for name, text in (shown | kernel).items():
        (folder / name).write_text(text)
    body = f"""
cat() {{
  if [[ $1 == */operstate ]]; then command cat {folder}/state; else command cat "$@"; fi
}}
ip() {{ cat {folder}/addresses; }}
ipvsadm() {{ cat {folder}/saved; }}
ipset() {{ if [[ $* == "list -n" ]]; then cat {folder}/sets; fi; }}
iptables-save() {{ cat {folder}/rules; }}
nft() {{ [[ -s {folder}/nft ]]; }}
create() {{ differences; }}
"""
    said = part("steps/verification.sh", body, tmp_path, MODE="ipvs", EXPECTED=shlex.quote(PROMISED.rstrip()))
    assert said.splitlines() == found


REFUSALS = [
    ("net/http: TLS handshake timeout", 3),
    ("The connection to the server 10.0.0.1:6443 was refused", 3),
    ("Error from server (Forbidden): nodes is forbidden", 1),
]


@pytest.mark.parametrize(("refusal", "times"), REFUSALS)
def test_kubectl_is_asked_again_where_there_was_no_connection(
    tmp_path: Path, refusal: str, times: int
) -> None:
    body = f"""
kubectl() {{
  echo "$*" >>{tmp_path}/asked
  if (($(wc -l <{tmp_path}/asked) < 3)); then echo '{refusal}' >&2; return 1; fi
  echo node/node2
}}
pause() {{ :; }}
create() {{ kube get node node2; }}
"""
    done = bash(with_lib(NODE + body), home=tmp_path, check=False)
    assert (tmp_path / "asked").read_text().splitlines() == ["get node node2"] * times
    assert refusal in done.stderr
    assert (done.returncode, done.stdout) == ((0, "node/node2\n") if times == 3 else (1, ""))


@pytest.mark.parametrize("script", [NODE, DEREGISTER], ids=["node", "deregister"])
def test_a_worker_is_not_taken_for_removed_while_the_api_server_says_nothing(
    tmp_path: Path, script: str
) -> None:
    (tmp_path / "admin.conf").touch()
    script = script.replace("/etc/kubernetes", str(tmp_path))
    body = """
kubectl() { echo 'net/http: TLS handshake timeout' >&2; return 1; }
create() { delete; }
"""
    values = {"NODE": "node2", "DRAIN_SECONDS": "5", "NO_CONNECTION_SECONDS": "0"}
    done = bash(with_lib(script + body, **values), home=tmp_path, check=False)
    assert done.returncode == 1
    assert "the API server doesn't say whether node2 is a node" in done.stderr
    assert "no node of the cluster any more" not in done.stderr


def test_a_worker_that_does_not_answer_is_removed_and_not_drained(tmp_path: Path) -> None:
    (tmp_path / "admin.conf").touch()
    script = NODE.replace("/etc/kubernetes", str(tmp_path))
    body = f"""
kubectl() {{
  echo "$*" >>{tmp_path}/asked
  case $* in *jsonpath*) printf %s "$READY" ;; *"-o name") echo node/node2 ;; esac
}}
create() {{ delete; }}
"""
    for ready, done in [("Unknown", ["delete node node2"]), ("True", ["drain node2", "delete node node2"])]:
        (tmp_path / "asked").unlink(missing_ok=True)
        values = {"READY": ready, "NODE": "node2", "DRAIN_SECONDS": "5"}
        bash(with_lib(script + body, **values), home=tmp_path)
        asked = (tmp_path / "asked").read_text().splitlines()[2:]
        assert [
            " ".join(line.split()[: len(want.split())]) for line, want in zip(asked, done, strict=True)
        ] == done


@pytest.mark.parametrize(
    ("cluster", "listed", "done"),
    [
        (True, "node/node2", ["delete node node2 --ignore-not-found"]),
        (True, "", []),
        (False, "node/node2", []),
    ],
    ids=["it registered again", "it is gone", "the cluster is gone"],
)
def test_a_node_that_registered_again_after_it_was_removed_is_removed_when_its_host_was_given_back(
    tmp_path: Path, cluster: bool, listed: str, done: list[str]
) -> None:
    if cluster:
        (tmp_path / "admin.conf").touch()
    body = f"""
kubectl() {{
  echo "$*" >>{tmp_path}/asked
  case $* in *" get "*) printf %s "{listed}" ;; esac
}}
create() {{ delete; }}
"""
    script = DEREGISTER.replace("/etc/kubernetes", str(tmp_path))
    (tmp_path / "asked").touch()
    bash(with_lib(script + body, NODE="node2"), home=tmp_path)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if " get " not in f" {line} "] == done
    assert bool(asked) == cluster


def test_registering_is_the_kubelets_own_work(tmp_path: Path) -> None:
    bash(with_lib(DEREGISTER + "kubectl() { echo called >&2; exit 1; }\n", NODE="node2"), home=tmp_path)


PRINTED = """I1125 03:44:56 some warning of kubeadm's
---
apiVersion: v1
kind: ServiceAccount
---
kind: ConfigMap
apiVersion: v1
data:
  config.conf: |-
    mode: nftables
---apiVersion: apps/v1
kind: DaemonSet
"""


def test_only_kube_proxys_configuration_is_uploaded_so_that_no_pod_is_restarted(tmp_path: Path) -> None:
    (tmp_path / "printed").write_text(PRINTED)
    body = f"""
kubeadm() {{ cat {tmp_path}/printed; }}
kubectl() {{ cat >{tmp_path}/uploaded; }}
create() {{ upload_proxy_config; }}
"""
    bash(with_lib(INIT + body), home=tmp_path)
    uploaded = (tmp_path / "uploaded").read_text()
    assert uploaded.startswith("kind: ConfigMap\n")
    assert uploaded.endswith("mode: nftables\n")


def test_patches_that_the_settings_name_are_there_before_kubeadm_reads_them(tmp_path: Path) -> None:
    body = f"""
kubeadm_phase() {{ ls {tmp_path}/patches; }}
upload_proxy_config() {{ :; }}
create() {{ converge_config; }}
"""
    values = {"CONFIG": "new", "PATCHES": "$'etcd+strategic.json\\t{}'"}
    assert bash(with_lib(INIT + body, **values), home=tmp_path).stdout == "etcd+strategic.json\n"


@pytest.mark.parametrize(
    ("made", "done", "refused"),
    [("1.36.3", True, True), ("1.37.2", True, False), ("1.36.3", False, False), (None, True, False)],
)
def test_a_living_node_gets_no_packages_of_another_version(
    tmp_path: Path, made: str | None, done: bool, refused: bool
) -> None:
    if made:
        (tmp_path / "version").write_text(f"{made}\n")
    if done:
        (tmp_path / "node.done").touch()
    body = "create() { refuse_upgrade; echo installed; }\n"
    text = with_lib(code("steps/packages.sh") + body, VERSION="1.37.2")
    said = bash(text, home=tmp_path, check=False)
    assert said.stdout == ("" if refused else "installed\n")
    assert ("set cluster.kubernetesVersion to 1.36.3 again" in said.stderr) == refused


def test_a_zone_by_source_is_opened_where_the_hosts_network_is_in_it(tmp_path: Path) -> None:
    zones = (
        'a{sa{sas}} 4 "public" 1 "interfaces" 2 "eth0" "eth1" '
        '"internal" 2 "interfaces" 1 "eth2" "sources" 2 "192.0.2.0/24" "10.0.0.0/8" '
        '"dmz" 1 "sources" 2 "10.9.0.0/16" "ipset:theirs" "home" 1 "sources" 1 "10.0.0.11"'
    )
    body = f"firewalld_call() {{ echo '{zones}'; }}\ncreate() {{ source_zones; }}\n"
    script = code("lib/firewalld.sh") + code("steps/firewall.sh")
    said = bash(with_lib(script + body, ADDRESS="10.0.0.11"), home=tmp_path).stdout
    assert said.split() == ["internal", "home"]


def test_the_api_servers_schema_is_made_in_the_form_that_the_provider_asks_for(tmp_path: Path) -> None:
    # The JSON form was handed out, while the binary one took longer than the API server's own minute.
    body = """
kubectl() { [[ $* == *" explain "*--output=plaintext-openapiv2* ]]; }
create() { schema_made && say "made"; }
"""
    assert "made" in bash(with_lib(INIT + body), home=tmp_path).stderr


@pytest.mark.parametrize(
    ("in_force", "reloaded"),
    [
        ("public (default, active)\\n  interfaces: eth0\\n  ports: 80/tcp", True),
        ("public\\n  ports: 22/tcp", False),
    ],
)
def test_firewalld_reads_its_rules_anew_only_where_that_loses_nothing(
    tmp_path: Path, in_force: str, reloaded: bool
) -> None:
    body = f"""
busctl() {{ case "$*" in *FirewallBackend) echo 's "nftables"' ;; *) echo 'a(sssias) 0' ;; esac; }}
firewall-cmd() {{
  case "$*" in
    *--reload) touch {tmp_path}/reloaded ;;
    --permanent*) printf 'public (default)\\n  interfaces: \\n  ports: 80/tcp\\n' ;;
    *) printf '{in_force}\\n' ;;
  esac
}}
create() {{ firewalld_tidy; }}
"""
    part("lib/firewalld.sh", body, tmp_path)
    assert (tmp_path / "reloaded").exists() is reloaded


def expiry(days: int, compact: bool) -> str:
    """What `kubeadm certs check-expiration --output json` prints."""
    end = f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    text = {
        "kind": "CertificateExpirationInfo",
        "certificates": [
            {"name": "admin.conf", "expirationDate": "2100-01-01T00:00:00Z", "caName": "ca"},
            {"name": "apiserver", "expirationDate": end, "caName": "ca"},
        ],
        "certificateAuthorities": [{"name": "ca", "expirationDate": "2001-01-01T00:00:00Z"}],
    }
    return json.dumps(text, separators=(",", ":")) if compact else json.dumps(text, indent=4)


@pytest.mark.parametrize(
    ("kubeadm", "cri", "said"),
    [
        ("echo 'ca.crt: no PEM' >&2; return 1", ":", "when the cluster's certificates end can't be told"),
        (":", "return 1", "containerd doesn't say which container is etcd's"),
    ],
)
def test_a_repair_that_cannot_renew_certificates_fails(
    tmp_path: Path, kubeadm: str, cri: str, said: str
) -> None:
    if kubeadm == ":":
        (tmp_path / "certificates.renewing").touch()
    body = f"""
kubeadm() {{ {kubeadm}; }}
cri() {{ {cri}; }}
kubectl() {{ echo ok; }}
create() {{ renew_certificates; }}
"""
    done = bash(with_lib(INIT + body, CERTIFICATE_DAYS="30"), home=tmp_path, check=False)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert (tmp_path / "certificates.renewing").exists() == (kubeadm == ":")


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    ("days", "cut_off", "renewed"),
    [(29, False, True), (-1, False, True), (31, False, False), (364, True, True)],
)
def test_a_repair_renews_certificates_that_end_soon_and_restarts_what_uses_them(
    tmp_path: Path, days: int, cut_off: bool, renewed: bool, compact: bool
) -> None:
    (tmp_path / "printed").write_text(expiry(days, compact))
    if cut_off:
        (tmp_path / "certificates.renewing").touch()
    body = f"""
kubeadm() {{
  case "$1 $2" in
    "certs check-expiration") cat {tmp_path}/printed ;;
    *) echo "kubeadm $1 $2 $3" >>{tmp_path}/done ;;
  esac
}}
cri() {{ if [[ $1 == ps ]]; then echo "id-$4"; else echo "stop ${{*: -1}}" >>{tmp_path}/done; fi; }}
kubectl() {{ echo ok; }}
create() {{ renew_certificates; }}
"""
    bash(with_lib(INIT + body, CERTIFICATE_DAYS="30"), home=tmp_path)
    done = (tmp_path / "done").read_text().splitlines() if (tmp_path / "done").exists() else []
    components = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    assert done == (
        ["kubeadm certs renew all", *(f"stop id-^{name}$" for name in components)] if renewed else []
    )
    assert not (tmp_path / "certificates.renewing").exists()


@pytest.mark.parametrize(
    ("release", "programs", "family"),
    [
        ("ID=debian\n", "apt-get dnf", "deb"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt-get", "deb"),
        ("ID=fedora\n", "apt-get dnf", "rpm"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "apt-get dnf", "rpm"),
        ("ID=other\n", "dnf", "rpm"),
        ("ID=fedora\n", "apt-get", "deb"),
    ],
)
def test_the_distributions_own_word_decides_between_apt_and_dnf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, programs: str, family: str
) -> None:
    (tmp_path / "os-release").write_text(release)
    monkeypatch.setenv("KUBEADM_IPVS_OS_RELEASE", str(tmp_path / "os-release"))
    body = f"have() {{ [[ ' {programs} ' == *\" $1 \"* ]]; }}\ncreate() {{ family; }}\n"
    assert bash(with_lib(body), home=tmp_path).stdout == f"{family}\n"


def test_dnfs_plan_is_read_with_dependencies_and_rows_that_are_broken_in_two(tmp_path: Path) -> None:
    plan = (DATA / "dnf-plan.txt").read_text()
    body = 'create() { rpms_planned <<<"$PLAN"; }\n'
    seen = part("steps/packages.sh", body, tmp_path, PLAN=shlex.quote(plan)).splitlines()
    assert seen == [
        "containerd",
        "kubelet",
        "cri-tools",
        "a-library-with-a-name-that-is-too-long-for-its-column",
    ]


def planning(tmp_path: Path, plan: str) -> str:
    """A body whose dnf has a plan, and does it."""
    (tmp_path / "plan").write_text(plan)
    (tmp_path / "record").mkdir()
    (tmp_path / "record/packages").write_text("containerd|1-1\n")
    return f"""
dnf() {{
  echo "dnf $1 $2" >>{tmp_path}/done
  [[ $2 != --assumeno ]] || {{ cat {tmp_path}/plan; return 1; }}
}}
create() {{ install_rpms kubelet; }}
"""


def test_what_dnf_will_install_is_noted_before_it_does(tmp_path: Path) -> None:
    body = planning(tmp_path, (DATA / "dnf-plan.txt").read_text())
    part("steps/packages.sh", body, tmp_path)
    added = (tmp_path / "record/packages-added").read_text().split()
    assert added == ["kubelet", "cri-tools", "a-library-with-a-name-that-is-too-long-for-its-column"]
    # The lists first, with their keys: without them the plan would be empty.
    assert (tmp_path / "done").read_text().splitlines() == [
        "dnf makecache -y", "dnf install --assumeno", "dnf install -y",
    ]  # fmt: skip


def test_a_plan_that_dnf_cannot_make_stops_before_anything_is_installed(tmp_path: Path) -> None:
    body = planning(tmp_path, "Error: Unable to find a match: kubelet-1.37.2-*\n")
    text = with_lib(code("steps/packages.sh") + body)
    done = bash(text, home=tmp_path, check=False)
    assert done.returncode == 1
    assert "Unable to find a match: kubelet-1.37.2-*" in done.stderr
    assert "dnf install -y" not in (tmp_path / "done").read_text()


@pytest.mark.parametrize("needed", [False, True])
def test_rpms_that_others_need_are_not_taken_from_under_them(tmp_path: Path, needed: bool) -> None:
    (tmp_path / "record").mkdir()
    (tmp_path / "record/packages-added").write_text("socat\n")
    (tmp_path / "record/units").write_text("kubelet not-found inactive\n")
    body = f"""
rpm() {{
  if [[ $1 == --erase && $2 == --test ]] && {str(needed).lower()}; then
    printf 'error: Failed dependencies:\n\tsocat is needed by (installed) mine-1-1\n' >&2
    return 1
  fi
}}
dnf() {{ echo "dnf $*" >>{tmp_path}/done; }}
systemctl() {{ :; }}
create() {{
  choose_rpms
  give_back_rpms
}}
"""
    text = with_lib(RESET + body)
    text = text.replace("rm -rf /var/cache", "echo rm -rf /var/cache").replace(
        "rm -f /etc", "echo rm -f /etc"
    )
    done = bash(text, home=tmp_path, check=False)
    assert done.returncode == (1 if needed else 0), done.stderr
    assert ("socat is needed by (installed) mine-1-1" in done.stderr) is needed
    assert (tmp_path / "done").exists() is not needed


@pytest.mark.parametrize(
    ("manage", "installed", "found"),
    [
        ("true", "", ""),
        ("true", "ii |1.37.2-1.1", ""),
        ("true", "hi |1.36.4-1.1", "kubelet 1.36.4-1.1 is installed already"),
        ("true", "rc |1.36.4-1.1", ""),
        ("false", "hi |1.36.4-1.1", ""),
    ],
)
def test_a_host_with_another_version_of_kubelet_is_refused_before_it_is_changed(
    tmp_path: Path, manage: str, installed: str, found: str
) -> None:
    body = f"""
family() {{ echo deb; }}
dpkg-query() {{ [[ ${{!#}} == kubelet && -n '{installed}' ]] && echo '{installed}'; }}
create() {{ local problems=(); look_at_packages; printf '%s\\n' "${{problems[@]}}"; }}
"""
    said = part("steps/claim.sh", body, tmp_path, VERSION="1.37.2", MANAGE=manage)
    assert said.startswith(found)
    assert bool(said.strip()) is bool(found)


@pytest.mark.parametrize(
    ("answer", "restarted"),
    [
        ("echo node/node1", False),
        ("echo 'Error from server (NotFound): nodes \"node1\" not found' >&2; return 1", True),
        ("echo 'Unable to connect to the server: EOF' >&2; return 1", False),
    ],
)
def test_a_node_that_was_deleted_behind_its_hosts_back_is_made_again(
    tmp_path: Path, answer: str, restarted: bool
) -> None:
    body = f"""
begin_node() {{ false; }}
converge_kubelet() {{ :; }}
kubectl() {{ {answer}; }}
systemctl() {{ echo "systemctl $*"; }}
"""
    said = bash(with_lib(JOIN + body), home=tmp_path).stdout
    assert said == ("systemctl restart kubelet\n" if restarted else "")


@pytest.mark.parametrize(
    ("credentials", "done"),
    [(True, ["converge"]), (False, ["reset", "systemctl restart containerd", "kubeadm 5 join"])],
)
def test_a_worker_that_was_taken_apart_by_hand_joins_again(
    tmp_path: Path, credentials: bool, done: list[str]
) -> None:
    etc = tmp_path / "etc"
    (tmp_path / "record").mkdir()
    for mark in ("node.started", "node.done"):
        (tmp_path / mark).touch()
    if credentials:
        etc.mkdir()
        (etc / "kubelet.conf").touch()
    body = """
reset_node() { echo reset; }
run_kubeadm() { echo "kubeadm $*"; }
converge_kubelet() { echo converge; }
register_again() { :; }
systemctl() { echo "systemctl $*"; }
"""
    text = with_lib(JOIN.replace("/etc/kubernetes", str(etc)) + body, CONFIG="c", KUBELET="k", PROXY="p")
    assert bash(text, home=tmp_path).stdout.splitlines() == done
    assert (tmp_path / "node.done").exists()


READY = 'a Node with name "node1" and status "Ready" already exists in the cluster. You must delete'


@pytest.mark.parametrize(
    ("half_made", "error", "runs"),
    [
        (True, READY, 3),
        (False, READY, 1),
        (False, "Get: context deadline exceeded", 3),
        (True, "no such image", 1),
    ],
    ids=["its own former kubelet", "another machine of that name", "a slow API server", "anything else"],
)
def test_kubeadm_is_run_again_only_where_waiting_mends_it(
    tmp_path: Path, half_made: bool, error: str, runs: int
) -> None:
    (tmp_path / "record").mkdir()
    if half_made:
        (tmp_path / "node.started").touch()
    (tmp_path / "kubeadm.yaml").touch()
    body = f"""
reset_node() {{ :; }}
systemctl() {{ :; }}
pause() {{ :; }}
kubeadm() {{
  echo run >>{tmp_path}/runs
  if (($(wc -l <{tmp_path}/runs) < 3)); then echo {shlex.quote("error: " + error)}; return 1; fi
}}
create() {{ begin_node; run_kubeadm 3 join; }}
"""
    text = with_lib(code("lib/kubeadm.sh") + body)
    done = bash(text, home=tmp_path, check=False)
    assert len((tmp_path / "runs").read_text().split()) == runs
    assert (done.returncode == 0) == (runs == 3), done.stderr


@pytest.mark.parametrize("before", [False, True])
def test_the_folder_that_containerd_watches_for_the_network_outlives_the_node(
    tmp_path: Path, before: bool
) -> None:
    folder = tmp_path / "etc/cni/net.d"
    folder.mkdir(parents=True)
    (tmp_path / "record").mkdir()
    (tmp_path / "record/absent").write_text("" if before else f"{tmp_path}/etc/cni\n")
    for name in ("10-flannel.conflist", "10-theirs.conflist"):
        (folder / name).touch()
    same = folder.stat().st_ino
    script = redirected(code("lib/reset.sh"), tmp_path)
    bash(with_lib(script + "create() { clear_folders; }\n"), home=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["10-theirs.conflist"]
    assert folder.stat().st_ino == same


def test_a_control_plane_whose_host_was_installed_anew_is_not_made_again_by_an_update(tmp_path: Path) -> None:
    body = "create() { echo made; }\nconverge() { echo as it should be; }\n"
    text = with_lib(INIT + body)
    lost = bash(text, "update", "init", "master", home=tmp_path, check=False)
    assert lost.returncode == 1
    assert "the host was installed anew" in lost.stderr
    assert lost.stdout == ""
    (tmp_path / "node.done").touch()
    assert bash(text, "update", "init", "master", home=tmp_path).stdout == "made\n"


LOCKED = "dpkg: error: dpkg frontend lock was locked by another process with pid 7"


@pytest.mark.parametrize(
    ("said", "status"), [(LOCKED, 0), ("dpkg: error processing package x (--configure):", 1)]
)
def test_a_package_manager_at_work_is_waited_for_and_a_broken_one_is_told(
    tmp_path: Path, said: str, status: int
) -> None:
    body = f"""
ls() {{ :; }}
pause() {{ :; }}
dpkg() {{
  if [[ $1 == --audit ]]; then [[ -e {tmp_path}/done ]] || echo half done; return; fi
  [[ ! -e {tmp_path}/tried ]] || {{ : >{tmp_path}/done; return; }}
  : >{tmp_path}/tried
  echo {shlex.quote(said)}
  return 2
}}
create() {{ finish_dpkg; }}
"""
    done = bash(with_lib(body), home=tmp_path, check=False)
    assert done.returncode == status
    assert (said in done.stderr) == bool(status)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)", 0),
        ("E: no source", 1),
    ],
)
def test_another_apt_get_at_work_is_waited_for_and_a_missing_source_is_told(
    tmp_path: Path, said: str, status: int
) -> None:
    body = f"""
pause() {{ :; }}
apt-get() {{
  if [[ -e {tmp_path}/tried ]]; then return; fi
  : >{tmp_path}/tried
  echo {shlex.quote(said)}
  return 100
}}
create() {{ apt_update; }}
"""
    script = code("steps/packages.sh")
    done = bash(with_lib(script + body), home=tmp_path, check=False)
    assert done.returncode == status
    assert (said in done.stderr) == bool(status)


def test_a_swap_unit_of_the_hosts_own_is_kept_from_starting_and_set_free_again(tmp_path: Path) -> None:
    units = tmp_path / "systemd"
    units.mkdir()
    (units / "data-swap.swap").write_text("[Swap]\nWhat=/data/swap\n")
    (units / "dev-zram0.swap").symlink_to("/dev/null")
    (tmp_path / "record").mkdir()
    tools = f"""
systemctl() {{
  case $1 in
    list-units) printf '%s loaded active active x\n' data-swap.swap dev-zram0.swap dev-sda2.swap ;;
    cat) [[ $2 == zramswap.service ]] ;;
    *) echo "$*" >>{tmp_path}/done ;;
  esac
}}
sed() {{ :; }}
swapoff() {{ :; }}
timeout() {{ shift; "$@"; }}
"""
    kernel = code("steps/kernel.sh").replace("/etc/systemd/system", str(units))
    for _ in range(2):
        bash(with_lib(kernel + tools + "create() { stop_swap; }\n"), home=tmp_path)
    held = sorted(path.parent.name for path in units.glob("*.d/kubeadm-ipvs.conf"))
    assert held == ["data-swap.swap.d", "zramswap.service.d"]
    assert "mask --quiet dev-sda2.swap" in (tmp_path / "done").read_text().splitlines()
    assert (units / "data-swap.swap").exists()
    reset = RESET.replace("/etc/systemd/system", str(units))
    (tmp_path / "record/swaps").touch()
    bash(with_lib(reset + tools + "create() { give_back_swap; }\n"), home=tmp_path)
    assert sorted(path.name for path in units.iterdir()) == ["data-swap.swap", "dev-zram0.swap"]
    assert (tmp_path / "done").read_text().splitlines()[-1] == "restart zramswap.service"


@pytest.mark.parametrize(("there", "asked"), [(False, ["cri-tools"]), (True, [])])
def test_crictl_is_installed_where_kubeadms_package_has_not_brought_it(
    tmp_path: Path, there: bool, asked: list[str]
) -> None:
    body = f"""
installed_deb() {{ true; }}
dpkg-query() {{ echo 1.37.2-1.1; }}
finish_dpkg() {{ :; }}
put_key() {{ :; }}
put_file() {{ cat >/dev/null; }}
apt_update() {{ :; }}
apt-cache() {{ echo 'kubeadm | 1.37.2-1.1 | x'; }}
apt-mark() {{ printf '%s\n' kubelet kubeadm kubectl; }}
have() {{ [[ $1 != crictl || {str(there).lower()} == true ]]; }}
install_debs() {{ printf '%s\n' "$@"; }}
create() {{ install_deb; }}
"""
    values = {"VERSION": "1.37.2", "REVISION": "'*'", "REPOSITORY_DEB": "http://x/", "KEY": "key"}
    said = part("steps/packages.sh", body, tmp_path, **values)
    assert [name for name in said.split() if "=" not in name] == asked


@pytest.mark.parametrize(
    ("name", "text", "own"),
    [
        ("k.list", "deb [signed-by=/etc/apt/keyrings/k.gpg] https://r.example/v1.37/deb/ /\n", True),
        ("k.list", "deb [trusted=yes] https://r.example/v1.37/deb /\n", True),
        ("k.list", "# deb https://r.example/v1.37/deb/ /\ndeb https://r.example/v1.36/deb/ /\n", False),
        (
            "k.sources",
            "Types: deb\nURIs: https://a.example/\n  https://r.example/v1.37/deb/\nSuites: /\n",
            True,
        ),
        ("k.sources", "Types: deb\n# URIs: https://r.example/v1.37/deb/\nURIs: https://a.example/\n", False),
        ("k.sources", "Enabled: no\nURIs: https://r.example/v1.37/deb/\n\nURIs: https://a.example/\n", False),
        ("k.save", "deb https://r.example/v1.37/deb/ /\n", False),
    ],
)
def test_a_source_of_the_hosts_own_for_the_same_packages_is_used_and_ours_not_put_beside_it(
    tmp_path: Path, name: str, text: str, own: bool
) -> None:
    """apt refuses to read two that name different keys."""
    parts = tmp_path / "apt/sources.list.d"
    parts.mkdir(parents=True)
    (parts / name).write_text(text)
    ours = parts / "kubeadm-ipvs.sources"
    ours.write_text("URIs: https://r.example/v1.37/deb/\n")
    script = code("steps/packages.sh").replace("/etc/apt", str(tmp_path / "apt"))
    values = {"REPOSITORY_DEB": "https://r.example/v1.37/deb/", "KEY": "key"}
    done = bash(with_lib(script + "create() { add_deb_source; }\n", **values), home=tmp_path)
    assert ours.exists() is not own
    assert (f"a source of its own for https://r.example/v1.37/deb/: {parts}/{name}" in done.stderr) is own


@pytest.mark.parametrize(("module", "status"), [("ip_vs_rr", 0), ("nothing", 1)])
def test_a_module_that_is_built_in_the_kernel_is_there(tmp_path: Path, module: str, status: int) -> None:
    body = "modinfo() { [[ $3 != ip_vs_rr ]] || echo '(builtin)'; }\ncreate() { module_there $MODULE; }\n"
    done = bash(with_lib(body, MODULE=module), home=tmp_path, check=False)
    assert done.returncode == status


def test_rules_of_the_hosts_own_hand_that_may_reject_are_told(tmp_path: Path) -> None:
    (tmp_path / "ruleset").write_text(
        """table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy accept;
		ct state invalid drop
		tcp dport 22 accept
		counter packets 0 bytes 0 reject with icmp host-prohibited
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		drop
	}
}
"""
    )
    body = f"nft() {{ cat {tmp_path}/ruleset; }}\nhave() {{ true; }}\ncreate() {{ tell_of_other_rules; }}\n"
    said = bash(with_lib(code("steps/firewall.sh") + body), home=tmp_path).stderr
    assert "may reject the cluster's ports" in said
    assert said.rstrip().endswith(": counter packets 0 bytes 0 reject with icmp host-prohibited")
