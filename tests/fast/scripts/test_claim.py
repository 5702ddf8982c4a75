"""The step `claim`: checks, the record of the original state, removal."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from model.steps import SCRIPTS
from tests.fast.shell import bash, home_of, put, record, run, stdout_of, with_code

CLAIM = "steps/claim.sh"
PRINT_PROBLEMS = "printf '%s\\n' \"${problems[@]}\""


def problems(root: Path, check: str, code: str = "", **values: str) -> list[str]:
    """The problems that one of the claim's checks finds."""
    body = f"{code}\ncreate() {{ local problems=(); {check}; {PRINT_PROBLEMS}; }}\n"
    return [line for line in stdout_of(CLAIM, body, root, **values).splitlines() if line]


@pytest.mark.parametrize(
    ("name", "role", "started", "refusal"),
    [
        ("node1", "worker", True, ""),
        (None, None, True, ""),
        ("node2", "worker", False, "the host is already in this stack as node2"),
        (
            "node2",
            "worker",
            False,
            "remove node2 from the configuration in one change, and add node1 in the next",
        ),
        ("node2", "control-plane", True, "the host is already in this stack as node2"),
        ("node2", "control-plane", True, "change the name back to node2, or run `pulumi destroy` first"),
        ("node1", "control-plane", True, "can't become a worker"),
        ("node1", "control-plane", False, ""),
    ],
)
def test_other_name_or_role_in_stack_is_refused(
    tmp_path: Path, name: str | None, role: str | None, started: bool, refusal: str
) -> None:
    record(tmp_path)
    for file, text in (("name", name), ("role", role), ("node.started", "" if started else None)):
        if text is not None:
            (home_of(tmp_path) / file).write_text(f"{text}\n")
    code = "create() { refuse_existing_node; }\n"
    done = run(CLAIM, code, tmp_path, 1 if refusal else 0, ROLE="worker")
    assert refusal in done.stderr


@pytest.mark.parametrize(
    "path",
    [
        "etc/kubernetes/admin.conf",
        "etc/kubernetes/pki/ca.key",
        "etc/kubernetes/manifests/x.yaml",
        "var/lib/etcd/member/snap",
        "var/lib/kubelet/config.yaml",
        "",
    ],
)
def test_node_of_another_cluster_is_refused(tmp_path: Path, path: str) -> None:
    for folder in ("etc/kubernetes/manifests", "var/lib/etcd", "var/lib/kubelet"):
        (tmp_path / folder).mkdir(parents=True)
    if path:
        put(tmp_path, path)
    done = run(CLAIM, "create() { refuse_foreign_node; }\n", tmp_path, 1 if path else 0)
    assert ("another cluster, or prepared for one" in done.stderr) == bool(path)


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
def test_custom_containerd_settings_are_found(tmp_path: Path, more: str, found: list[str]) -> None:
    put(tmp_path, "etc/containerd/config.toml", CONTAINERD + more)
    code = "create() { custom_containerd_settings; }\n"
    assert stdout_of(CLAIM, code, tmp_path).splitlines() == found


def test_foreign_network_and_containers_are_found(tmp_path: Path) -> None:
    network = put(tmp_path, "etc/cni/net.d/10-calico.conflist")
    put(tmp_path, "etc/cni/net.d/README")
    put(tmp_path, "etc/containerd/config.toml", 'disabled_plugins = ["cri"]\nroot = "/data/containerd"\n')
    tools = """
unit_active() { true; }
have() { true; }
timeout() { shift; "$@"; }
ctr() { [[ $* != '-n k8s.io containers ls -q' ]] || echo mine; }
"""
    found = problems(tmp_path, "check_containers", tools)
    assert [re.split("[;,]", line)[0] for line in found] == [
        f"{network}: another pod network is configured",
        'containerd has settings of its own: root = "/data/containerd"',
        "containerd has containers in Kubernetes' namespace",
    ]


ONE_CPU = "one CPU: kubeadm needs two on a control plane; add NumCPU to preflight.ignore to accept one"
LITTLE_MEMORY = (
    "1699 MiB of memory: kubeadm needs 1700 on a control plane; add Mem to preflight.ignore to accept less"
)
TOO_LITTLE_MEMORY = "800 MiB of memory: at least 1 GiB is needed"


