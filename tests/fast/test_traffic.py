"""Reading, showing and watching the hosts' IPVS virtual servers."""

from __future__ import annotations

import asyncio
import html
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from model import ipvs, traffic
from model.ipvs import Counts, Real, Virtual
from model.settings import Host, Settings
from model.steps import TRAFFIC, TRAFFIC_SECONDS, Script
from model.traffic import View
from tests.fast.shell import put, stdout_of
from tests.fast.views import NODES, report, views
from tools import cluster_table, show
from tools.__main__ import main

WEB = Real("10.244.1.2:80", "Masq", 1, 0, counts=Counts(5, 2000, 4500))
SERVER = Virtual("TCP", "10.100.1.1:80", "rr", (WEB,), Counts(5, 2000, 4500))
QUIET = Virtual("TCP", "10.100.1.2:80", "rr", (), Counts(0, 0, 0))


def counted(connections: int, total: int) -> View:
    """A host with one virtual server that had traffic, and two without traffic."""
    counts = Counts(connections, total, 0)
    return View("node1", (replace(SERVER, reals=(replace(WEB, counts=counts),), counts=counts), QUIET, QUIET))


def test_report_has_mode_addresses_and_counters() -> None:
    view = traffic.view_of_report("node2", report("node2"))
    assert view.mode == "ipvs"
    assert view.addresses == ("10.96.0.1", "10.96.0.10", "10.100.17.3", "10.104.201.88")
    api = next(virtual for virtual in view.virtuals if virtual.address == "10.96.0.1:443")
    assert api.counts == Counts(88, 1_293_600, 3_537_600)


def test_report_doesnt_need_kube_proxy(tmp_path: Path) -> None:
    functions = """
fetch() { return 1; }
ipvsadm() { echo "TCP 10.96.0.1:443 $(if [[ $* == *stats* ]]; then echo 1 2 3 40 50; else echo rr; fi)"; }
ip() { echo "7: kube-ipvs0    inet 10.96.0.1/32 scope global kube-ipvs0"; }
ipset() { echo KUBE-CLUSTER-IP; }
"""

    def view() -> View:
        return traffic.view_of_report("node1", stdout_of("steps/traffic.sh", functions, tmp_path))

    assert view() == View("node1", (), (), "unknown")
    put(tmp_path, "/sys/class/net/kube-ipvs0")
    server = Virtual("TCP", "10.96.0.1:443", "rr", (), Counts(1, 40, 50))
    assert view() == View("node1", (server,), ("10.96.0.1",), "unknown")


def test_report_without_sections_is_refused() -> None:
    with pytest.raises(ipvs.UnreadableError, match="== mode"):
        traffic.view_of_report("node1", "bash: fetch: command not found\n")


def test_real_servers_belong_to_their_networks_hosts() -> None:
    found = traffic.hosts_of(views(), {})
    assert found["192.168.166.101:6443"] == "master"
    assert found["10.244.0.2:53"] == "master"
    assert found["10.244.1.2:80"] == "node1"
    assert found["10.244.2.2:80"] == "node2"
    assert traffic.hosts_of(views(), NODES) == found


def test_real_servers_outside_the_cluster_have_no_host() -> None:
    # In the network that the hosts share, and elsewhere.
    for address in ("192.168.166.77:5432", "203.0.113.9:443", "[2001:db8::9]:443"):
        far = Virtual("TCP", "10.99.9.9:5432", "rr", (replace(WEB, address=address),))
        seen = [replace(view, virtuals=(*view.virtuals, far)) for view in views()]
        assert address not in traffic.hosts_of(seen, NODES)
        assert address not in traffic.hosts_of(seen, {})
        assert address not in traffic.hosts_of(seen[:1], NODES)


def test_host_without_view_keeps_its_address() -> None:
    assert traffic.hosts_of(views()[1:], NODES)["192.168.166.101:6443"] == "master"


