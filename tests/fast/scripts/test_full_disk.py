"""Steps on file systems that are full, out of inodes, read-only, or limited by a quota.

A failed write must end the step with the file and the reason, and must not empty a file. Once there is
room, the same step must succeed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from model.steps import SCRIPTS_ON_HOSTS
from tests.fast.delivered import OWNER, Program, deliver, probe
from tests.fast.shell import bash, home_of, put, record, with_code

# Runs a step on a tmpfs: first without room, then with one more page or inode each time, until it succeeds.
# So each of the step's writes fails in one of the runs. After each run, the step runs again with room.
# Usage: LIMIT ROOT TEMPLATE RESULTS SCRIPT VERB. Writes the host, its status and messages to
# RESULTS/N/{failed,again}.
DRIVER = r"""
set -euo pipefail
limit=$1 root=$2 template=$3 results=$4 script=$5 verb=$6
step() {
  local status=0
  KUBEADM_IPVS_ROOT=$root bash -s -- "$verb" step node1 <"$script" >"$1.out" 2>"$1.err" || status=$?
  echo "$status" >"$1.status"
  cp -a --one-file-system "$root" "$1"
}
for ((room = 0; room < 60; room++)); do
  mount -t tmpfs -o size=64m tmpfs "$root"
  cp -a "$template/." "$root"
  # On hosts this is a file system of its own.
  mount -t tmpfs tmpfs "$root/run"
  cp -a "$template/run/." "$root/run"
  mkdir -p "$results/$room"
  read -r blocks free_blocks inodes free_inodes < <(stat -f -c '%b %f %c %d' "$root")
  case $limit in
    space) mount -o "remount,nr_blocks=$((blocks - free_blocks + room))" "$root" ;;
    inodes) mount -o "remount,nr_inodes=$((inodes - free_inodes + room))" "$root" ;;
    read-only) mount -o remount,ro "$root" ;;
  esac
  step "$results/$room/failed"
  mount -o remount,rw,size=64m,nr_inodes=10000 "$root"
  step "$results/$room/again"
  # Lazy, because a process of the step may be about to end.
  umount -l "$root/run" "$root"
  if [[ $limit == read-only || $(<"$results/$room/failed.status") == 0 ]]; then exit 0; fi
