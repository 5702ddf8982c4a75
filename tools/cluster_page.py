"""Draws the virtual servers of each host as an HTML page, from the views in `model/traffic.py`.

A card shows one host. Its kube-ipvs0 and host addresses are on the left, with a row for each virtual server.
The real servers are on the right, grouped by host. A line's width shows the traffic; the scale is the same on
every page (`line_width`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.ipvs import Counts, Real, Virtual
from model.traffic import View, nothing_balanced, place, size, total
from tools.page import clipped, colour, render

# A unit is a pixel on a phone. Wider screens put cards side by side.
WIDTH = 400
_LEFT, _LEFT_END = 2, 146
_RIGHT, _RIGHT_END = 236, 398
_HEADING = 22
_ADDRESS = 17
_ROW = 31
_GAP = 8
_PAD = 6
_LETTERS = 19  # characters of 12 units' height that fit into a box
ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Row:
    """A virtual or real server in a box; `y` is the row's top."""

    y: float
    virtual: Virtual | None = None
    real: str = ""

    @property
    def middle(self) -> float:
        """Where its lines begin or end."""
        return self.y + _ROW / 2


@dataclass(frozen=True)
class Heading:
    """An address above its rows."""

    y: float
    text: str


@dataclass(frozen=True)
class Box:
    """A frame with a heading, around the rows of an interface or a host."""

    y: float
    height: float
    heading: str
    host: str | None
    addresses: tuple[Heading, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Layout:
    """The positions of everything in a card."""

    left: tuple[Box, ...]
    right: tuple[Box, ...]
    height: float


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of the drawing."""

    classes: str
    x: float
    y: float
    width: float
    height: float
    radius: int


@dataclass(frozen=True)
class Label:
    """A line of text in the drawing."""

    classes: str
    x: float
    y: float
    text: str
    title: str = ""


@dataclass(frozen=True)
class Flow:
    """A line from a virtual server to a real server."""

    classes: str
    width: str
    path: str
    title: str


@dataclass(frozen=True)
class Drawing:
    """A card's picture; later elements cover earlier ones."""

    width: float
    height: float
    boxes: tuple[Rectangle, ...]
    labels: tuple[Label, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True)
class Card:
    """One host. Without virtual servers it has no drawing, and the summary says why."""

    host: str
    address: str
    summary: str
    drawing: Drawing | None = None
    rows: tuple[tuple[str, ...], ...] = ()


def page(
    views: Sequence[View], nodes: Mapping[str, str], hosts: Mapping[str, str], *, title: str, when: str
) -> str:
    """The page's HTML.

    Args:
        views: The hosts that were read.
        nodes: The addresses of all hosts by name, in the order of the settings.
        hosts: The host of each real server.
        title: The page's title.
        when: What the numbers refer to, such as `as of the last verification`.
    """
    order = list(nodes)
    samples = (("10 kB", 10_000), ("1 MB", 1_000_000), ("100 MB", 100_000_000))
    return render(
        "cluster.html.j2",
        title=title,
        subtitle=f"Virtual servers and their traffic, {when}.",
        hosts=order,
        widths=[(label, f"{line_width(Counts(1, count, 0)):.1f}") for label, count in samples],
        idle_width=f"{line_width(None):.1f}",
        cards=[_card(view, nodes.get(view.host, ""), hosts, order) for view in views],
        missing=[host for host in order if host not in {view.host for view in views}],
    )


def line_width(counts: Counts | None) -> float:
    """A line's width for the bytes in both directions: logarithmic, from 1 kB to 1 GB."""
    kilobytes = counts.bytes / 1000 if counts else 0
    return min(1.2 + 1.6 * math.log10(1 + kilobytes), 11.0)


def layout(view: View, hosts: Mapping[str, str], order: Sequence[str]) -> Layout:
    """Compute the positions of a host's virtual and real servers.

    Args:
        view: The host.
        hosts: The host of each real server.
        order: Host names in the order in which every card shows them.
    """
    by_address: dict[str, list[Virtual]] = {address: [] for address in view.addresses}
    for virtual in view.virtuals:
        by_address.setdefault(place(virtual.address)[0], []).append(virtual)
    service = {address: by_address[address] for address in view.addresses}
    own = {address: found for address, found in by_address.items() if address not in service}
    left: list[Box] = []
    for heading, part in (("kube-ipvs0", service), ("host addresses", own)):
        if part:
            left.append(_address_box(_below(left), heading, part))
    groups: dict[str, list[str]] = {host: [] for host in (*order, ELSEWHERE)}
    # Real servers in the order of their virtual servers: fewer lines cross.
    virtuals = [row.virtual for box in left for row in box.rows if row.virtual]
    for real in dict.fromkeys(real.address for virtual in virtuals for real in virtual.reals):
        groups.setdefault(hosts.get(real, ELSEWHERE), []).append(real)
    right: list[Box] = []
    for host, reals in groups.items():
        if reals:
            right.append(_host_box(_below(right), host, view.host, reals))
    slack = _below(left) - _below(right)
    if slack > 0:
        right = [_moved(box, slack / 2) for box in right]
    return Layout(tuple(left), tuple(right), max(_below(left), _below(right)) - _GAP + 2)


def _below(boxes: Sequence[Box]) -> float:
    return boxes[-1].y + boxes[-1].height + _GAP if boxes else 2.0


def _address_box(top: float, heading: str, addresses: Mapping[str, Sequence[Virtual]]) -> Box:
    y = top + _HEADING
    headings, rows = [], []
    for address, virtuals in addresses.items():
        headings.append(Heading(y, address))
        y += _ADDRESS
        for virtual in virtuals:
            rows.append(Row(y, virtual=virtual))
            y += _ROW
    return Box(top, y + _PAD - top, heading, None, tuple(headings), tuple(rows))


def _host_box(top: float, host: str, local: str, reals: Sequence[str]) -> Box:
    heading = ELSEWHERE if host == ELSEWHERE else f"local: {host}" if host == local else f"remote: {host}"
    rows = [Row(top + _HEADING + number * _ROW, real=real) for number, real in enumerate(reals)]
    return Box(top, _HEADING + len(rows) * _ROW + _PAD, heading, host, (), tuple(rows))


def _moved(box: Box, by: float) -> Box:
    rows = tuple(Row(row.y + by, row.virtual, row.real) for row in box.rows)
    return Box(box.y + by, box.height, box.heading, box.host, box.addresses, rows)


def _card(view: View, address: str, hosts: Mapping[str, str], order: Sequence[str]) -> Card:
    if not view.virtuals:
        reason = nothing_balanced(view)
        return Card(view.host, address, reason[0].upper() + reason[1:])
    summary = _count(len(view.virtuals), "virtual server")
    counts = total(virtual.counts for virtual in view.virtuals)
    if counts:
        summary += f", {_count(counts.connections, 'connection')}, {size(counts.bytes)}"
    return Card(view.host, address, summary, _drawing(view, hosts, order), tuple(_table_rows(view, hosts)))


def _drawing(view: View, hosts: Mapping[str, str], order: Sequence[str]) -> Drawing:
    places = layout(view, hosts, order)
    boxes, labels = [], []
    for box in places.left:
        boxes.append(_frame(box, _LEFT, _LEFT_END))
        labels += [_heading(box, _LEFT), *_virtual_labels(box)]
    for box in places.right:
        edge = f"edge {colour(order.index(box.host) if box.host in order else None)}"
        boxes += [_frame(box, _RIGHT, _RIGHT_END), Rectangle(edge, _RIGHT, box.y, 4, box.height, 2)]
        labels += [_heading(box, _RIGHT), *_real_labels(box, view)]
    ends = {row.real: row.middle for box in places.right for row in box.rows}
    flows = [
        (line_width(real.counts), _flow(row.middle, ends[real.address], row.virtual, real, hosts, order))
        for box in places.left
        for row in box.rows
        if row.virtual
        for real in row.virtual.reals
    ]
    # Wide lines first: a thin one stays visible where they cross.
    flows.sort(key=lambda item: -item[0])
    return Drawing(WIDTH, places.height, tuple(boxes), tuple(labels), tuple(flow for _, flow in flows))


def _frame(box: Box, left: float, right: float) -> Rectangle:
    return Rectangle("box", left, box.y, right - left, box.height, 6)


def _heading(box: Box, left: float) -> Label:
    return Label("soft", left + 8, box.y + 15, clipped(box.heading, _LETTERS + 2), box.heading)


def _virtual_labels(box: Box) -> list[Label]:
    labels = [Label("name", _LEFT + _PAD, heading.y + 12, heading.text) for heading in box.addresses]
    for row in box.rows:
        if row.virtual is None:
            continue
        port = place(row.virtual.address)[1]
        text = clipped(f"{port} {row.virtual.protocol} {row.virtual.scheduler}", _LETTERS)
        amount, kind = _amount(row.virtual.counts), "soft"
        if not row.virtual.reals:
            amount, kind = "no real server", "bad"
        labels += [
            Label("", _LEFT + 2 * _PAD, row.y + 12, text),
            Label(kind, _LEFT + 2 * _PAD, row.y + 25, amount),
        ]
    return labels


def _real_labels(box: Box, view: View) -> list[Label]:
    labels = []
    for row in box.rows:
        reals = [real for virtual in view.virtuals for real in virtual.reals if real.address == row.real]
        labels += [
            Label("", _RIGHT + 8, row.y + 12, row.real),
            Label("soft", _RIGHT + 8, row.y + 25, _amount(total(real.counts for real in reals))),
        ]
    return labels


def _flow(
    start: float, end: float, virtual: Virtual, real: Real, hosts: Mapping[str, str], order: Sequence[str]
) -> Flow:
    host = hosts.get(real.address)
    idle = real.counts is None or real.counts.bytes == 0
    classes = ["flow", colour(order.index(host) if host in order else None)]
    classes += ["draining"] if real.weight == 0 else ["idle"] if idle else []
    middle = (_LEFT_END + _RIGHT) / 2
    title = f"{virtual.protocol} {virtual.address} to {real.address} on {host or 'an unknown host'}"
    if real.counts:
        title += (
            f": {_count(real.counts.connections, 'connection')}, {size(real.counts.bytes_in)} in,"
            f" {size(real.counts.bytes_out)} out"
        )
    return Flow(
        " ".join(classes),
        f"{line_width(real.counts):.1f}",
        f"M{_LEFT_END} {start:g}C{middle:g} {start:g} {middle:g} {end:g} {_RIGHT} {end:g}",
        title,
    )


def _amount(counts: Counts | None) -> str:
    if counts is None:
        return "not counted"
    if counts == Counts(0, 0, 0):
        return "no traffic yet"
    return f"{_short(counts.connections)} conns, {size(counts.bytes)}"


def _short(count: int) -> str:
    """A count in at most five characters, so that it fits beside its bytes."""
    return str(count) if count < 10_000 else size(count).removesuffix("B").replace(" ", "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table_rows(view: View, hosts: Mapping[str, str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for virtual in view.virtuals:
        for number, real in enumerate(virtual.reals or (None,)):
            counts = real.counts if real else None
            rows.append(
                (
                    f"{virtual.protocol} {virtual.address}" if number == 0 else "",
                    real.address if real else "none",
                    hosts.get(real.address, "-") if real else "-",
                    *(
                        (str(counts.connections), size(counts.bytes_in), size(counts.bytes_out))
                        if counts
                        else ("-", "-", "-")
                    ),
                )
            )
    return rows
