"""Finding, showing and repairing drift: differences between a host's state and its setup."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from model import drift
from model.drift import Difference
from model.settings import PREFIX, Settings
from model.settings_file import load
from model.steps import STEPS
from tests.fast.certificates import self_signed
from tests.fast.recorded_run import commands, run
from tests.fast.sample_settings import raw_settings
from tests.fast.shell import home_of, put, record, stdout_of
from tools import check
from tools.__main__ import main
from tools.reader import Reader

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
REPAIRING = {step.name for step in STEPS.values() if step.repairs}


def certificate(days: float) -> str:
    _, pem = self_signed("kube-apiserver", end=NOW + dt.timedelta(days=days), days=365)
    encoded = "".join(pem.decode().splitlines()[1:-1])
    return f"certificate\t/pki/apiserver.crt\t{encoded}"


def test_edited_and_missing_files_are_differences(tmp_path: Path) -> None:
    etc = put(tmp_path, "/etc/edited").parent
    record(tmp_path)
    body = f"""
create() {{
  for name in kept edited gone ours; do put_file {etc}/$name 0644 <<<"$name"; done
  put_file {etc}/kept 0644 <<<again
  put_file {etc}/ours 0644 <<<gone
  remove_file {etc}/ours
  put_file "$HOME_DIR/inside" 0600 <<<secret
  echo other >{etc}/edited
  rm {etc}/gone
  check_files
}}
"""
    found = stdout_of("steps/check.sh", body, tmp_path).splitlines()
    assert [line.split("\t")[0] for line in found] == [f"{etc}/edited", f"{etc}/gone"]
    assert "edited on 20" in found[0]
    assert found[1].endswith("missing")


@pytest.mark.parametrize(
    ("owner", "found"),
    [
        ("dev 4fd1\n", None),
        ("dev\n", None),
        ("dev 77ab\n", "of the stack dev 77ab"),
        ("prod 4fd1\n", "of the stack prod 4fd1"),
        ("", "/owner is empty"),
    ],
)
def test_owner_is_compared_with_its_id(tmp_path: Path, owner: str, found: str | None) -> None:
    record(tmp_path)
    (home_of(tmp_path) / "owner").write_text(owner)
    (home_of(tmp_path) / "node.done").touch()
    body = """
for name in $(compgen -A function check_) print_certificates; do eval "$name() { :; }"; done
"""
    lines = stdout_of("steps/check.sh", body, tmp_path, STACK="dev 4fd1").splitlines()
    assert [line.endswith(found or "") for line in lines] == ([True] if found else [])


@pytest.mark.parametrize("text", ["", "e3b0c44298fc1c149afbf4c8996fb924\n"])
def test_damaged_checksums_are_a_difference(tmp_path: Path, text: str) -> None:
    file = home_of(tmp_path) / "files"
    file.write_text(text)
    found = stdout_of("steps/check.sh", "create() { check_files; }\n", tmp_path)
    assert found == f"{file}\ta checksum in each line\tempty or damaged\n"


def test_reset_host_is_one_difference(tmp_path: Path) -> None:
    assert (
        stdout_of("steps/check.sh", "", tmp_path, STACK="dev")
        == "host\ta node of the stack dev\tnot set up\n"
    )


def test_package_versions_and_holds_are_compared(tmp_path: Path) -> None:
    body = """
package_family() { echo deb; }
dpkg-query() { if [[ ${*: -1} == kubectl ]]; then echo 1.36.0-1.1; else echo 1.37.2-1.1; fi; }
apt-mark() { printf 'kubelet\\nkubectl\\n'; }
create() { check_packages; }
"""
    assert stdout_of("steps/check.sh", body, tmp_path, VERSION="1.37.2", MANAGE="true").splitlines() == [
        "package kubeadm\theld\tnot held",
        "package kubectl\t1.37.2\t1.36.0-1.1",
    ]
    assert stdout_of("steps/check.sh", body, tmp_path, VERSION="1.37.2", MANAGE="false") == ""


@pytest.mark.parametrize(
    ("mode", "live", "scheduler", "found"),
    [
        ("ipvs", "ipvs", "rr", []),
        ("ipvs", "iptables", "rr", ["kube-proxy's mode\tipvs\tiptables"]),
        ("ipvs", "", "lc", ["kube-proxy's mode\tipvs\tno response", "IPVS scheduler\trr\tlc"]),
        ("nftables", "nftables", "lc", []),
    ],
)
def test_live_proxy_mode_and_scheduler_are_compared(
    tmp_path: Path, mode: str, live: str, scheduler: str, found: list[str]
) -> None:
    body = f"""