def test_tables_of_all_hosts_are_aligned() -> None:
    leaving = Real("10.244.2.7:80", "Masq", 0, 1)
    view = View("node1", (replace(SERVER, reals=(WEB, leaving)), QUIET))
    hosts = {"10.244.1.2:80": "node1"}
    assert cluster_table.table([view, View("node2", ())], hosts) == (
        """\
node1
  VIRTUAL SERVER     SCHEDULER  REAL SERVER    HOST   WEIGHT  ACTIVE  CONNS      IN     OUT
  TCP 10.100.1.1:80  rr         10.244.1.2:80  node1       1       0      5  2.0 kB  4.5 kB
                                10.244.2.7:80  -           0       1      -       -       -
  TCP 10.100.1.2:80  rr         -              -           -       -      -       -       -

node2
  no virtual servers: kube-proxy wasn't in ipvs mode at the last verification
"""
    )
    assert cluster_table.table([], {}) == ""


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("nftables", "kube-proxy runs in nftables mode"),
        ("iptables", "kube-proxy runs in iptables mode"),
        ("ipvs", "although kube-proxy runs in ipvs mode"),
        ("unknown", "kube-proxy doesn't respond"),
    ],
)
def test_empty_table_states_the_reason(mode: str, words: str) -> None:
    view = traffic.view_of_report("node1", f"== mode\n{mode}\n")
    assert words in cluster_table.table([view], {})


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (9_951, "10 kB"), (999_499, "999 kB"),
     (999_501, "1.0 MB"), (187_000_000, "187 MB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_bytes_have_at_most_three_digits(count: float, words: str) -> None:
    assert traffic.size(count) == words


def test_rates_are_per_second() -> None:
    before, after = (traffic.counts_by_key([counted(*had)]) for had in ((5, 1000), (25, 9000)))
    table = cluster_table.table([counted(25, 9000)], {}, traffic.change(before, after, 2.0))
    assert "CONNS/S  BYTES/S" in table
    assert table.splitlines()[2].split()[-3:] == ["10.0", "4.0", "kB"]


def test_reset_counters_and_new_servers_have_sane_rates() -> None:
    before, after = (traffic.counts_by_key([counted(*had)]) for had in ((500, 100_000), (4, 800)))
    key = ("node1", "TCP", "10.100.1.1:80", "10.244.1.2:80")
    assert traffic.change(before, after, 2.0).counts[key] == Counts(4, 800, 0)
    assert key not in traffic.change({}, after, 2.0).counts


class _Stop(Exception):
    """Raised to end a watch."""


def watched(snapshots: list[show.Snapshot], stream: io.StringIO, height: int = 50) -> None:
    """Watch until all snapshots have been shown."""
    left = list(snapshots)

    async def take() -> show.Snapshot:
        return left.pop(0)

    async def pause(seconds: float) -> None:
        assert seconds == show.WATCH_SECONDS
        if not left:
            raise _Stop

    with pytest.raises(_Stop):
        asyncio.run(show.watch(take, {}, stream, pause, lambda: height))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SNAPSHOTS = [show.Snapshot((counted(*had),), {}, at) for had, at in (((5, 1000), 100.0), ((25, 9000), 104.0))]


def test_watch_shows_rates_since_the_previous_snapshot() -> None:
    stream = io.StringIO()
    watched([*SNAPSHOTS, show.Snapshot((), {"node1": "no SSH server answers"}, 106.0)], stream)
    first, second, third = stream.getvalue().split("\n\n")[:3]
    assert "CONNS/S" not in first
    assert second.splitlines()[3].split()[-3:] == ["5.0", "2.0", "kB"]
    assert "node1: could not be read: no SSH server answers" in third
    assert "\x1b" not in stream.getvalue(), "a pipe gets no control sequences"


def test_watch_in_a_terminal_replaces_the_table() -> None:
    stream = _Terminal()
    watched(SNAPSHOTS, stream)
    frames = stream.getvalue().split("\x1b[H")[1:]
    assert len(frames) == 2
    assert all(frame.endswith("\x1b[J") and "\n" in frame for frame in frames)
    assert all(line.endswith("\x1b[K") for line in frames[1].split("\n")[:-1])


def test_small_windows_drop_idle_servers_first() -> None:
    for height, line in ((6, "and 2 without traffic"), (5, "... 2 more lines don't fit into this window")):
        stream = _Terminal()
        watched(SNAPSHOTS, stream, height)
        frame = stream.getvalue().split("\x1b[H")[2]
        assert line in frame
        assert frame.count("\n") < height


class _Readers:
    """Replaces the connections to hosts: each host's report, or its error."""

    def __init__(self, answers: dict[str, str | UserError]) -> None:
        self.answers = answers

    def __call__(self, settings: Settings, host: Host) -> Any:
        answer = self.answers[host.name]

        class Reader:
            def __init__(self) -> None:
                self.host = host

            async def __aenter__(self) -> Reader:
                return self

            async def __aexit__(self, *_: object) -> None:
                """Nothing to close."""

            async def run(self, script: Script, values: dict[str, str], limit_seconds: int) -> str:
                assert (script, values, limit_seconds) == (TRAFFIC, {}, TRAFFIC_SECONDS)
                if isinstance(answer, UserError):
                    raise answer
                return answer

        return Reader()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    hosts = tuple(
        Host(name=name, role="worker" if name != "master" else "control-plane", address=address)
        for name, address in NODES.items()
    )
    return Settings(hosts=hosts)


def test_unreachable_host_doesnt_hide_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers: dict[str, str | UserError] = {"master": report("master"), "node1": "== mode\nnftables\n"}
    monkeypatch.setattr(show, "settings_of", lambda stack: settings)
    monkeypatch.setattr(show, "Reader", _Readers(answers | {"node2": UserError("no SSH server answers")}))
    assert main(["show", "--stack", "dev", "--live"]) == 1
    printed = capsys.readouterr()
    assert "node2: could not be read: no SSH server answers" in printed.err
    assert "TCP 192.168.166.101:30080  rr         10.244.1.2:80" in printed.out
    assert "kube-proxy runs in nftables mode" in printed.out
    page = tmp_path / "page.html"
    assert main(["show", "--stack", "dev", "--live", "--html", str(page)]) == 1
    assert "This host couldn't be read" in html.unescape(page.read_text())
    answers["node2"] = report("node2")
    monkeypatch.setattr(show, "Reader", _Readers(answers))
    assert main(["show", "--stack", "dev", "--live", "--html", str(page)]) == 0
