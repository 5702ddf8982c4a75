"""The step `firewall`, and restoring the firewall."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, record, run, stdout_of

FIREWALL = "steps/firewall.sh"
RESET = "lib/reset/firewall.sh"


def test_source_zone_with_the_hosts_network_is_found(tmp_path: Path) -> None:
    zones = (
        'a{sa{sas}} 4 "public" 1 "interfaces" 2 "eth0" "eth1" '
        '"internal" 2 "interfaces" 1 "eth2" "sources" 2 "192.0.2.0/24" "10.0.0.0/8" '
        '"dmz" 1 "sources" 2 "10.9.0.0/16" "ipset:theirs" "home" 1 "sources" 1 "10.0.0.11"'
    )
    code = f"firewalld_call() {{ echo '{zones}'; }}\ncreate() {{ source_zones; }}\n"
    assert stdout_of(FIREWALL, code, tmp_path, ADDRESS="10.0.0.11").split() == ["internal", "home"]


RULESET = """table ip filter {
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


def test_existing_rules_that_may_block_are_printed(tmp_path: Path) -> None:
    put(tmp_path, "ruleset", RULESET)
    code = f"nft() {{ cat {tmp_path}/ruleset; }}\nhave() {{ true; }}\ncreate() {{ warn_of_other_rules; }}\n"
    message = run(FIREWALL, code, tmp_path).stderr
    assert "may block the cluster's ports" in message
    assert message.rstrip().endswith(": counter packets 0 bytes 0 reject with icmp host-prohibited")


@pytest.mark.parametrize(
    ("active", "reloaded"),
    [
        ("public (default, active)\\n  interfaces: eth0\\n  ports: 80/tcp", True),
        ("public\\n  ports: 22/tcp", False),
    ],
)
def test_firewalld_is_reloaded_only_if_nothing_is_lost(tmp_path: Path, active: str, reloaded: bool) -> None:
    code = f"""
busctl() {{ case "$*" in *FirewallBackend) echo 's "nftables"' ;; *) echo 'a(sssias) 0' ;; esac; }}
firewall-cmd() {{
  case "$*" in
    *--reload) touch {tmp_path}/reloaded ;;
    --permanent*) printf 'public (default)\\n  interfaces: \\n  ports: 80/tcp\\n' ;;
    *) printf '{active}\\n' ;;
  esac
}}
create() {{ reload_firewalld; }}
"""
    run(RESET, code, tmp_path)
    assert (tmp_path / "reloaded").exists() is reloaded


def test_firewalld_additions_are_removed_once(tmp_path: Path) -> None:
    record(tmp_path, firewalld="runtime public Port 10250 tcp\npermanent trusted Interface cni0\n")
    code = """
unit_active() { true; }
firewalld_zone() { echo "$*" >&2; if [[ $3 == query* ]]; then echo "b true"; fi; }
reload_firewalld() { echo reloaded >&2; }
create() { restore_firewalld; }
"""
    assert run(RESET, code, tmp_path).stderr.splitlines() == [
        "runtime public queryPort ss 10250 tcp",
        "runtime public removePort ss 10250 tcp",
        "permanent trusted queryInterface s cni0",
        "permanent trusted removeInterface s cni0",
        "reloaded",
    ]
    assert run(RESET, code, tmp_path).stderr == ""


UFW = """
exec 5>&1
have() { true; }
# Like ufw's own parser: after `delete` comes a rule's action, and `route` isn't one.
ufw() {
  echo "ufw $*" >&5
  case $* in '--force delete '[!r]* | '--force route delete '*) ;; *) return 1 ;; esac
}
create() { restore_ufw; }
"""


def test_ufw_rules_are_deleted_in_ufws_syntax(tmp_path: Path) -> None:
    record(tmp_path, ufw="allow 10250/tcp\nallow 30000:32767/tcp\nroute allow from 10.244.0.0/16\n")
    assert stdout_of(RESET, UFW, tmp_path).splitlines() == [
        "ufw --force delete allow 10250/tcp",
        "ufw --force delete allow 30000:32767/tcp",
        "ufw --force route delete allow from 10.244.0.0/16",
    ]


def test_removed_ufw_is_skipped(tmp_path: Path) -> None:
    record(tmp_path, ufw="allow 10250/tcp\n")
    done = run(RESET, UFW.replace("true", "[[ $1 != ufw ]]"), tmp_path)
    assert done.stdout + done.stderr == ""


# A systemctl that keeps each unit's state in a file: ENABLED ACTIVE.
SYSTEMCTL = """
systemctl() {
  local verb=$1 unit=$ROOT/units/${*: -1} enabled active
  [[ -e $unit ]] || return 4
  read -r enabled active <"$unit"
  case $verb in
    cat) ;;
    is-enabled) [[ $* == *--quiet* ]] || echo $enabled; [[ $enabled == enabled ]] ;;
    is-active) [[ $* == *--quiet* ]] || echo $active; [[ $active == active ]] ;;
    enable) echo enabled $active >"$unit" ;;
    start) echo $enabled active >"$unit" ;;
    disable) echo disabled inactive >"$unit" ;;
  esac
}
restore_firewalld() { :; }
remove_unchanged_zones() { :; }
open_firewall() { :; }
have() { false; }
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with ufw, and with firewalld started by hand."""
    put(tmp_path, "units/ufw", "enabled active\n")
    put(tmp_path, "units/firewalld", "disabled active\n")
    record(tmp_path)
    return tmp_path


def units_of(host: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (host / "units").iterdir()}


def apply(host: Path, setting: str) -> None:
    run(FIREWALL, SYSTEMCTL, host, FIREWALL=setting)


def restore(host: Path) -> str:
    return run(RESET, SYSTEMCTL + "create() { restore_firewall; }\n", host).stderr


def test_disabled_firewalls_are_restored(host: Path) -> None:
    before = units_of(host)
    apply(host, "disable")
    assert set(units_of(host).values()) == {"disabled inactive"}
    apply(host, "disable")
    restore(host)
    assert units_of(host) == before


def test_disabled_firewalls_start_again_when_opened(host: Path) -> None:
    before = units_of(host)
    apply(host, "disable")
    apply(host, "open")
    assert units_of(host) == before


@pytest.mark.parametrize("setting", ["open", "leave"])
def test_firewall_stopped_by_its_owner_stays_stopped(host: Path, setting: str) -> None:
    apply(host, setting)
    (host / "units/ufw").write_text("disabled inactive\n")
    restore(host)
    assert units_of(host)["ufw"] == "disabled inactive"


def test_uninstalled_firewall_is_reported_and_skipped(host: Path) -> None:
    apply(host, "disable")
    (host / "units/ufw").unlink()
    assert "ufw was stopped for the cluster and is no longer installed" in restore(host)
    assert units_of(host) == {"firewalld": "disabled active"}
