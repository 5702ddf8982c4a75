"""Draws a run as a page: a bar for each operation, by host, with the critical path marked.

Places are in percent of the run's time, so that the drawing takes whatever width there is and its
letters keep their size; on a phone a bar is below its name, else beside it.
"""

from __future__ import annotations

from tools.critical import Bar, Step, Timeline, caveats, headline, seconds_of, ticks
from tools.page import page as whole_page
from tools.page import text
from tools.watch import Urn

_STYLE = """
.group { margin-top: 1rem; }
.row { display: grid; grid-template-columns: 17rem 1fr 5.5rem; gap: 0 .6rem; align-items: center;
  font-size: .82rem; }
.row .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row .took { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.row svg { width: 100%; overflow: visible; }
.critical .name, .critical .took { font-weight: 600; }
.tick { stroke: var(--line); }
.bar { fill: var(--c0); opacity: .75; }
.critical .bar { fill: var(--strong); opacity: 1; }
.bad .took { color: var(--bad); }
.bad .bar { stroke: var(--bad); stroke-width: 2; }
.wait { stroke: var(--strong); stroke-dasharray: 2 3; stroke-width: 2; }
.axis text { font-size: 11px; fill: var(--soft); }
.path { margin-top: 1rem; }
.path h2 { margin-bottom: .4rem; }
@media (max-width: 40rem) {
  .row { grid-template-columns: 1fr auto; }
  .row svg { grid-column: 1 / -1; grid-row: 2; }
  .row.axis .name, .row.axis .took { display: none; }
}
"""
_HEIGHT = 18


def page(run: Timeline) -> str:
    """The page."""
    groups = "\n".join(
        f'<section class="card group"><h2>{text(group)}</h2>\n{_axis(run)}\n'
        + "\n".join(_row(run, bar) for bar in bars)
        + "</section>"
        for group, bars in run.groups().items()
    )
    notes = "".join(f"<p>{text(said)}</p>" for said in caveats(run))
    body = f"{_legend()}\n{notes}{groups}\n{_path(run)}"
    return whole_page(f"pulumi {run.command}: {run.stack}", headline(run), body, _STYLE)


def percent(run: Timeline, value: float) -> float:
    """Where a time is in the drawing's width."""
    return round(100 * value / max(run.seconds, 0.001), 2)


def _legend() -> str:
    def sample(kind: str, shape: str) -> str:
        return f'<svg class="{kind}" width="30" height="12" aria-hidden="true">{shape}</svg>'

    bar = '<rect class="bar" width="30" height="12" rx="2"/>'
    wait = '<line class="wait" x1="0" x2="30" y1="6" y2="6"/>'
    return (
        f'<ul class="legend"><li>{sample("critical", bar)}◆ critical path: the run\'s end waited for it</li>'
        f"<li>{sample('', bar)}had time to spare</li>"
        f"<li>{sample('', wait)}waited, with nothing before it at work</li></ul>"
    )


def _axis(run: Timeline) -> str:
    labels = []
    for tick in ticks(run.seconds):
        place = percent(run, tick)
        # The last label would stand out over the edge.
        anchor = "start" if place < 5 else "end" if place > 95 else "middle"
        labels.append(f'<text x="{place}%" y="12" text-anchor="{anchor}">{tick:.0f} s</text>')
    return (
        '<div class="row axis" aria-hidden="true"><span class="name"></span>'
        f'<svg height="{_HEIGHT}">{"".join(labels)}</svg><span class="took"></span></div>'
    )


def _row(run: Timeline, bar: Bar) -> str:
    step = run.critical(bar)
    kinds = ["row", *(["critical"] if step else []), *(["bad"] if bar.outcome != "done" else [])]
    name = bar.name if bar.op in ("create", "delete") else f"{bar.name} ({bar.op})"
    took = seconds_of(bar.took, run.exact)
    said = f"{Urn.parse(bar.urn).name}, {bar.op}: from {seconds_of(bar.began, run.exact)}, took {took}"
    if bar.outcome != "done":
        took, said = bar.outcome, f"{said}, {bar.outcome}"
    if step:
        said += f"; on the critical path, after {seconds_of(step.waited, run.exact)} of waiting"
    return (
        f'<div class="{" ".join(kinds)}"><span class="name" title="{text(name)}">{"◆ " if step else ""}'
        f'{text(name)}</span><svg height="{_HEIGHT}" role="img" aria-label="{text(said)}">'
        f"<title>{text(said)}</title>{_grid(run)}{_waited(run, step)}"
        f'<rect class="bar" x="{percent(run, bar.began)}%" y="3" width="{max(percent(run, bar.took), 0.3)}%" '
        f'height="{_HEIGHT - 6}" rx="2"/></svg><span class="took">{text(took)}</span></div>'
    )


def _grid(run: Timeline) -> str:
    places = [percent(run, tick) for tick in ticks(run.seconds)]
    return "".join(
        f'<line class="tick" x1="{place}%" x2="{place}%" y1="0" y2="{_HEIGHT}"/>' for place in places
    )


def _waited(run: Timeline, step: Step | None) -> str:
    if step is None or step.waited <= 0:
        return ""
    begin, end = percent(run, step.bar.began - step.waited), percent(run, step.bar.began)
    return f'<line class="wait" x1="{begin}%" x2="{end}%" y1="{_HEIGHT / 2:g}" y2="{_HEIGHT / 2:g}"/>'


def _path(run: Timeline) -> str:
    lines = "".join(
        f"<tr><td>{text(Urn.parse(step.bar.urn).name)}</td>"
        + "".join(
            f'<td class="number">{text(seconds_of(value, run.exact))}</td>'
            for value in (step.bar.began, step.bar.took, step.waited)
        )
        + "</tr>"
        for step in run.path
    )
    return (
        '<section class="card path"><h2>Critical path</h2><div class="scroll" tabindex="0" role="region" '
        'aria-label="Critical path"><table><thead><tr><th>Step<th class="number">Began'
        f'<th class="number">Took<th class="number">Waited</tr></thead><tbody>{lines}</tbody></table></div>'
        "</section>"
    )