def system_problems(
    root: Path, role: str, cpus: int, memory: int, missing: str = "nothing", ignored: str = ""
) -> list[str]:
    """The problems that are found on a host of this size.

    Args:
        root: The host's root folder.
        role: The node's role.
        cpus: Number of CPUs.
        memory: Memory in MiB.
        missing: A program that isn't installed.
        ignored: Lines of IGNORED_CHECKS.
    """
    tools = f"""
package_family() {{ echo deb; }}
stat() {{ echo cgroup2fs; }}
uname() {{ echo 6.1.0; }}
have() {{ [[ $1 != {missing} ]]; }}
modinfo() {{ :; }}
awk() {{ echo {memory}; }}
ip() {{ echo '2: eth1 inet 10.0.0.1/24'; }}
nproc() {{ echo {cpus}; }}
"""
    values = {"ROLE": role, "MODE": "ipvs", "SCHEDULER": "rr", "ADDRESS": "10.0.0.1"}
    return problems(root, "check_system", tools, **values, IGNORED_CHECKS=ignored)


@pytest.mark.parametrize(
    ("role", "cpus", "memory", "missing", "found"),
    [
        ("control-plane", 1, 2000, "nothing", [ONE_CPU]),
        ("control-plane", 2, 1699, "nothing", [LITTLE_MEMORY]),
        ("control-plane", 2, 1700, "nothing", []),
        ("control-plane", 2, 800, "nothing", [TOO_LITTLE_MEMORY]),
        ("worker", 1, 1000, "nothing", []),
        ("worker", 1, 1000, "tar", ["tar is missing; it is needed to record the host's original state"]),
    ],
)
def test_small_host_or_missing_tool_is_found(
    tmp_path: Path, role: str, cpus: int, memory: int, missing: str, found: list[str]
) -> None:
    assert system_problems(tmp_path, role, cpus, memory, missing) == found


@pytest.mark.parametrize(
    ("ignored", "memory", "found"),
    [
        ("", 1699, [ONE_CPU, LITTLE_MEMORY]),
        ("Swap", 1699, [ONE_CPU, LITTLE_MEMORY]),
        ("NumCPU", 1699, [LITTLE_MEMORY]),
        ("Swap\nnumcpu", 1699, [LITTLE_MEMORY]),
        ("MEM", 1699, [ONE_CPU]),
        ("NumCPU\nMem", 1699, []),
        ("NumCPU\nMem", 800, [TOO_LITTLE_MEMORY]),
    ],
)
def test_ignored_kubeadm_checks_accept_small_hosts(
    tmp_path: Path, ignored: str, memory: int, found: list[str]
) -> None:
    assert system_problems(tmp_path, "control-plane", 1, memory, ignored=ignored) == found


@pytest.mark.parametrize("ipv6", [True, False])
def test_port_in_use_is_found(tmp_path: Path, ipv6: bool) -> None:
    # In the kernel's format: 30080 is listening, 10250 only has a connection.
    put(
        tmp_path,
        "proc/net/tcp",
        "  sl  local_address rem_address   st\n"
        "   0: 00000000:7580 00000000:0000 0A\n"
        "   1: 0100007F:280A 0100007F:9C40 01\n",
    )
    if ipv6:
        put(tmp_path, "proc/net/tcp6", "  sl  local_address rem_address   st\n")
    tools = """ss() { echo 'LISTEN 0 511 *:30080 *:* users:(("nginx",pid=1,fd=6))'; }\n"""
    for ignored, found in {"": ["port 30080/tcp is in use by nginx"], "port-30080": []}.items():
        values = {"ROLE": "worker", "NODE_PORT": "30080", "IGNORED_CHECKS": ignored}
        assert problems(tmp_path, "check_ports", tools, **values) == found


@pytest.mark.parametrize(
    ("stored", "port", "found"),
    [
        ("30080\n", "30080", False),
        ("30080\n", "30090", True),
        (None, "30090", True),
        ("30090\n", "30091", False),
    ],
)
def test_new_node_port_in_use_is_found(tmp_path: Path, stored: str | None, port: str, found: bool) -> None:
    """Earlier versions didn't store the port. The node itself listens on 10250."""
    listening = "   0: 00000000:758A 00000000:0000 0A\n   1: 00000000:280A 00000000:0000 0A\n"
    put(tmp_path, "proc/net/tcp", f"  sl  local_address rem_address   st\n{listening}")
    (home_of(tmp_path) / "node.started").touch()
    if stored is not None:
        (home_of(tmp_path) / "node-port").write_text(stored)
    tools = """ss() { echo 'LISTEN 0 511 *:30090 *:* users:(("theirs",pid=1,fd=6))'; }\n"""
    values = {"ROLE": "worker", "NODE_PORT": port, "IGNORED_CHECKS": ""}
    lines = problems(tmp_path, "check_ports", tools, **values)
    assert [line.split(",")[0] for line in lines] == (["port 30090/tcp is in use by theirs"] if found else [])
    assert all("choose another one, or stop the program" in line for line in lines)