fetch() {{ printf '{live}'; }}
ipvsadm() {{ printf -- '-A -t 10.0.0.1:80 -s wrr\\n-A -t 10.96.0.1:443 -s {scheduler}\\n'; }}
create() {{ check_proxy; }}
"""
    values = {"MODE": mode, "SCHEDULER": "rr", "SERVICE_ADDRESS": "10.96.0.1"}
    assert stdout_of("steps/check.sh", body, tmp_path, **values).splitlines() == found


RULES = {
    "ADDRESS": "10.0.0.1",
    "ROLE": "worker",
    "POD_SUBNET": "10.244.0.0/16",
    "HOST_SOURCES": "10.0.0.1/32",
    "API_SOURCES": "",
    "NODE_PORT_SOURCES": "any",
    "FIREWALL": "open",
}
NODE_PORTS = "allow 30000:32767/tcp\nallow 30000:32767/udp\n"
PODS = "allow from 10.244.0.0/16\nroute allow from 10.244.0.0/16\nroute allow to 10.244.0.0/16\n"
KUBELET = "allow from 10.0.0.1 to any port 10250 proto tcp"
VXLAN = "allow from 10.0.0.1 to any port 8472 proto udp"


@pytest.mark.parametrize(
    ("rules", "recorded", "found"),
    [
        (f"{KUBELET}\n{VXLAN}\n", "", []),
        (f"{KUBELET}\n{VXLAN} comment 'theirs'\n", "", []),
        # A rule of the user that contains ours, and one for a host that has left.
        (f"{KUBELET} extra\n{VXLAN}\n", "", [f"ufw\t{KUBELET}\tnot allowed"]),
        (
            f"{KUBELET}\n{VXLAN}\n",
            "allow from 10.0.0.9 to any port 10250 proto tcp\n",
            ["ufw\tnot allowed\tallow from 10.0.0.9 to any port 10250 proto tcp"],
        ),
    ],
)
def test_rules_of_ufw_are_compared_as_a_whole(
    tmp_path: Path, rules: str, recorded: str, found: list[str]
) -> None:
    put(tmp_path, "rules", rules + NODE_PORTS + PODS)
    record(tmp_path, ufw=recorded)
    body = """
unit_active() { false; }
have() { [[ $1 == ufw ]]; }
ufw() { if [[ $1 == status ]]; then echo 'Status: active'; else sed 's/^/ufw /' "$ROOT/rules"; fi; }
create() { check_firewall; }
"""
    assert stdout_of("steps/check.sh", body, tmp_path, **RULES).splitlines() == found


def test_rules_of_firewalld_are_compared(tmp_path: Path) -> None:
    gone = 'rule family="ipv4" source address="10.0.0.9" port port="8472" protocol="udp" accept'
    record(tmp_path, firewalld=f"runtime public RichRule {gone}\npermanent public Port 8472 udp\n")
    body = """
unit_active() { true; }
cluster_zones() { echo public; }
firewalld_zone() {
  echo -n 'as 4'
  case $3 in
    getRichRules)
      [[ $1 != permanent ]] || printf ' "%s"' \
        'rule family=\\"ipv4\\" source address=\\"10.0.0.1\\" port port=\\"8472\\" protocol=\\"udp\\" accept'
      printf ' "%s"' 'rule port port=\\"30000-32767\\" protocol=\\"tcp\\" accept' \
        'rule port port=\\"30000-32767\\" protocol=\\"udp\\" accept' \
        'rule family=\\"ipv4\\" source address=\\"10.0.0.1\\" port port=\\"10250\\" protocol=\\"tcp\\" accept'
      ;;
    getInterfaces) echo ' "cni0"' ;;
    getSources) echo ' "10.244.0.0/16"' ;;
  esac
}
create() { check_firewall; }
"""
    assert stdout_of("steps/check.sh", body, tmp_path, **RULES).splitlines() == [
        "firewalld, zone trusted (permanent)\tInterface flannel.1\tnot allowed",
        'firewalld, zone public (runtime)\trule family="ipv4" source address="10.0.0.1" port port="8472" '
        'protocol="udp" accept\tnot allowed',
        "firewalld, zone trusted (runtime)\tInterface flannel.1\tnot allowed",
        "firewalld, zone public (permanent)\tnot allowed\tPort 8472 udp",
        f"firewalld, zone public (runtime)\tnot allowed\t{gone}",
    ]


@pytest.mark.parametrize(
    ("address", "nodes", "routes", "found"),
    [
        ("10.244.0.0/32", 2, [1, 2], ""),
        ("10.244.0.0/32", 2, [2], "routes to other nodes' pods\t2\t1, none to 10.244.1.0"),
        ("10.244.0.0/32", 1, [], "routes to other nodes' pods\t1\t0, none to 10.244.1.0"),
        ("10.244.0.0/32", 0, [], ""),
        ("", 0, [], "flannel.1\tan address\tnone"),
    ],
)
def test_missing_pod_routes_are_differences(
    tmp_path: Path, address: str, nodes: int, routes: list[int], found: str
) -> None:
    """NetworkManager and systemd-networkd may remove them."""
    put(tmp_path, "sys/class/net/flannel.1/address")
    numbers = range(1, nodes + 1)
    put(tmp_path, "fdb", "".join(f"02::{n} dst 10.0.0.{n} self permanent\n" for n in numbers))
    put(tmp_path, "neigh", "".join(f"10.244.{n}.0 lladdr 02::{n} PERMANENT\n" for n in numbers))
    put(tmp_path, "routes", "".join(f"10.244.{n}.0/24 via 10.244.{n}.0 onlink\n" for n in routes))
    body = f"""
