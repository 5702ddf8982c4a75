"""The step `firewall`, and restoring the firewall."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fast.shell import home_of, put, record, run, stdout_of

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


def warning(root: Path, code: str) -> str:
    message = run(FIREWALL, f"{code}\ncreate() {{ warn_of_other_rules; }}\n", root).stderr
    return message.partition("(docs/own-machines.md lists what it needs): ")[2].strip()


def test_existing_rules_that_may_block_are_printed(tmp_path: Path) -> None:
    put(tmp_path, "ruleset", RULESET)
    assert warning(tmp_path, f"nft() {{ cat {tmp_path}/ruleset; }}\nhave() {{ true; }}") == (
        "chain INPUT (input): counter packets 0 bytes 0 reject with icmp host-prohibited; "
        "chain FORWARD (forward): drop"
    )


@pytest.mark.parametrize(
    ("table", "hook", "found"),
    [
        ("ip filter", "forward", ""),  # Docker's; flannel appends its own rules to this chain
        ("ip filter", "input", "chain C (input): policy drop"),
        ("inet own", "forward", "chain C (forward): policy drop"),
        ("inet own", "output", ""),
    ],
)
def test_policies_that_may_block_are_printed(tmp_path: Path, table: str, hook: str, found: str) -> None:
    chain = f"chain C {{\n\t\ttype filter hook {hook} priority filter; policy drop;\n\t}}"
    put(tmp_path, "ruleset", f"table {table} {{\n\t{chain}\n}}\n")
    assert warning(tmp_path, f"nft() {{ cat {tmp_path}/ruleset; }}\nhave() {{ true; }}") == found


@pytest.mark.parametrize(("legacy", "found"), [(True, "-legacy"), (False, "")])
def test_rules_of_iptables_that_may_block_are_printed(tmp_path: Path, legacy: bool, found: str) -> None:
    """Without nft, or by the older iptables, whose rules nft doesn't show."""
    put(tmp_path, "proc/net/ip_tables_names", "filter\n" if legacy else "")
    code = """
have() { [[ $1 != nft ]]; }
iptables-save() { rules ''; }
iptables-legacy-save() { rules -legacy; }
rules() {
  printf '%s\n' ':INPUT DROP [0:0]' ':FORWARD DROP [0:0]' '-A INPUT -p tcp --dport 22 -j ACCEPT' \
    "-A FORWARD -j REJECT$1" '-A INPUT -m conntrack --ctstate INVALID -j DROP' '-A OWN -j DROP'
}
"""
    assert warning(tmp_path, code) == f"chain INPUT: policy drop; chain FORWARD -j REJECT{found}"


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


# A firewalld that keeps each zone's rules in files SCOPE ZONE KIND, and prints calls as busctl's arguments.
FIREWALLD = r"""
unit_active() { [[ $1 == firewalld ]]; }
systemctl() { return 4; }
have() { false; }
firewalld_call() { case $1 in getDefaultZone) echo 's "public"' ;; zone.getActiveZones) echo 'a{sa{sas}} 0' ;;
  zone.getZoneOfInterface) echo 's ""' ;; esac; }
ip() { if [[ "$*" == *address* ]]; then echo '2: eth1 inet 10.0.0.1/24'; else cat "$ROOT/routes"; fi; }
bridge() { if [[ $4 == flannel.1 ]]; then cat "$ROOT/fdb"; fi; }
firewalld_zone() {
  local scope=$1 zone=$2 method=$3 kind
  shift 4 2>/dev/null || shift 3
  kind=$(sed -E 's/^(get|add|query|remove)//; s/s$//' <<<"$method")
  local file="$ROOT/zones/$scope $zone $kind"
  case $method in
    get*)
      printf 'as %s' "$(wc -l <"$file")"
      sed 's/"/\\"/g; s/.*/ "&"/' "$file" | tr -d '\n'
      echo
      ;;
    query*) if grep -qxF -- "$*" "$file"; then echo 'b true'; else echo 'b false'; fi ;;
    add*) echo "$*" >>"$file" ;;
    remove*) sed -i "\|^$*\$|d" "$file" ;;
    update2) shift 4; printf '%s\n' "$@" | sed '/^$/d' >"$ROOT/zones/$scope $zone RichRule" ;;
  esac
}
"""
NEW = {
    "ADDRESS": "10.0.0.1",
    "ROLE": "worker",
    "POD_SUBNET": "10.244.0.0/16",
    "HOST_SOURCES": "10.0.0.1/32\n10.0.0.2/31",
    "API_SOURCES": "",
    "NODE_PORT_SOURCES": "any",
    "FIREWALL": "open",
    "OWNER": "dev 1",
}
OLD_PORTS = ("10250 tcp", "30000-32767 tcp", "30000-32767 udp", "8472 udp")