@pytest.mark.parametrize(
    ("manage", "installed", "found"),
    [
        ("true", "", ""),
        ("true", "ii |1.37.2-1.1", ""),
        ("true", "hi |1.36.4-1.1", "kubelet 1.36.4 is already installed"),
        ("true", "rc |1.36.4-1.1", ""),
        ("false", "hi |1.36.4-1.1", ""),
    ],
)
def test_other_kubelet_version_is_found(tmp_path: Path, manage: str, installed: str, found: str) -> None:
    tools = f"""
package_family() {{ echo deb; }}
dpkg-query() {{ [[ ${{!#}} == kubelet && -n '{installed}' ]] && echo '{installed}'; }}
"""
    lines = problems(tmp_path, "check_packages", tools, VERSION="1.37.2", MANAGE=manage)
    assert [line.split(";")[0] for line in lines] == ([found] if found else [])


STUBS = (
    "refuse_existing_node",
    "await_first_boot",
    "check_system",
    "check_cgroups",
    "check_modules",
    "check_packages",
    "check_kubelet_files",
    "check_etcd_folder",
    "check_containers",
    "check_virtual_servers",
    "check_routes",
    "check_dns",
    "check_cloud_setup",
    "check_ports",
    "choose_packages",
    "reset_node",
    "restore_firewall",
    "restore_runtime",
    "remove_packages",
    "restore_kernel",
    "restore_files",
)


def claim(root: Path, verb: str) -> None:
    """Run the claim's create or delete on a suitable host with nothing to restore."""
    stubs = "".join(f"{name}() {{ :; }}\n" for name in STUBS)
    values = {"ROLE": "worker", "OWNER": "dev", "NODE_PORT": "30080", "NETWORKS": ""}
    bash(with_code(CLAIM, stubs, **values), verb, "claim", "node1", root=root)


def test_damaged_archive_blocks_the_delete(tmp_path: Path) -> None:
    folder = record(tmp_path)
    (folder / "files.tar").write_text("half an archive")
    code = "reset_node() { echo reset; }\nrefuse_foreign_containers() { :; }\nchoose_packages() { :; }\n"
    done = run(CLAIM, code, tmp_path, 1, verb="delete")
    assert "tar can't read files.tar" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("file", ["name", "role"])
def test_empty_name_or_role_is_refused(tmp_path: Path, file: str) -> None:
    """An earlier version left them empty on a full disk."""
    record(tmp_path)
    (home_of(tmp_path) / "node.started").touch()
    path = home_of(tmp_path) / file
    path.touch()
    code = "create() { refuse_existing_node; }\n"
    done = run(CLAIM, code, tmp_path, 1, ROLE="worker")
    assert f"{path} is empty" in done.stderr
    command = f"cd {path.parent} && echo node1 >name && echo worker >role"
    assert f"run `{command}` on it" in done.stderr
    subprocess.run(["bash", "-c", command], check=True)
    run(CLAIM, code, tmp_path, ROLE="worker")


def test_claim_after_an_interrupted_one_sets_the_owner(tmp_path: Path) -> None:
    record(tmp_path)
    claim(tmp_path, "create")
    assert (home_of(tmp_path) / "owner").read_text() == "dev\n"
    assert (home_of(tmp_path) / "name").read_text() == "node1\n"


@pytest.mark.parametrize("moved", [True, False])
def test_delete_removes_leftovers_of_an_interrupted_one(tmp_path: Path, moved: bool) -> None:
    home = home_of(tmp_path)
    (home.with_name("kubeadm-ipvs.removed") / "record").mkdir(parents=True)
    if moved:
        run(CLAIM, 'create() { rm -r "$HOME_DIR"; delete; }\n', tmp_path)
    else:
        record(tmp_path)
        claim(tmp_path, "delete")
    assert list(home.parent.iterdir()) == []


def test_everything_restored_later_is_recorded_first(tmp_path: Path) -> None:
    code = """
create() {
  printf 'recorded %s\\n' "${RECORDED_FILES[@]}"
  printf 'removed %s\\n' "${NODE_FOLDERS[@]}" "${PACKAGE_FOLDERS[@]}"
  printf 'removed %s\\n' "${CNI_FOLDERS[@]}" "${CERTIFICATE_FOLDERS[@]}"
}
"""
    lines = [line.split() for line in stdout_of(CLAIM, code, tmp_path).splitlines()]
    recorded = {path for kind, path in lines if kind == "recorded"}
    restored = {path for kind, path in lines if kind == "removed"}
    for script in (SCRIPTS / "lib/reset").glob("*.sh"):
        restored |= set(re.findall(r"restore_file(?:_if_present)? (/\S+)", script.read_text()))
    assert {"/etc/containerd", "/etc/crictl.yaml", "/etc/selinux/config"} <= restored
    assert restored <= recorded


