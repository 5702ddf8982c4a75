"""Draws what IPVS balances: a page with a card for each host, from `model/traffic.py`'s views.

A card shows the host's kube-ipvs0 and own addresses on the left, each virtual server as a row of its
address, and the real servers on the right, under the host that each is on. A line's width is the
traffic, on a scale that is the same on every page: see `line_width`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.ipvs import Counts, Real, Virtual
from model.traffic import View, nothing_balanced, place, size, total
from tools.page import clipped, colour, text
from tools.page import page as whole_page

# The drawing's units are pixels on a phone; wider screens put cards side by side.
WIDTH = 400
_LEFT, _LEFT_END = 2, 146
_RIGHT, _RIGHT_END = 236, 398
_HEADING = 22
_ADDRESS = 17
_ROW = 31
_GAP = 8
_PAD = 6
_LETTERS = 19  # of 12 units' height, that fit into a box
ELSEWHERE = "elsewhere"

_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem;
  align-items: start; }
.card > svg { width: 100%; max-width: 30rem; height: auto; margin: .5rem auto 0; }
.box { fill: var(--well); stroke: var(--line); }
.name { font-weight: 600; }
.way { fill: none; stroke: var(--c, var(--soft)); stroke-linecap: round; opacity: .8; }
.way.still { opacity: .45; stroke-dasharray: 1 4; }
.way.leaving { stroke-dasharray: 6 4; }
.way:hover { opacity: 1; }
.edge { fill: var(--c, var(--soft)); }
.legend svg { flex: none; }
svg text.bad { fill: var(--bad); font-size: 11px; }
"""


@dataclass(frozen=True)
class Row:
    """A server's place in the drawing: `y` is its row's top."""

    y: float
    virtual: Virtual | None = None
    real: str = ""

    @property
    def middle(self) -> float:
        """Where its lines begin or end."""
        return self.y + _ROW / 2


@dataclass(frozen=True)
class Label:
    """A line of text that heads rows: an address."""

    y: float
    words: str