class Zones:
    """A host with the firewalld of FIREWALLD."""

    def __init__(self, root: Path) -> None:
        self.root = root
        record(root)
        self.put("routes")
        self.put("fdb")
        for scope in ("permanent", "runtime"):
            for zone, kinds in {"public": ("RichRule", "Port"), "trusted": ("Interface", "Source")}.items():
                for kind in kinds:
                    self.put(f"zones/{scope} {zone} {kind}")

    def put(self, path: str, *lines: str) -> None:
        put(self.root, path, "".join(f"{line}\n" for line in lines))

    def lines(self, name: str) -> list[str]:
        return (self.root / "zones" / name).read_text().splitlines()

    def open(self, **values: str) -> str:
        return run(FIREWALL, FIREWALLD, self.root, **{**NEW, **values}).stderr

    def rules(self) -> list[str]:
        """The active rich rules as `SOURCE PORT/PROTOCOL`. The stored ones must be the same."""
        lines = self.lines("runtime public RichRule")
        assert sorted(lines) == sorted(self.lines("permanent public RichRule"))
        found = []
        for line in lines:
            word = dict(part.split("=") for part in line.replace('"', "").split() if "=" in part)
            found.append(f"{word.get('address', 'any')} {word['port']}/{word['protocol']}")
        return sorted(found)


NODE_PORTS = ["any 30000-32767/tcp", "any 30000-32767/udp"]


def internal(*sources: str) -> list[str]:
    return [f"{source} {port}" for source in sources for port in ("10250/tcp", "8472/udp")]


def test_firewalld_lets_in_only_the_clusters_hosts(tmp_path: Path) -> None:
    zones = Zones(tmp_path)
    zones.open()
    assert zones.rules() == sorted([*internal("10.0.0.1", "10.0.0.2/31"), *NODE_PORTS])
    assert zones.lines("runtime trusted Interface") == ["cni0", "flannel.1"]
    assert zones.lines("permanent trusted Source") == ["10.244.0.0/16"]
    # Ports would be joined with the user's own, and removed together with these.
    assert zones.lines("runtime public Port") == []


@pytest.mark.parametrize(
    ("role", "api", "node_ports", "found"),
    [
        ("control-plane", "any", "any", ["any 6443/tcp", *NODE_PORTS]),
        ("control-plane", "", "any", ["10.0.0.1 6443/tcp", *NODE_PORTS]),
        ("control-plane", "10.9.0.0/24", "any", ["10.0.0.1 6443/tcp", "10.9.0.0/24 6443/tcp", *NODE_PORTS]),
        (
            "worker",
            "",
            "10.9.0.5/32",
            [f"{s} 30000-32767/{p}" for s in ("10.0.0.1", "10.9.0.5") for p in ("tcp", "udp")],
        ),
    ],
)
def test_api_and_node_ports_have_their_own_sources(
    tmp_path: Path, role: str, api: str, node_ports: str, found: list[str]
) -> None:
    zones = Zones(tmp_path)
    hosts = "10.0.0.1/32"
    zones.open(ROLE=role, API_SOURCES=api, NODE_PORT_SOURCES=node_ports, HOST_SOURCES=hosts)
    assert zones.rules() == sorted([*internal("10.0.0.1"), *found])