def test_record_copies_small_files_only(tmp_path: Path) -> None:
    put(tmp_path, "etc/containerd/config.toml", "mine")
    put(tmp_path, "var/lib/containerd/data")
    code = """
create() { cd "$ROOT"; record_files; tar -tf files.tar; }
"""
    assert stdout_of(CLAIM, code, tmp_path).split() == ["etc/containerd/config.toml"]
    assert "/var/lib/containerd\n" in (tmp_path / "present").read_text()
    assert "/etc/crictl.yaml\n" in (tmp_path / "absent").read_text()


def test_foreign_containers_block_the_delete(tmp_path: Path) -> None:
    record(tmp_path, packages_added="containerd\n")
    code = """
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
create() { refuse_foreign_containers; }
"""
    assert "in the namespaces moby" in run(CLAIM, code, tmp_path, 1).stderr
    record(tmp_path, packages_added="kubelet\n")
    assert run(CLAIM, code, tmp_path).stderr == ""


def test_delete_without_a_record_leaves_a_node_alone(tmp_path: Path) -> None:
    """It may be somebody else's by now."""
    credentials = put(tmp_path, "etc/kubernetes/kubelet.conf")
    done = run(CLAIM, 'create() { rm -r "$HOME_DIR"; delete; }\n', tmp_path)
    assert "the host is already restored; a node that is still on it stays" in done.stderr
    assert credentials.exists()


@pytest.mark.parametrize(
    ("owner", "told"), [("dev 4fd1", "in this stack as node2"), ("prod 77ab", "prod 77ab")]
)
def test_delete_of_a_refused_host_changes_nothing(tmp_path: Path, owner: str, told: str) -> None:
    """The claim's resource is in the state before the host is checked."""
    record(tmp_path)
    home = home_of(tmp_path)
    (home / "name").write_text("node2\n")
    (home / "owner").write_text(f"{owner}\n")
    before = sorted(tmp_path.rglob("*"))
    code = "choose_packages() { echo restoring; }\nrefuse_foreign_containers() { echo restoring; }\n"
    done = run(CLAIM, code, tmp_path, verb="delete", OWNER="dev 4fd1")
    assert done.stdout == ""
    assert told in done.stderr
    assert "nothing was changed" in done.stderr
    assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "run", tmp_path / "run/kubeadm-ipvs.lock"}
    assert set(before) <= set(tmp_path.rglob("*"))


def test_host_that_was_never_changed_is_left_alone(tmp_path: Path) -> None:
    """A claim that was interrupted before the record, or had no room for it."""
    home = home_of(tmp_path)
    put(home, "scripts/claim.sh")
    code = "choose_packages() { echo restoring; }\nrefuse_foreign_containers() { echo restoring; }\n"
    done = run(CLAIM, code, tmp_path, verb="delete", OWNER="dev 4fd1")
    assert done.stdout == ""
    assert "the host was never changed" in done.stderr
    assert not home.exists()


@pytest.mark.parametrize("missing", ["record", "owner"])
def test_host_that_may_have_changed_is_restored(tmp_path: Path, missing: str) -> None:
    home = home_of(tmp_path)
    if missing == "owner":
        record(tmp_path)
        claim(tmp_path, "delete")
        assert not home.exists()
        return
    (home / "owner").write_text("dev\n")
    done = run(CLAIM, "", tmp_path, 1, verb="delete", OWNER="dev")
    assert "the record of this host's original state" in done.stderr
    assert home.exists()


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_scripts_in_run_are_kept_or_removed(tmp_path: Path, verb: str) -> None:
    home = record(tmp_path).parent
    delivered = put(tmp_path, "run/kubeadm-ipvs/scripts.1/claim.sh", "text\n").parent.parent
    (delivered / "scripts").symlink_to("scripts.1")
    if verb == "create":
        subprocess.run(["rm", "-r", home], check=True)
        code = "create() { keep_scripts; }\n"
        bash(with_code(CLAIM, code), "create", "claim", "node1", root=tmp_path, has_home=False)
        assert (home / "scripts/claim.sh").read_text() == "text\n"
    else:
        claim(tmp_path, "delete")
        assert not home.exists()
    assert not delivered.exists()