@dataclass(frozen=True)
class Box:
    """A frame with a heading, around the rows of an interface or a host."""

    y: float
    height: float
    heading: str
    host: str | None
    labels: tuple[Label, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Layout:
    """Where everything of a card is."""

    left: tuple[Box, ...]
    right: tuple[Box, ...]
    height: float


def layout(view: View, hosts: Mapping[str, str], order: Sequence[str]) -> Layout:
    """Places for a host's servers.

    :param hosts: real servers to the hosts that they are on.
    :param order: hosts' names as they follow each other on every card.
    """
    by_address: dict[str, list[Virtual]] = {address: [] for address in view.addresses}
    for virtual in view.virtuals:
        by_address.setdefault(place(virtual.address)[0], []).append(virtual)
    service = {address: by_address[address] for address in view.addresses}
    own = {address: found for address, found in by_address.items() if address not in service}
    left: list[Box] = []
    for heading, part in (("kube-ipvs0", service), ("its own addresses", own)):
        if part:
            left.append(_address_box(_below(left), heading, part))
    groups: dict[str, list[str]] = {host: [] for host in (*order, ELSEWHERE)}
    # In the order of the virtual servers that they belong to: so fewest lines cross.
    rows = [row.virtual for box in left for row in box.rows if row.virtual]
    for real in dict.fromkeys(real.address for virtual in rows for real in virtual.reals):
        groups.setdefault(hosts.get(real, ELSEWHERE), []).append(real)
    right: list[Box] = []
    for host, reals in groups.items():
        if reals:
            right.append(_host_box(_below(right), host, view.host, reals))
    short = _below(left) - _below(right)
    if short > 0:
        right = [_moved(box, short / 2) for box in right]
    return Layout(tuple(left), tuple(right), max(_below(left), _below(right)) - _GAP + 2)


def _below(boxes: Sequence[Box]) -> float:
    return boxes[-1].y + boxes[-1].height + _GAP if boxes else 2.0


def _address_box(top: float, heading: str, addresses: Mapping[str, Sequence[Virtual]]) -> Box:
    y = top + _HEADING
    labels, rows = [], []
    for address, virtuals in addresses.items():
        labels.append(Label(y, address))
        y += _ADDRESS
        for virtual in virtuals:
            rows.append(Row(y, virtual=virtual))
            y += _ROW
    return Box(top, y + _PAD - top, heading, None, tuple(labels), tuple(rows))


def _host_box(top: float, host: str, here: str, reals: Sequence[str]) -> Box:
    heading = ELSEWHERE if host == ELSEWHERE else f"here, {host}" if host == here else f"over {host}"
    rows = [Row(top + _HEADING + number * _ROW, real=real) for number, real in enumerate(reals)]
    return Box(top, _HEADING + len(rows) * _ROW + _PAD, heading, host, (), tuple(rows))


def _moved(box: Box, by: float) -> Box:
    rows = tuple(Row(row.y + by, row.virtual, row.real) for row in box.rows)
    return Box(box.y + by, box.height, box.heading, box.host, box.labels, rows)


def line_width(counts: Counts | None) -> float:
    """A line's width: each tenfold of bytes, both ways together, is as much wider, from 1 kB to 1 GB."""
    kilobytes = counts.bytes / 1000 if counts else 0
    return min(1.2 + 1.6 * math.log10(1 + kilobytes), 11.0)


def page(
    views: Sequence[View], nodes: Mapping[str, str], hosts: Mapping[str, str], *, title: str, when: str
) -> str:
    """The page.

    :param nodes: all hosts' addresses by name, in the order of the settings.
    :param hosts: real servers to the hosts that they are on.
    :param when: of what time the numbers are, in words.
    """
    order = list(nodes)
    cards = "\n".join(_card(view, nodes, hosts, order) for view in views)
    missing = [host for host in order if host not in {view.host for view in views}]
    cards += "".join(
        f'\n<section class="card"><h2>{text(host)}</h2><p>This host could not be looked at.</p></section>'
        for host in missing
    )
    body = f'{_legend(order)}\n<div class="cards">\n{cards}\n</div>'
    return whole_page(title, f"Virtual servers and their traffic, {when}.", body, _STYLE)


def _legend(order: Sequence[str]) -> str:
    items = [
        f'<li class="{colour(number)}"><svg width="12" height="12" aria-hidden="true">'
        f'<rect class="edge" width="12" height="12" rx="3"/></svg>to {text(host)}</li>'
        for number, host in enumerate(order)
    ]
    for label, count in (("10 kB", 10_000), ("1 MB", 1_000_000), ("100 MB", 100_000_000)):
        items.append(f"<li>{_sample(line_width(Counts(1, count, 0)))}{label}</li>")
    items.append(f"<li>{_sample(line_width(None), 'still')}nothing yet</li>")
    items.append(f"<li>{_sample(2, 'leaving')}leaving: no new connections</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _sample(width: float, kind: str = "") -> str:
    return (
        '<svg width="34" height="12" aria-hidden="true">'
        f'<path class="way {kind}" d="M4 6H30" stroke-width="{width:.1f}"/></svg>'
    )


def _card(view: View, nodes: Mapping[str, str], hosts: Mapping[str, str], order: Sequence[str]) -> str:
    head = f'<h2>{text(view.host)} <span class="soft">{text(nodes.get(view.host, ""))}</span></h2>'
    if not view.virtuals:
        words = nothing_balanced(view)
        return f'<section class="card">{head}<p>{text(words[0].upper() + words[1:])}.</p></section>'
    said = _many(len(view.virtuals), "virtual server")
    counts = total(virtual.counts for virtual in view.virtuals)
    if counts:
        said += f", {_many(counts.connections, 'connection')}, {size(counts.bytes)}"
    return (
        f'<section class="card">{head}<div class="soft">{said}</div>\n'
        f"{_drawing(view, hosts, order)}\n{_numbers(view, hosts)}</section>"
    )


def _drawing(view: View, hosts: Mapping[str, str], order: Sequence[str]) -> str:
    where = layout(view, hosts, order)
    ends = {row.real: row.middle for box in where.right for row in box.rows}
    starts = [row for box in where.left for row in box.rows]
    parts = [_left_box(box) for box in where.left]
    parts += [_right_box(box, view, order) for box in where.right]
    # Wide lines first: a thin one stays seen where they cross.
    ways = [
        (line_width(real.counts), _way(row, ends[real.address], row.virtual, real, hosts, order))
        for row in starts
        if row.virtual
        for real in row.virtual.reals
    ]
    parts += [way for _, way in sorted(ways, key=lambda item: -item[0])]
    return (
        f'<svg viewBox="0 0 {WIDTH} {where.height:g}" role="img" '
        f'aria-label="{text(f"Virtual servers of {view.host} and their real servers; numbers below")}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _way(
    start: Row, end: float, virtual: Virtual, real: Real, hosts: Mapping[str, str], order: Sequence[str]
) -> str:
    host = hosts.get(real.address)
    still = real.counts is None or real.counts.bytes == 0
    kinds = ["way", colour(order.index(host) if host in order else None)]
    kinds += ["leaving"] if real.weight == 0 else ["still"] if still else []
    middle = (_LEFT_END + _RIGHT) / 2
    said = f"{virtual.protocol} {virtual.address} to {real.address} on {host or 'an unknown host'}"
    if real.counts:
        said += (
            f": {_many(real.counts.connections, 'connection')}, {size(real.counts.bytes_in)} in,"
            f" {size(real.counts.bytes_out)} out"
        )
    return (
        f'<path class="{" ".join(kinds)}" stroke-width="{line_width(real.counts):.1f}" '
        f'd="M{_LEFT_END} {start.middle:g}C{middle:g} {start.middle:g} {middle:g} {end:g} {_RIGHT} {end:g}">'
        f"<title>{text(said)}</title></path>"
    )


def _left_box(box: Box) -> str:
    parts = [_frame(box, _LEFT, _LEFT_END)]
    parts += [
        f'<text class="name" x="{_LEFT + _PAD}" y="{label.y + 12:g}">{text(label.words)}</text>'
        for label in box.labels
    ]
    for row in box.rows:
        if row.virtual is None:
            continue
        port = place(row.virtual.address)[1]
        words = f"{port} {row.virtual.protocol} {row.virtual.scheduler}"
        parts.append(
            f'<text x="{_LEFT + 2 * _PAD}" y="{row.y + 12:g}">{text(clipped(words, _LETTERS))}</text>'
        )
        said, kind = (_amount(row.virtual.counts), "soft")
        if not row.virtual.reals:
            said, kind = "no real server", "bad"
        parts.append(f'<text class="{kind}" x="{_LEFT + 2 * _PAD}" y="{row.y + 25:g}">{text(said)}</text>')
    return "".join(parts)


def _right_box(box: Box, view: View, order: Sequence[str]) -> str:
    number = order.index(box.host) if box.host in order else None
    parts = [
        _frame(box, _RIGHT, _RIGHT_END),
        f'<rect class="edge {colour(number)}" x="{_RIGHT}" y="{box.y:g}" width="4" height="{box.height:g}" '
        'rx="2"/>',
    ]
    for row in box.rows:
        reals = [real for virtual in view.virtuals for real in virtual.reals if real.address == row.real]
        said = _amount(total(real.counts for real in reals))
        parts.append(f'<text x="{_RIGHT + 8}" y="{row.y + 12:g}">{text(row.real)}</text>')
        parts.append(f'<text class="soft" x="{_RIGHT + 8}" y="{row.y + 25:g}">{text(said)}</text>')
    return "".join(parts)


def _frame(box: Box, left: float, right: float) -> str:
    return (
        f'<rect class="box" x="{left}" y="{box.y:g}" width="{right - left}" height="{box.height:g}" rx="6"/>'
        f'<text class="soft" x="{left + 8}" y="{box.y + 15:g}">'
        f"{text(clipped(box.heading, _LETTERS + 2))}<title>{text(box.heading)}</title></text>"
    )


def _amount(counts: Counts | None) -> str:
    if counts is None:
        return "not counted"
    if counts == Counts(0, 0, 0):
        return "nothing yet"
    return f"{_short(counts.connections)} conns, {size(counts.bytes)}"


def _short(count: int) -> str:
    """A count in at most five letters, so that it fits beside its bytes."""
    return str(count) if count < 10_000 else size(count).removesuffix("B").replace(" ", "")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _numbers(view: View, hosts: Mapping[str, str]) -> str:
    lines = []
    for virtual in view.virtuals:
        for number, real in enumerate(virtual.reals or (None,)):
            first = f"{virtual.protocol} {virtual.address}" if number == 0 else ""
            counts = real.counts if real else None
            cells = [first, real.address if real else "none", hosts.get(real.address, "-") if real else "-"]
            numbers = (
                [counts.connections, size(counts.bytes_in), size(counts.bytes_out)] if counts else ["-"] * 3
            )
            lines.append(
                "<tr>"
                + "".join(f"<td>{text(cell)}</td>" for cell in cells)
                + "".join(f'<td class="number">{text(cell)}</td>' for cell in numbers)
                + "</tr>"
            )
    return (
        '<details><summary>In numbers</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{text(f"Numbers of {view.host}")}"><table><thead><tr><th>Virtual server<th>Real server'
        '<th>On<th class="number">Conns<th class="number">In<th class="number">Out</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
