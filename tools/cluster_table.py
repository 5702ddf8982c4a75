"""The virtual servers of each host as a table, from the views in `model/traffic.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common import tables
from model.ipvs import Real, Virtual
from model.traffic import Change, Key, View, idle, nothing_balanced, size

_HEADINGS = ("VIRTUAL SERVER", "SCHEDULER", "REAL SERVER", "HOST", "WEIGHT", "ACTIVE", "CONNS", "IN", "OUT")
_CHANGE_HEADINGS = ("CONNS/S", "BYTES/S")
_NUMBERS = range(4, len(_HEADINGS) + len(_CHANGE_HEADINGS))


def table(
    views: Sequence[View], hosts: Mapping[str, str], since: Change | None = None, *, fold: bool = False
) -> str:
    """One block for each host, with the same column widths in all of them.

    A virtual server without real servers shows `-` for them: it refuses connections.

    Args:
        views: The hosts' views.
        hosts: The host of each real server (`model.traffic.hosts_of`).
        since: Adds the rates since the previous reading.
        fold: Replace virtual servers without traffic since the previous reading by their number.
    """
    headings = (*_HEADINGS, *(_CHANGE_HEADINGS if since else ()))
    rows: dict[str, list[tuple[str, ...]]] = {}
    folded: dict[str, int] = {}
    for view in views:
        shown = [
            virtual for virtual in view.virtuals if not (fold and since and idle(since, view.host, virtual))
        ]
        folded[view.host] = len(view.virtuals) - len(shown)
        rows[view.host] = [headings]
        rows[view.host] += [cells for virtual in shown for cells in _cells(view.host, virtual, hosts, since)]
    aligned = iter(
        tables.lines([cells for block in rows.values() for cells in block], right=_NUMBERS, indent=2)
    )
    blocks = []
    for view in views:
        lines = [next(aligned) for _ in rows[view.host]]
        if not view.virtuals:
            lines = [f"  {nothing_balanced(view)}"]
        elif folded[view.host]:
            lines.append(f"  and {folded[view.host]} without traffic")
        blocks.append("\n".join([view.host, *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _cells(
    host: str, virtual: Virtual, hosts: Mapping[str, str], since: Change | None
) -> list[tuple[str, ...]]:
    first = (f"{virtual.protocol} {virtual.address}", virtual.scheduler)
    rows: list[tuple[str, ...]] = []
    for real in virtual.reals:
        cells: tuple[str, ...] = (
            real.address,
            hosts.get(real.address, "-"),
            str(real.weight),
            "-" if real.active is None else str(real.active),
            *_counts(real),
        )
        if since:
            cells = (*cells, *_rates(since, (host, virtual.protocol, virtual.address, real.address)))
        rows.append(cells)
    if not rows:
        rows.append(("-",) * (len(_HEADINGS) - len(first) + (len(_CHANGE_HEADINGS) if since else 0)))
    return [(*(first if number == 0 else ("", "")), *cells) for number, cells in enumerate(rows)]


def _counts(real: Real) -> tuple[str, str, str]:
    if real.counts is None:
        return ("-", "-", "-")
    return (str(real.counts.connections), size(real.counts.bytes_in), size(real.counts.bytes_out))


def _rates(since: Change, key: Key) -> tuple[str, str]:
    counts = since.counts.get(key)
    if counts is None:
        return ("-", "-")
    return (f"{counts.connections / since.seconds:.1f}", size(counts.bytes / since.seconds))