def test_ports_that_an_earlier_version_opened_are_closed(tmp_path: Path) -> None:
    zones = Zones(tmp_path)
    record(
        tmp_path,
        firewalld="".join(f"{s} public Port {p}\n" for s in ("permanent", "runtime") for p in OLD_PORTS),
    )
    for scope in ("permanent", "runtime"):
        zones.put(f"zones/{scope} public Port", *OLD_PORTS, "4711 tcp")
    assert "removed 8 rule(s)" in zones.open()
    assert zones.lines("permanent public Port") == zones.lines("runtime public Port") == ["4711 tcp"]
    assert "Port" not in (home_of(tmp_path) / "record/firewalld").read_text()


def test_only_the_difference_changes(tmp_path: Path) -> None:
    zones = Zones(tmp_path)
    own = 'rule family="ipv4" source address="10.0.0.2/31" port port="8472" protocol="udp" accept'
    for scope in ("permanent", "runtime"):
        zones.put(f"zones/{scope} public RichRule", own)
    zones.open()
    before = zones.lines("runtime public RichRule")
    assert "removed" not in zones.open()
    assert zones.lines("runtime public RichRule") == before
    zones.open(HOST_SOURCES="10.0.0.1/32\n10.0.0.3/32")
    # The user's rule stays.
    assert zones.rules() == sorted([*internal("10.0.0.1", "10.0.0.3"), *NODE_PORTS, "10.0.0.2/31 8472/udp"])
    run(RESET, FIREWALLD + "reload_firewalld() { :; }\ncreate() { restore_firewalld; }\n", tmp_path)
    assert zones.rules() == ["10.0.0.2/31 8472/udp"]
    assert zones.lines("permanent trusted Interface") == []


@pytest.mark.parametrize("node", ["02::3 dst 10.0.0.3 self permanent", "10.244.3.0/24 via 10.0.0.3 dev eth1"])
def test_leaving_host_keeps_its_rules_until_it_left(tmp_path: Path, node: str) -> None:
    """`up` drains it later, and until then its pods need the network."""
    zones = Zones(tmp_path)
    zones.open()
    zones.put(
        "routes", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", *([node] if "via" in node else [])
    )
    zones.put("fdb", "02::2 dst 10.0.0.2 self permanent", *([node] if "dst" in node else []))
    started = 'systemd-run() { cp "${!#}" "$ROOT/job"; echo "$*" >&2; }\n'
    values = {**NEW, "HOST_SOURCES": "10.0.0.1/32\n10.0.0.2/32"}
    done = run(FIREWALL, FIREWALLD + started, tmp_path, **values)
    assert "once these nodes have left it: 10.0.0.3\n" in done.stderr
    assert "--unit=kubeadm-ipvs-firewall bash " in done.stderr
    remaining = sorted([*internal("10.0.0.1", "10.0.0.2"), *NODE_PORTS])
    assert zones.rules() == sorted([*remaining, *internal("10.0.0.2/31")])
    # The job that systemd runs.
    zones.put("fdb")
    zones.put("routes")
    job = subprocess.run(["bash", tmp_path / "job"], capture_output=True, text=True, timeout=60, check=False)
    assert (job.returncode, job.stdout) == (0, ""), job.stderr
    assert "removed 4 rule(s)" in job.stderr
    assert zones.rules() == remaining


def test_entries_of_an_unused_vxlan_delay_nothing(tmp_path: Path) -> None:
    """They stay after a change to host-gw."""
    zones = Zones(tmp_path)
    zones.open()
    zones.put("routes", "10.244.2.0/24 via 10.0.0.2 dev eth1 ")
    zones.put("fdb", "02::3 dst 10.0.0.3 self permanent")
    assert "removed 4 rule(s)" in zones.open(HOST_SOURCES="10.0.0.1/32\n10.0.0.2/32")


