"""The two pages: where things are, what is escaped, and how a real browser shows them."""

from __future__ import annotations

import html
import re
import subprocess
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
from tests.fast.views import NODES, views
from tools import cluster_page, critical, page, timeline_page

EVIL = "\"><script>alert(1)</script>&amp;'<img src=http://evil.example/x>"


def cluster(seen: list[View] | None = None) -> str:
    shown = views() if seen is None else seen
    return cluster_page.page(shown, NODES, traffic.hosts_of(shown, NODES), title="IPVS: dev", when="now")


def timeline(tmp_path: Path, stack: str = "dev", text: str = "") -> str:
    return timeline_page.page(critical.read(text or past_run.text(past_run.up(tmp_path)[0]), stack))


class _Elements(HTMLParser):
    """Tags that are open, every tag with its attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
def test_any_text_is_shown_as_it_is_and_never_run(kind: str, tmp_path: Path) -> None:
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
    elements = _Elements(text)
    assert EVIL in elements.text
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "iframe", "object"})
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
def test_a_page_needs_nothing_but_itself(kind: str, tmp_path: Path) -> None:
    text = cluster() if kind == "cluster" else timeline(tmp_path)
    assert "://" not in text
    assert "url(" not in text and "@import" not in text
    links = [attributes["href"] for tag, attributes in _Elements(text).found if "href" in attributes]
    assert links == ["data:,"], "a browser asks for no icon either"
    assert "prefers-color-scheme: dark" in text


def test_boxes_and_rows_follow_each_other_without_overlap() -> None:
    for view in views():
        where = cluster_page.layout(view, traffic.hosts_of(views(), NODES), list(NODES))
        for side in (where.left, where.right):
            ends = [0.0]
            for box in side:
                assert box.y >= ends[-1]
                inside = sorted([*(row.y for row in box.rows), *(label.y for label in box.labels)])
                assert inside[0] >= box.y + 20, "the heading has its place"
                assert all(low + 17 <= high for low, high in pairwise(inside))
                assert max(row.y for row in box.rows) + 30 <= box.y + box.height
                ends.append(box.y + box.height)
            assert ends[-1] <= where.height


def test_every_virtual_server_has_a_way_to_each_of_its_real_servers() -> None:
    for view in views():
        drawn = re.findall(r"<path class=\"way[^>]*><title>([^<]*)", cluster([view]))
        expected = [
            f"{virtual.protocol} {virtual.address} to {real.address} on "
            for virtual in view.virtuals
            for real in virtual.reals
        ]
        assert len(drawn) == len(expected)
        for way in expected:
            assert any(title.startswith(way) for title in drawn)


def test_the_addresses_of_kube_ipvs0_are_apart_from_the_hosts_own() -> None:
    where = cluster_page.layout(views()[0], {}, list(NODES))
    service, own = where.left
    assert [label.words for label in service.labels] == list(views()[0].addresses)
    assert "192.168.166.101" in [label.words for label in own.labels]
    assert [box.heading for box in where.right] == [cluster_page.ELSEWHERE]


def test_lines_are_wider_with_traffic_and_never_too_wide() -> None:
    widths = [cluster_page.line_width(Counts(1, 10**power, 0)) for power in range(16)]
    assert widths == sorted(widths)
    assert len(set(widths[3:9])) == 6
    assert cluster_page.line_width(None) == cluster_page.line_width(Counts(0, 0, 0)) < widths[3]
    assert widths[-1] == 11


def test_a_server_that_leaves_one_that_is_idle_and_one_without_real_servers_look_different() -> None:
    lost = Virtual("TCP", "10.96.0.9:80", "rr")
    node2 = views()[2]
    text = cluster([*views()[:2], replace(node2, virtuals=(*node2.virtuals, lost))])
    assert "no real server" in text
    leaving = re.findall(r'class="way k1 leaving"[^>]*><title>([^<]*)', text)
    assert len(leaving) == 1 and "10.244.1.9:80" in leaving[0]
    assert re.search(r'class="way k0 still"[^>]*><title>TCP 10.96.0.10:9153', text)


def test_a_mode_without_virtual_servers_is_said_in_words() -> None:
    text = cluster([View("master", (), (), "nftables")])
    assert "kube-proxy runs in mode nftables here" in text
    assert text.count("This host could not be looked at") == 2


def test_bars_are_where_their_times_are(tmp_path: Path) -> None:
    run = critical.read(past_run.text(past_run.up(tmp_path)[0]), "dev")
    text = timeline_page.page(run)
    places = re.findall(r'<rect class="bar" x="([\d.]+)%" y="3" width="([\d.]+)%"', text)
    assert len(places) == len(run.bars)
    assert max(float(x) + float(width) for x, width in places) <= 100.01
    assert text.count('class="row critical"') == len(run.path)


@pytest.mark.parametrize("kind", ["cluster", "timeline"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_a_page_whole_and_without_a_complaint(kind: str, width: int, tmp_path: Path) -> None:
    chromium = requirements.browser()
    if chromium is None:
        pytest.skip("no chromium: `python -m lab requirements --install --browser` for this test")
    text = cluster() if kind == "cluster" else timeline(tmp_path)
    text = text.replace("<details>", "<details open>")
    outer = tmp_path / "outer.html"
    # A window can't be as narrow as a phone; a frame in it can, and its media queries go by it.
    outer.write_text(_OUTER.format(width=width, page=html.escape(text)))
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--window-size=1400,900", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", outer.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    assert html.unescape(found[1]) == "measured\n"


# Written into the page around: what stands out of the window, of its drawing or over another text.
_OUTER = """<!doctype html><body><pre id="result">not measured</pre>
<iframe id="page" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const inner = document.getElementById("page").contentDocument, found = [];
  if (inner.documentElement.scrollWidth > {width}) found.push("wider than the window");
  for (const svg of inner.querySelectorAll("main svg")) {{
    const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => {{
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 3)
        found.push("outside: " + texts[i].textContent);
      boxes.slice(i + 1).forEach((other, j) => {{
        if (box.left < other.right && other.left < box.right
            && box.top + 2 < other.bottom - 2 && other.top + 2 < box.bottom - 2)
          found.push("over each other: " + texts[i].textContent + " / " + texts[i + 1 + j].textContent);
      }});
    }});
  }}
  for (const svg of inner.querySelectorAll(".card > svg"))
    for (const text of svg.querySelectorAll("text")) {{
      const box = text.getBoundingClientRect(), middle = box.left + 3;
      const well = [...svg.querySelectorAll(".box")].map(one => one.getBoundingClientRect())
        .find(one => one.left <= middle && middle <= one.right
          && one.top <= box.top + 4 && box.bottom <= one.bottom + 4);
      if (!well || box.right > well.right) found.push("out of its box: " + text.textContent);
    }}
  document.getElementById("result").textContent = ["measured", ...found].join("\\n") + "\\n";
}});
</script>"""


def test_a_host_names_its_colour_by_its_place_and_a_long_name_is_cut() -> None:
    assert [page.colour(number) for number in (0, 5, 6, None)] == ["k0", "k5", "k0", "k-none"]
    assert page.clipped("kubernetes-worker-7", 10) == "kubernete…"
    assert page.clipped("node1", 10) == "node1"
