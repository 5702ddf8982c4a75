"""What differs on a host from what was set up: found, put in a table, and repaired by what `up` runs."""

from __future__ import annotations

import base64
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import UserError
from model import drift
from model.drift import Difference
from model.settings import Settings, load
from model.steps import STEPS
from tests.fast import test_graph
from tests.fast.test_script_parts import part
from tools import check
from tools.reader import Reader

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


REPAIRING = {step.name for step in STEPS.values() if step.repairs}


def certificate(days: float) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    end = NOW + dt.timedelta(days=days)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - dt.timedelta(days=365), end)
    der = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return f"certificate\t/pki/apiserver.crt\t{base64.b64encode(der).decode()}"


def record(home: Path) -> None:
    (home / "record").mkdir()
    (home / "owner").write_text("dev\n")


def test_a_file_that_was_edited_or_is_gone_is_found_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    home, etc = tmp_path / "home", tmp_path / "etc"
    home.mkdir()
    record(home)
    body = f"""
create() {{
  for name in kept edited gone ours; do echo "$name" | put_file {etc}/$name 0644 || :; done
  echo again | put_file {etc}/kept 0644 || :
  echo gone | put_file {etc}/ours 0644 || :
  remove_file {etc}/ours
  echo secret | put_file "$HOME_DIR/inside" 0600 || :
  echo other >{etc}/edited
  rm {etc}/gone
  check_files
}}
"""
    found = part("check.sh", body, home).splitlines()
    assert [line.split("\t")[0] for line in found] == [f"{etc}/edited", f"{etc}/gone"]
    assert "edited on 20" in found[0]
    assert found[1].endswith("missing")


def test_a_host_that_was_given_back_is_one_difference(tmp_path: Path) -> None:
    assert part("check.sh", "", tmp_path, STACK="dev") == "host\ta node of the stack dev\tnot set up\n"


def test_packages_are_asked_for_version_and_hold(tmp_path: Path) -> None:
    body = """
family() { echo deb; }
dpkg-query() { if [[ ${*: -1} == kubectl ]]; then echo 1.36.0-1.1; else echo 1.37.2-1.1; fi; }
apt-mark() { printf 'kubelet\\nkubectl\\n'; }
create() { check_packages; }
"""
    assert part("check.sh", body, tmp_path, VERSION="1.37.2", MANAGE="true").splitlines() == [
        "package kubeadm\theld\tnot held",
        "package kubectl\t1.37.2\t1.36.0-1.1",
    ]
    assert part("check.sh", body, tmp_path, VERSION="1.37.2", MANAGE="false") == ""


@pytest.mark.parametrize(
    ("mode", "live", "scheduler", "found"),
    [
        ("ipvs", "ipvs", "rr", []),
        ("ipvs", "iptables", "rr", ["kube-proxy's mode\tipvs\tiptables"]),
        ("ipvs", "", "lc", ["kube-proxy's mode\tipvs\tno answer", "IPVS scheduler\trr\tlc"]),
        ("nftables", "nftables", "lc", []),
    ],
)
def test_the_live_proxy_mode_and_scheduler_are_compared(
    tmp_path: Path, mode: str, live: str, scheduler: str, found: list[str]
) -> None:
    body = f"""
fetch() {{ printf '{live}'; }}
ipvsadm() {{ printf -- '-A -t 10.0.0.1:80 -s wrr\\n-A -t 10.96.0.1:443 -s {scheduler}\\n'; }}
create() {{ check_proxy; }}
"""
    values = {"MODE": mode, "SCHEDULER": "rr", "SERVICE_ADDRESS": "10.96.0.1"}
    assert part("check.sh", body, tmp_path, **values).splitlines() == found


def test_only_the_first_certificate_of_a_file_is_handed_out_and_no_key(tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nQUJD\nREVG\n-----END CERTIFICATE-----\n"
        "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----\n"
    )
    script = f"create() {{ certificate_text <{tmp_path}/both.pem; }}\n"
    assert part("check.sh", script, tmp_path) == "QUJDREVG"


def test_a_certificate_that_ends_within_thirty_days_is_a_difference() -> None:
    assert drift.differences(certificate(31), NOW) == ()
    (soon,) = drift.differences(certificate(29.5), NOW)
    assert soon == Difference("/pki/apiserver.crt", "valid for 30 days", "ends on 2026-12-24, in 29 days")
    (past,) = drift.differences(certificate(-1), NOW)
    assert past.found == "ended on 2026-11-24"