def test_firewalld_additions_are_removed_once(tmp_path: Path) -> None:
    record(
        tmp_path,
        firewalld="runtime public Port 10250 tcp\npermanent trusted Interface cni0\n"
        'runtime public RichRule rule port port="6443" protocol="tcp" accept\n',
    )
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
        'runtime public queryRichRule s rule port port="6443" protocol="tcp" accept',
        'runtime public removeRichRule s rule port port="6443" protocol="tcp" accept',
        "reloaded",
    ]
    assert run(RESET, code, tmp_path).stderr == ""


def test_stored_rules_that_busctl_escapes_arent_rewritten(tmp_path: Path) -> None:
    code = r"""
firewalld_zone() {
  if [[ $3 == getRichRules ]]; then
    echo 'as 1 "rule service name=\"ftp\" log prefix=\"a\\\\b\" accept"'
  else
    echo "$*"
  fi
}
create() { firewalld_add 'permanent public RichRule rule port port="1" protocol="tcp" accept' ; }
"""
    calls = tmp_path / "calls"
    code = code.replace('echo "$*"', f'echo "$*" >>{calls}')
    run(FIREWALL, code, tmp_path)
    assert calls.read_text() == 'permanent public addRichRule s rule port port="1" protocol="tcp" accept\n'


def test_stored_rules_of_a_stopped_firewalld_are_removed(tmp_path: Path) -> None:
    rule = 'rule port port="6443" protocol="tcp" accept'
    record(
        tmp_path,
        firewalld=f"permanent public Port 10250 tcp\npermanent public RichRule {rule}\n"
        "permanent trusted Interface cni0\nruntime trusted Interface cni0\n",
    )
    code = """
unit_active() { false; }
have() { true; }
firewall-offline-cmd() { [[ $2 == --query-* ]] || echo "$*" >&2; }
create() { restore_firewalld; }
"""
    assert run(RESET, code, tmp_path).stderr.splitlines() == [
        "--zone=public --remove-port=10250/tcp",
        f"--zone=public --remove-rich-rule={rule}",
        "--zone=trusted --remove-interface=cni0",
    ]


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


# A ufw whose rules are lines of a file.
RULES = r"""
exec 5>&1
unit_active() { false; }
systemctl() { return 4; }
have() { [[ $1 == ufw ]]; }
ip() { :; }
bridge() { :; }
ufw() {
  local words="$*" rules=$ROOT/rules
  case $words in
    status) echo 'Status: active' ;;
    'show added') echo 'Added user rules (see ufw status):'; sed 's/^/ufw /' "$rules" ;;
    '--force delete '*) sed -i "\|^${words#--force delete }\$|d" "$rules" ;;
    '--force route delete '*) sed -i "\|^route ${words#--force route delete }\$|d" "$rules" ;;
    *) echo "$words" >>"$rules" ;;
  esac
}
"""


def test_ufw_lets_in_only_the_clusters_hosts(tmp_path: Path) -> None:
    theirs = [
        "allow from 10.244.0.0/16 to any port 22",  # contains a rule of ours
        "allow 30000:32767/udp comment 'theirs'",
        "allow 22/tcp",
    ]
    old = ["allow 8472/udp", "allow 10250/tcp"]
    rules = put(tmp_path, "rules", "".join(f"{line}\n" for line in [*theirs, *old]))
    folder = record(tmp_path, ufw="".join(f"{line}\n" for line in old))
    added = [
        *(
            f"allow from {source} to any port {port}"
            for source in ("10.0.0.1", "10.0.0.2/31")
            for port in ("10250 proto tcp", "8472 proto udp")
        ),
        "allow 30000:32767/tcp",
        "allow from 10.244.0.0/16",
        "route allow from 10.244.0.0/16",
        "route allow to 10.244.0.0/16",
    ]
    for _ in range(2):
        run(FIREWALL, RULES, tmp_path, **NEW)
        assert sorted(rules.read_text().splitlines()) == sorted([*theirs, *added])
        assert sorted((folder / "ufw").read_text().splitlines()) == sorted(added)
    run(RESET, RULES + "create() { restore_ufw; }\n", tmp_path)
    assert rules.read_text().splitlines() == theirs


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