done
echo "no success after $room runs" >&2
exit 1
"""

VALUES = {script.name: script.values for script in SCRIPTS_ON_HOSTS}
REASONS = ("No space left on device", "Read-only file system", "File too large", "Wrote only", "is full")


@cache
def namespace(folder: Path) -> tuple[str, ...]:
    """A command that runs another one where it may mount; empty if that isn't possible."""
    for command in (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount")):
        if shutil.which("unshare"):
            mount = [*command, "mount", "-t", "tmpfs", "-o", "nr_blocks=10", "tmpfs", str(folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                return command
    return ()


def succeed(text: str, verb: str, root: Path) -> None:
    """Run a step that must succeed."""
    done = bash(text, verb, "step", "node1", root=root, check=False, has_home=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Case:
    """A step that writes on a host.

    Attributes:
        script: The step's file.
        code: Replacements for the host's tools.
        values: The step's values.
        verb: What runs.
        earlier: Values of an earlier run that succeeded; None if there was none.
        prepare: Creates the host's files.
    """

    script: str
    code: str = ""
    values: dict[str, str] = field(default_factory=dict)
    verb: str = "create"
    earlier: dict[str, str] | None = None
    prepare: Callable[[Path], object] = record

    def text(self, values: dict[str, str], before: str = "") -> str:
        """The step's script; `before` is code that runs first."""
        unset = dict.fromkeys(VALUES[Path(self.script).stem] - {"POD_NETWORK"}, "")
        return with_code(self.script, before + TOOLS + self.code, **(unset | values))

    def host(self, root: Path) -> None:
        """Create the host, as an earlier run has left it."""
        put(root, "etc/hostname", "node1\n")
        self.prepare(root)
        (root / "run").mkdir(exist_ok=True)
        if self.earlier is not None:
            succeed(self.text(self.values | self.earlier), "create", root)
        (root / "run/kubeadm-ipvs.lock").unlink(missing_ok=True)


TOOLS = """
systemctl() { :; }
busctl() { :; }
networkctl() { :; }
package_family() { echo deb; }
pause() { :; }
"""

CLAIM = """
create() { local leftovers=(kube-ipvs0); claim_host; }
remove_leftovers() { :; }
have() { false; }
dpkg-query() { echo 'ii |base-files|1'; }
apt-mark() { :; }
cut() { echo overlay; }
"""

RESTORE = """
choose_packages() { :; }
reset_node() { :; }
restore_firewall() { :; }
remove_packages() { :; }
restore_sysctls() { :; }
unload_modules() { :; }
unit_active() { false; }
have() { false; }
"""

KERNEL = """
module_loaded() { true; }
setenforce() { :; }
systemctl() {
  case $1 in
    list-units) printf '%s loaded active active x\\n' data-swap.swap dev-sda2.swap ;;
    cat) [[ $2 == zramswap.service ]] ;;
  esac
}
"""

FIREWALLD = """
unit_active() { [[ $1 == firewalld ]]; }
cluster_zones() { echo public; }
firewalld_zone() { echo b false; }
"""

DEBS = """
finish_dpkg() { :; }
check_versions() { :; }
have() { [[ $1 == crictl ]]; }
dpkg-query() { :; }
apt_update() { :; }
apt-cache() { echo "kubeadm | $VERSION-1.1 | x"; }
apt-mark() { :; }
apt-get() { if [[ $2 == -s ]]; then printf 'Inst %s (1)\\n' runc kubelet; fi; }
"""

RPMS = """
package_family() { echo rpm; }
check_versions() { :; }
have() { [[ $1 == crictl ]]; }
rpm() { case $* in *gpg-pubkey*) echo gpg-pubkey-9a-65 ;; *--import*) ;; *) return 1 ;; esac; }
dnf() { printf '%s\\n' Installing: ' kubelet x' ' runc x' 'Transaction Summary'; }
"""

CONTAINERD = """
ctr() { :; }
crictl() { :; }
containerd() { echo containerd x v1.7.24; }
"""

KUBEADM = """
kubeadm() {
  local pki=$ROOT/etc/kubernetes/pki kubelet=$ROOT/var/lib/kubelet
  echo "[$1] done"
  case $* in
    certs*) echo '"expirationDate": "2100-01-01T00:00:00Z"' ;;
    'init phase certs apiserver'*)
      { echo "$CERT_SANS" >"$pki/apiserver.crt" && echo "$CERT_SANS" >"$pki/apiserver.key"; } || {
        echo "can't write to $pki"
        return 1
      }
      ;;
    'init phase'* | upgrade*) ;;
    *)
      mkdir -p "$kubelet" && echo new >"$kubelet/config.yaml.new" &&
        mv "$kubelet/config.yaml.new" "$kubelet/config.yaml"
      ;;
  esac
}
reset_node() { rm -f "$HOME_DIR/node.started"; }
kubectl() { :; }
kubelet_healthy() { true; }
request() { true; }
"""

PROXY = """
live_mode() { echo iptables; }
restart_proxy() { :; }
wait_for() { :; }
remove_other_modes() { :; }
other_modes() { :; }
"""


def new_host(root: Path) -> None:
    """A host that isn't claimed, to which the scripts were delivered."""
    put(root, "run/kubeadm-ipvs/scripts.1/claim.sh", "claim\n" * 1000)
    put(root, "run/kubeadm-ipvs/scripts.1/kernel.sh", "kernel\n" * 1000)
    (root / "run/kubeadm-ipvs/scripts").symlink_to("scripts.1")
    (root / "var/lib").mkdir(parents=True)


def selinux_host(root: Path) -> None:
    """A host with SELinux and swap."""
    record(root)
    put(root, "etc/selinux/config", "# mine\nSELINUX=enforcing\n")
    put(root, "etc/systemd/system/data-swap.swap", "[Swap]\nWhat=/data/swap\n")
    put(root, "proc/swaps", "Filename Type Size Used Priority\n")
    put(root, "sys/fs/selinux/enforce", "1\n")
    for name, value in {
        "net/bridge/bridge-nf-call-iptables": 1,
        "net/bridge/bridge-nf-call-ip6tables": 1,
        "net/ipv4/ip_forward": 1,
        "vm/swappiness": 0,
    }.items():
        put(root, f"proc/sys/{name}", f"{value}\n")


def finished_node(root: Path) -> None:
    """A node of an earlier run; an unfinished one would be removed first."""
    record(root)
    for name in ("node.started", "node.done"):
        (home_of(root) / name).touch()
    for name in ("apiserver.crt", "apiserver.key"):
        put(root, f"etc/kubernetes/pki/{name}", f"{name}\n")
    put(root, "etc/kubernetes/kubelet.conf", "mine\n")
    put(root, "var/lib/kubelet/config.yaml", "mine\n")


COPIED = {"etc/containerd/config.toml": "mine", "etc/containerd/certs.d/a/hosts.toml": "mine"} | {
    "etc/crictl.yaml": "mine",
    "etc/selinux/config": "SELINUX=enforcing",
    "etc/default/kubelet": "KUBELET_EXTRA_ARGS=",
}


def changed_host(root: Path) -> None:
    """A host that had containerd before, and whose files are different now; one of them was removed."""
    for path, text in COPIED.items():
        put(root, path, f"{text}\n")
    present = "".join(f"/{path}\n" for path in (*COPIED, "etc/containerd/certs.d"))
    folder = record(
        root,
        present=present,
        absent="/var/lib/kubelet\n",
        units="containerd enabled active\n",
        swaps="",
        holds="",
        image_list="",
        copied="".join(f"{path}\n" for path in COPIED),
    )
    subprocess.run(["tar", "-cpf", folder / "files.tar", "-C", root, *COPIED], check=True)
    for path in COPIED:
        put(root, path, "ours\n")
    (root / "etc/default/kubelet").unlink()
    put(root, "proc/swaps", "Filename Type Size Used Priority\n")


RUNTIME_VALUES = {
    "MIRRORS": "docker.io http://a:5000\nghcr.io http://b:5000",
    "IMAGES": "",
    "SANDBOX_IMAGE": "pause:2",
}
INIT_VALUES = {
    "CONFIG": "new",
    "PATCHES": "a.json\t{}",
    "CERT_SANS": "new.example",
    "CERTIFICATE_DAYS": "30",
    "KUBELET": "new",
    "PROXY": "new",
    "DISABLE_EVICTION": "true",
    "RENEW": "",
    "RENEWAL_TIMER": "true",
    "REPAIR": "now",
}
CLAIM_VALUES = {"OWNER": "dev 4fd1", "ROLE": "worker", "NETWORKS": "pods 10.244.0.0/16"}
KERNEL_VALUES = {"MODE": "ipvs", "SCHEDULER": "rr", "NETWORK_MODULES": "vxlan"}
JOIN_VALUES = {"CONFIG": "new", "KUBELET": "new", "PROXY": "new"}
PACKAGE_VALUES = {
    "MANAGE": "true",
    "VERSION": "1.37.2",
    "REVISION": "*",
    "KEY": "key",
    "KEY_URL": "",
    "REPOSITORY_DEB": "https://r.example/deb/",
    "REPOSITORY_RPM": "https://r.example/rpm/",
}
OPEN = {"FIREWALL": "open", "ROLE": "worker", "ADDRESS": "10.0.0.1", "POD_SUBNET": "10.244.0.0/16"}

CASES = {
    "new claim": Case("steps/claim.sh", CLAIM, CLAIM_VALUES, prepare=new_host),
    "claim": Case("steps/claim.sh", CLAIM, CLAIM_VALUES, prepare=home_of),
    "restore": Case("steps/claim.sh", RESTORE, {"OWNER": "dev 4fd1"}, "delete", prepare=changed_host),
    "kernel": Case("steps/kernel.sh", KERNEL, KERNEL_VALUES, prepare=selinux_host),
    "firewalld": Case("steps/firewall.sh", FIREWALLD, OPEN),
    "no firewall": Case(
        "steps/firewall.sh",
        "systemctl() { [[ $1 != is-enabled ]] || echo enabled; }\n",
        {"FIREWALL": "disable"},
    ),
    "changed debs": Case(
        "steps/packages.sh", DEBS, PACKAGE_VALUES, earlier={"KEY": "old", "VERSION": "1.37.1"}
    ),
    "rpms": Case("steps/packages.sh", RPMS, PACKAGE_VALUES),
    "changed runtime": Case(
        "steps/runtime.sh",
        CONTAINERD,
        RUNTIME_VALUES,
        earlier={"SANDBOX_IMAGE": "pause:1", "MIRRORS": "ghcr.io http://c"},
    ),
    "init": Case("steps/init.sh", KUBEADM, INIT_VALUES),
    "changed init": Case(
        "steps/init.sh",
        KUBEADM,
        INIT_VALUES | {"REPAIR": ""},
        earlier={"CONFIG": "old", "CERT_SANS": "old.example", "KUBELET": "old", "CERTIFICATE_DAYS": "29"},
        prepare=finished_node,
    ),
    "join": Case("steps/join.sh", KUBEADM, JOIN_VALUES),
    "changed join": Case(
        "steps/join.sh", KUBEADM, JOIN_VALUES, earlier={"KUBELET": "old"}, prepare=finished_node
    ),
    "proxy": Case(
        "steps/proxy.sh",
        PROXY,
        {"PROXY": "new", "MODE": "iptables", "READY_SECONDS": "1"}
        | {"NODE_ENDPOINT": "", "SCHEDULER": "", "SERVICE_ADDRESS": ""},
    ),
}


def files(root: Path) -> dict[str, str]:
    """Every file with its text, except those of the fake kernel; a log's text doesn't matter."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(("proc/", "sys/", "run/")):
            found[name] = "" if name.endswith((".log", ".tar")) else path.read_text()
    return found


def is_unfinished(name: str) -> bool:
    """Whether a file may be incomplete: nothing reads it, and the next run replaces it."""
    return any(part in name for part in ("/.kubeadm-ipvs.", ".new")) or name.startswith(
        "var/lib/kubeadm-ipvs.removed/"
    )


def is_list(name: str) -> bool:
    """Whether a file gets lines one by one: checksums, or a part of the record."""
    return name == "var/lib/kubeadm-ipvs/files" or name.startswith("var/lib/kubeadm-ipvs/record/")


def check_nothing_is_damaged(found: dict[str, str], before: dict[str, str], after: dict[str, str]) -> None:
    """Each file is as before or as after a run without limits; of a list, each line is."""
    for name, text in found.items():
        if is_unfinished(name):
            continue
        known = [given[name] for given in (before, after) if name in given]
        if is_list(name):
            lines = {line for given in known for line in given.splitlines(keepends=True)}
            assert set(text.splitlines(keepends=True)) <= lines, name
            assert text or not before.get(name), f"{name} is empty"
        elif known or not name.startswith("var/lib/kubeadm-ipvs/"):
            assert text in known, name
    lost = {name for name in before if name in after and name not in found}
    assert not lost


def same(found: dict[str, str], expected: dict[str, str]) -> bool:
    """Whether two hosts have the same files, and lists with the same lines."""

    def plain(given: dict[str, str]) -> dict[str, object]:
        return {name: sorted(text.splitlines()) if is_list(name) else text for name, text in given.items()}

    return plain(found) == plain(expected)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where the host's file system is. Some files contain this path."""
    folder = tmp_path / "root"
    folder.mkdir()
    yield folder


def reference(case: Case, root: Path, template: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Create the template, and return a host's files before and after a run without limits."""
    case.host(root)
    before = files(root)
    shutil.copytree(root, template, symlinks=True)
    succeed(case.text(case.values), case.verb, root)
    after = files(root)
    shutil.rmtree(root)
    root.mkdir()
    return before, after


LIMITS = [(name, limit) for name in CASES for limit in ("space", "read-only")]
# Creating files is the same in the other steps.
LIMITS += [(name, "inodes") for name in ("new claim", "claim", "restore", "changed runtime")]


def runs_with(limit: str, root: Path, folder: Path, text: str, verb: str) -> list[Path]:
    """Run a text with growing room.

    Args:
        limit: What the host has too little of.
        root: Where the host's file system is.
        folder: A folder with the host in `template`; gets the results.
        text: The text.
        verb: Its verb.

    Returns:
        The results of each run.
    """
    command = namespace(folder.parent)
    if not command:
        pytest.skip("neither root nor a user namespace may mount a tmpfs here")
    (folder / "script").write_text(text)
    arguments = (limit, root, folder / "template", folder / "results", folder / "script", verb)
    driver = [*command, "bash", "-c", DRIVER, "driver", *map(str, arguments)]
    done = subprocess.run(driver, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return sorted((folder / "results").iterdir(), key=lambda path: int(path.name))


@pytest.mark.parametrize(("name", "limit"), LIMITS)
def test_no_write_fails_silently(tmp_path: Path, root: Path, name: str, limit: str) -> None:
    case = CASES[name]
    before, after = reference(case, root, tmp_path / "template")
    runs = runs_with(limit, root, tmp_path, case.text(case.values), case.verb)
    for run in runs:
        status, messages = (run / "failed.status").read_text(), (run / "failed.err").read_text()
        failed = run / "failed"
        check_nothing_is_damaged(files(failed), before, after)
        if status == "0\n":
            assert same(files(failed), after)
        else:
            assert messages.count("FAILED") == 1, messages
            assert str(root) in messages, messages
            assert any(reason in messages for reason in REASONS), messages
        assert (run / "again.status").read_text() == "0\n", (run / "again.err").read_text()
        assert same(files(run / "again"), after)
    assert len(runs) > 1 or limit == "read-only"


@pytest.mark.parametrize("limit", ["space", "inodes", "read-only"])
def test_failed_delivery_keeps_the_old_scripts(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    old = Program(tmp_path / "old", monkeypatch, {"one": "create() { echo old; }\n"})
    record(root)
    deliver(old, root)
    shutil.copytree(root, tmp_path / "template", symlinks=True)
    new = Program(tmp_path / "new", monkeypatch, {"one": "create() { echo new; }\n"})
    shutil.rmtree(root)
    root.mkdir()
    runs = runs_with(limit, root, tmp_path, new.delivery.text(OWNER), "deliver")
    for run in runs:
        is_done = (run / "failed.status").read_text() == "0\n"
        (run / "failed/run").mkdir(exist_ok=True)
        assert probe(run / "failed") == (new if is_done else old).delivery.digest
        assert is_done or any(reason in (run / "failed.err").read_text() for reason in REASONS)
        assert (run / "again.status").read_text() == "0\n"
        assert probe(run / "again") == new.delivery.digest
        assert {path.name for path in home_of(run / "again").iterdir()} == {
            "record",
            "scripts",
            f"scripts.{new.delivery.digest}",
        }
    assert len(runs) > 1 or limit == "read-only"


@pytest.mark.parametrize("name", CASES)
def test_quota_fails_the_step(tmp_path: Path, root: Path, name: str) -> None:
    """A limit on the size of files, which needs no mount, refuses each write as a quota does."""
    case = CASES[name]
    before, after = reference(case, root, tmp_path / "template")
    shutil.copytree(tmp_path / "template", root, symlinks=True, dirs_exist_ok=True)
    text = case.text(case.values, "trap '' XFSZ\nulimit -f 0\n")
    done = bash(text, case.verb, "step", "node1", root=root, check=False, has_home=False)
    assert done.returncode, done.stderr
    assert "File too large" in done.stderr or "Wrote only" in done.stderr
    check_nothing_is_damaged(files(root), before, after)
    succeed(case.text(case.values), case.verb, root)
    assert same(files(root), after)
