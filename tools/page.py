"""What the pages that this project draws have in common: one file, no script, nothing loaded from anywhere.

Colours are variables with a light and a dark value. Hosts go by colours `k0` to `k5`, which people who
see few colours can tell apart too (after Okabe and Ito), and never by colour alone.
"""

from __future__ import annotations

import html

COLOURS = 6

# The policy is the second lock: were a text ever not escaped, it still could neither run nor load.
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --card: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --well: #eef1f4;
  --bad: #b3261e; --strong: #c2410c;
  --c0: #0067a5; --c1: #b8480b; --c2: #00735a; --c3: #8a3f86; --c4: #7a5c00; --c5: #4b53bc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #0f1317; --card: #181d23; --text: #e6eaee; --soft: #9aa5b1; --line: #38414b; --well: #222932;
    --bad: #ff8a80; --strong: #fb923c;
    --c0: #56b4e9; --c1: #f0904d; --c2: #3cc79a; --c3: #dd94cf; --c4: #e0b93f; --c5: #a3abff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
header p { margin: .2rem 0 1rem; color: var(--soft); overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem;
  min-width: 0; }
.soft { color: var(--soft); }
.card > .soft { font-size: .88rem; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; margin: 0 0 1rem; padding: 0; list-style: none;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; }
summary { cursor: pointer; margin-top: .5rem; font-size: .85rem; color: var(--soft); }
svg { display: block; }
svg text { fill: var(--text); font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
svg text.soft { fill: var(--soft); font-size: 11px; }
.k0 { --c: var(--c0); } .k1 { --c: var(--c1); } .k2 { --c: var(--c2); }
.k3 { --c: var(--c3); } .k4 { --c: var(--c4); } .k5 { --c: var(--c5); }
@media (max-width: 30rem) { body { padding: .75rem .5rem; } .card { padding: .6rem .4rem; } }
"""


def page(title: str, subtitle: str, body: str, style: str = "") -> str:
    """A whole page.

    :param title: text, and so is `subtitle`: both are escaped here.
    :param body: HTML, whose texts whoever made it has escaped.
    """
    return _FRAME.format(title=text(title), subtitle=text(subtitle), body=body, style=_STYLE + style)


def text(value: object) -> str:
    """Any text, as it may stand in HTML and SVG, in attributes too."""
    return html.escape(str(value), quote=True)


def clipped(value: str, most: int) -> str:
    """A text of at most so many characters, cut with an ellipsis; not escaped."""
    return value if len(value) <= most else f"{value[: most - 1]}…"


def colour(number: int | None) -> str:
    """The class of a host's colour by its place; one of no host has none of them."""
    return "k-none" if number is None else f"k{number % COLOURS}"