ip() {{
  case $* in
    *address*) [[ -z '{address}' ]] || echo '5: flannel.1 inet {address}' ;;
    *route*) cat "$ROOT/routes" ;;
    *neigh*) cat "$ROOT/neigh" ;;
  esac
}}
bridge() {{ cat "$ROOT/fdb"; }}
create() {{ check_pod_routes; }}
"""
    printed = stdout_of("steps/check.sh", body, tmp_path, POD_SUBNET="10.244.0.0/16")
    assert printed.splitlines() == ([found] if found else [])


def test_only_a_files_first_certificate_is_printed(tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nQUJD\nREVG\n-----END CERTIFICATE-----\n"
        "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----\n"
    )
    script = f"create() {{ certificate_text <{tmp_path}/both.pem; }}\n"
    assert stdout_of("steps/check.sh", script, tmp_path) == "QUJDREVG"


def test_certificate_that_expires_soon_is_a_difference() -> None:
    assert drift.differences(certificate(31), NOW, 30) == ()
    (soon,) = drift.differences(certificate(29.5), NOW, 30)
    assert soon == Difference("/pki/apiserver.crt", "valid for 30 days", "expires on 2026-12-24, in 29 days")
    assert drift.differences(certificate(29.5), NOW, 29) == ()
    (past,) = drift.differences(certificate(-1), NOW, 30)
    assert past.found == "expired on 2026-11-24"


@pytest.mark.parametrize("text", ["", "bm9uZQ==", "no base64"])
def test_unreadable_certificate_is_a_difference(text: str) -> None:
    printed = f"certificate\t/pki/ca.crt\t{text}\nswap\toff\ton: /dev/vdb\n"
    assert drift.differences(printed, NOW, 30) == (
        Difference("/pki/ca.crt", "a certificate", "unreadable"),
        Difference("swap", "off", "on: /dev/vdb"),
    )


def test_unexpected_output_is_refused() -> None:
    with pytest.raises(ValueError, match="unexpected output"):
        drift.differences("Warning: something", NOW, 30)


def test_table_covers_all_hosts() -> None:
    hosts = {"master": [], "node1": [Difference("swap", "off", "on: /dev/vdb")]}
    assert check.table(hosts, {"node2": "no SSH server answers"}).splitlines() == [
        "HOST   WHAT  EXPECTED  FOUND",
        "node1  swap  off       on: /dev/vdb",
        "master: no differences",
        "node2: could not be checked: no SSH server answers",
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(raw_settings(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"node1": ()}, 0),
        ({"node1": (Difference("swap", "off", "on"),)}, 2),
        ({"node1": UserError("no answer"), "node2": (Difference("swap", "off", "on"),)}, 1),
    ],
)
def test_exit_status_distinguishes_differences_from_failures(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    status: int,
) -> None:
    async def check_host(_: Settings, host: Any, owner: str) -> tuple[Difference, ...]:
        result = found.get(host.name, ())
        if isinstance(result, UserError):
            raise result
        assert isinstance(result, tuple)
        return result

    monkeypatch.setattr(check, "settings_of", lambda stack: settings)
    monkeypatch.setattr(check, "owner_of", lambda stack: "dev 4fd10a2b")
    monkeypatch.setattr(check, "check_host", check_host)
    assert main(["check", "--stack", "dev"]) == status
    assert ("repair: '" in capsys.readouterr().out) == any(isinstance(f, tuple) and f for f in found.values())
    assert main(["check", "--stack", "dev", "--json"]) == status
    assert set(json.loads(capsys.readouterr().out)) == {"differences", "notChecked"}


def test_unexpected_output_doesnt_hide_other_hosts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {"master": "", "node1": "Warning: something\n", "node2": "swap\toff\ton\n"}

    async def run_step(reader: Reader, *_: Any) -> str:
        return printed[reader.host.name]

    monkeypatch.setattr(check, "settings_of", lambda stack: settings)
    monkeypatch.setattr(check, "owner_of", lambda stack: "dev 4fd10a2b")
    monkeypatch.setattr(Reader, "run", run_step)
    assert main(["check", "--stack", "dev"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "node2  swap  off       on" in lines
    assert "master: no differences" in lines
    [line] = [line for line in lines if line.startswith("node1: could not be checked: ")]
    assert "unexpected output of check.sh: Warning: something" in line


CLUSTER = "kubeadm-ipvs:index:Cluster"


def resource(name: str, type_: str = "pulumi:index:Stash", **outputs: str) -> dict[str, Any]:
    return {
        "urn": f"urn:pulumi:now::p::kubeadm-ipvs:index:Cluster${type_}::{name}",
        "type": type_,
        "outputs": outputs,
    }


@pytest.mark.parametrize(
    ("stack", "resources", "owner"),
    [
        ("now", [resource("x-desired", output="1"), resource("owner", output="before 4fd1")], "before 4fd1"),
        ("org/p/now", [resource("owner", output="before 4fd1")], "before 4fd1"),
        # A stack that was never updated, or only by a version whose owners were names.
        ("now", None, "now"),
        ("org/p/now", [resource("owner", "command:remote:Command", output="x y")], "now"),
    ],
)
def test_hosts_are_compared_with_the_owner_in_the_state(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    stack: str,
    resources: list[dict[str, Any]] | None,
    owner: str,
) -> None:
    fake_pulumi(tmp_path, monkeypatch, json.dumps({"deployment": {"resources": resources}}))
    found = check.owner_of(stack)
    assert drift.values(settings, settings.hosts[0], found)["STACK"] == owner
    assert (tmp_path / "arguments").read_text() == f"stack export --stack {stack} --non-interactive\n"


@pytest.mark.parametrize(
    ("resources", "version"),
    [
        ([{"type": CLUSTER, "urn": f"{CLUSTER}::dev", "inputs": {"kubernetesVersion": "1.36.3"}}], "1.36.3"),
        ([resource("owner", output="now 4fd10a2b")], None),
    ],
)
def test_hosts_are_compared_with_the_version_in_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: list[dict[str, Any]], version: str | None
) -> None:
    fake_pulumi(tmp_path, monkeypatch, json.dumps({"deployment": {"resources": resources}}))
    assert check.version_of("now") == version


def test_only_an_unwritten_version_comes_from_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_settings(tmp_path)
    monkeypatch.setattr(check, "version_of", lambda stack: "1.36.3")
    for cluster, version in (({}, "1.36.3"), ({"kubernetesVersion": "1.35.1"}, "1.35.1")):
        config = {f"{PREFIX}{name}": {"value": json.dumps(value)} for name, value in raw.items()}
        config[f"{PREFIX}cluster"] = {"value": json.dumps(cluster)}
        fake_pulumi(tmp_path, monkeypatch, json.dumps(config))
        assert check.settings_of("now").cluster.kubernetes_version == version


@pytest.mark.parametrize("state", ["", "[]", '{"deployment": 1}'])
def test_unreadable_state_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    fake_pulumi(tmp_path, monkeypatch, state)
    with pytest.raises(UserError, match="state of the stack now can't be read"):
        check.owner_of("now")


def fake_pulumi(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    program = folder / "pulumi"
    (folder / "state.json").write_text(state)
    program.write_text(f'#!/bin/sh\necho "$*" > {folder}/arguments\ncat {folder}/state.json\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_next_move_names_the_stacks_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run_step(*_: Any) -> str:
        return "swap\toff\ton\n"

    monkeypatch.setattr(check, "settings_of", lambda stack: settings)
    monkeypatch.setattr(check, "owner_of", lambda stack: "before 4fd10a2b")
    monkeypatch.setattr(Reader, "run", run_step)
    assert main(["check", "--stack", "org/p/now"]) == 2
    assert "set `repair` in Pulumi.now.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(("host", "without"), [("master", {"join"}), ("node1", {"init"})])
def test_repair_repeats_all_steps_of_its_host(tmp_path: Path, host: str, without: set[str]) -> None:
    raw = raw_settings(tmp_path)
    before = run(load(raw, tmp_path))
    next(item for item in raw["hosts"] if item["name"] == host)["repair"] = "2026-11-25"
    after = run(load(raw, tmp_path))
    changed = {
        name
        for name in commands(before)
        if "stdin" in before.inputs[name] and after.inputs[name]["stdin"] != before.inputs[name]["stdin"]
    }
    # It changes in every run until a verification succeeds (see test_graph.py).
    changed.remove("expected-services")
    steps = {f"{host}-{step}" for step in REPAIRING - without}
    # Afterwards the node must become Ready, and the host is verified again.
    assert changed == steps | {"nodes", f"{host}-verification"}
    for name in steps:
        assert "REPAIR=2026-11-25" in after.inputs[name]["stdin"]
    for name in changed:
        assert after.inputs[name].get("triggers") == before.inputs[name].get("triggers"), (
            "nothing is replaced"
        )
