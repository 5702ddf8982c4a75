"""The HTML pages of `make show` and `make timeline`."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from lab import requirements
from model import traffic
from model.ipvs import Counts, Real, Virtual
from model.traffic import View
from tests.fast import past_run
from tests.fast.browser import layout_problems
from tests.fast.views import NODES, views
from tools import cluster_page, critical, page, timeline_page

EVIL = "\"><script>alert(1)</script>&amp;'<img src=http://evil.example/x>"


def cluster(seen: list[View] | None = None) -> str:
    shown = views() if seen is None else seen
    return cluster_page.page(shown, NODES, traffic.hosts_of(shown, NODES), title="IPVS: dev", when="now")


def timeline(tmp_path: Path, stack: str = "dev", text: str = "") -> str:
    return timeline_page.page(critical.read(text or past_run.text(past_run.up(tmp_path)[0]), stack))


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
def test_text_is_escaped(kind: str, tmp_path: Path) -> None:
    if kind == "cluster":
        real = Real(f"{EVIL}:80", "Masq", 1, 0, counts=Counts(1, 1, 1))
        virtual = Virtual(EVIL, "10.96.0.1:80", EVIL, (real,), Counts(1, 1, 1))
        view = View(EVIL, (virtual,), ("10.96.0.1",), "ipvs")
        text = cluster_page.page(
            [view, View("b", (), (), EVIL)], {EVIL: EVIL}, {real.address: EVIL}, title=EVIL, when=EVIL
        )
    else:
        events = past_run.text(past_run.up(tmp_path)[0])
        evil = EVIL.replace("\\", "").replace('"', '\\"')
        text = timeline(tmp_path, EVIL, events.replace("node1-", f"{evil}-").replace("nginx", evil))
    elements = Elements(text)
    assert EVIL in elements.text
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "iframe", "object"})
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
def test_page_loads_nothing(kind: str, tmp_path: Path) -> None:
    text = cluster() if kind == "cluster" else timeline(tmp_path)
    assert "://" not in text
    assert "url(" not in text and "@import" not in text
    links = [attributes["href"] for tag, attributes in Elements(text).found if "href" in attributes]
    assert links == ["data:,"], "the browser must not request an icon either"
    assert "prefers-color-scheme: dark" in text


def test_boxes_and_rows_do_not_overlap() -> None:
    for view in views():
        layout = cluster_page.layout(view, traffic.hosts_of(views(), NODES), list(NODES))
        for side in (layout.left, layout.right):
            ends = [0.0]
            for box in side:
                assert box.y >= ends[-1]
                inside = sorted([*(row.y for row in box.rows), *(heading.y for heading in box.addresses)])
                assert inside[0] >= box.y + 20, "there must be room for the heading"
                assert all(low + 17 <= high for low, high in pairwise(inside))
                assert max(row.y for row in box.rows) + 30 <= box.y + box.height
                ends.append(box.y + box.height)
            assert ends[-1] <= layout.height


def test_virtual_servers_have_lines_to_real_servers() -> None:
    for view in views():
        drawn = re.findall(r"<path class=\"flow[^>]*><title>([^<]*)", cluster([view]))
        expected = [
            f"{virtual.protocol} {virtual.address} to {real.address} on "
            for virtual in view.virtuals
            for real in virtual.reals
        ]
        assert len(drawn) == len(expected)
        for line in expected:
            assert any(title.startswith(line) for title in drawn)


def test_service_and_host_addresses_are_separate() -> None:
    layout = cluster_page.layout(views()[0], {}, list(NODES))
    service, own = layout.left
    assert [heading.text for heading in service.addresses] == list(views()[0].addresses)
    assert "192.168.166.101" in [heading.text for heading in own.addresses]
    assert [box.heading for box in layout.right] == [cluster_page.ELSEWHERE]


def test_line_width_grows_with_traffic_up_to_a_limit() -> None:
    widths = [cluster_page.line_width(Counts(1, 10**power, 0)) for power in range(16)]
    assert widths == sorted(widths)
    assert len(set(widths[3:9])) == 6
    assert cluster_page.line_width(None) == cluster_page.line_width(Counts(0, 0, 0)) < widths[3]
    assert widths[-1] == 11


def test_draining_idle_and_missing_real_servers_differ() -> None:
    without = Virtual("TCP", "10.96.0.9:80", "rr")
    node2 = views()[2]
    text = cluster([*views()[:2], replace(node2, virtuals=(*node2.virtuals, without))])
    assert "no real server" in text
    draining = re.findall(r'class="flow k1 draining"[^>]*><title>([^<]*)', text)
    assert len(draining) == 1 and "10.244.1.9:80" in draining[0]
    assert re.search(r'class="flow k0 idle"[^>]*><title>TCP 10.96.0.10:9153', text)


def test_hosts_without_virtual_servers_show_the_reason() -> None:
    text = Elements(cluster([View("master", (), (), "nftables")])).text
    assert "kube-proxy runs in nftables mode" in text
    assert text.count("This host couldn't be read") == 2


def test_every_bar_is_within_the_chart(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    text = timeline_page.page(run)
    places = re.findall(r'<rect class="bar" x="([\d.]+)%" y="3" width="([\d.]+)%"', text)
    assert len(places) == len(run.bars) + sum(len(bar.parts) for bar in run.bars)
    assert text.count('class="row part"') == sum(len(bar.parts) for bar in run.bars) > 0
    assert max(float(x) + float(width) for x, width in places) <= 100.01
    assert text.count('class="row critical"') == len(run.path)


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
@pytest.mark.parametrize("width", [360, 1280])
def test_browser_shows_page_without_problems(kind: str, width: int, tmp_path: Path) -> None:
    chromium = requirements.browser()
    if chromium is None:
        pytest.skip("no chromium: `python -m lab requirements --install --browser` installs it")
    text = cluster() if kind == "cluster" else timeline(tmp_path)
    assert layout_problems(chromium, text.replace("<details>", "<details open>"), width, tmp_path) == []


def test_host_colours_repeat() -> None:
    assert [page.colour(number) for number in (0, 5, 6, None)] == ["k0", "k5", "k0", "k-none"]


def test_long_names_are_clipped() -> None:
    assert page.clipped("kubernetes-worker-7", 10) == "kubernete…"
    assert page.clipped("node1", 10) == "node1"