@pytest.mark.parametrize("text", ["", "bm9uZQ==", "no base64"])
def test_a_certificate_that_can_not_be_read_is_a_difference_beside_the_others(text: str) -> None:
    printed = f"certificate\t/pki/ca.crt\t{text}\nswap\toff\ton: /dev/vdb\n"
    assert drift.differences(printed, NOW) == (
        Difference("/pki/ca.crt", "a certificate", "none that can be read"),
        Difference("swap", "off", "on: /dev/vdb"),
    )


def test_a_line_that_is_no_finding_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line"):
        drift.differences("Warning: something", NOW)


def test_the_table_has_a_row_for_each_difference_and_names_the_other_hosts() -> None:
    hosts = {"master": [], "node1": [Difference("swap", "off", "on: /dev/vdb")]}
    assert drift.table(hosts, {"node2": "no SSH server answers"}).splitlines() == [
        "HOST   WHAT  SET UP AS  FOUND",
        "node1  swap  off        on: /dev/vdb",
        "master: as it was set up",
        "node2: not looked at: no SSH server answers",
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(test_graph.raw_settings(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"node1": ()}, 0),
        ({"node1": (Difference("swap", "off", "on"),)}, 2),
        ({"node1": UserError("no answer"), "node2": (Difference("swap", "off", "on"),)}, 1),
    ],
)
def test_the_exit_status_is_for_a_scheduler(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    status: int,
) -> None:
    async def look(_: Settings, host: Any, stack: str) -> tuple[Difference, ...]:
        result = found.get(host.name, ())
        if isinstance(result, UserError):
            raise result
        assert isinstance(result, tuple)
        return result

    monkeypatch.setattr(check, "settings_of", lambda stack: settings)
    monkeypatch.setattr(check, "look", look)
    assert check.main(["--stack", "dev"]) == status
    assert ("repair: '" in capsys.readouterr().out) == any(isinstance(f, tuple) and f for f in found.values())
    assert check.main(["--stack", "dev", "--json"]) == status
    assert set(json.loads(capsys.readouterr().out)) == {"differences", "notLookedAt"}


def test_a_host_whose_answer_can_not_be_understood_keeps_nobody_from_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {"master": "", "node1": "Warning: something\n", "node2": "swap\toff\ton\n"}

    async def ask(reader: Reader, *_: Any) -> str:
        return printed[reader.host.name]

    monkeypatch.setattr(check, "settings_of", lambda stack: settings)
    monkeypatch.setattr(Reader, "ask", ask)
    assert check.main(["--stack", "dev"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "node2  swap  off        on" in said
    assert "master: as it was set up" in said
    [line] = [line for line in said if line.startswith("node1: not looked at: ")]
    assert "not a line of check.sh: Warning: something" in line


@pytest.mark.parametrize(("host", "without"), [("master", {"join"}), ("node1", {"init", "kubeconfig"})])
def test_a_repair_runs_every_step_of_that_host_again_and_of_no_other(
    tmp_path: Path, host: str, without: set[str]
) -> None:
    raw = test_graph.raw_settings(tmp_path)
    before = test_graph.run(load(raw, tmp_path))
    next(item for item in raw["hosts"] if item["name"] == host)["repair"] = "2026-11-25"
    after = test_graph.run(load(raw, tmp_path))
    changed = {
        name
        for name in test_graph.commands(before)
        if "stdin" in before.inputs[name] and after.inputs[name]["stdin"] != before.inputs[name]["stdin"]
    }
    # Each of these runs is one in which nothing was proved before: test_graph.py has when else it changes.
    changed.remove("expected-services")
    steps = {f"{host}-{step}" for step in REPAIRING - without}
    # Then it must be Ready, and what its kernel balances is proved again.
    shown = {f"{host}-node", f"{host}-verification"}
    assert changed == steps | shown
    for name in changed:
        assert "REPAIR=2026-11-25" in after.inputs[name]["stdin"]
        assert after.inputs[name].get("triggers") == before.inputs[name].get("triggers"), (
            "nothing is replaced"
        )
