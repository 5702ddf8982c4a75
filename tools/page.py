"""Renders the HTML pages from the templates in `tools/templates`.

A page is one file without scripts that loads nothing from elsewhere. It follows the reader's light or dark
mode. Each host has one of the colours `k0` to `k5` (after Okabe and Ito), which people with colour-blindness
can tell apart, and always a name beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

COLOURS = 6


def colour(number: int | None) -> str:
    """The CSS class of a host's colour by the host's position, or a neutral one without a host."""
    return "k-none" if number is None else f"k{number % COLOURS}"


def clipped(text: str, most: int) -> str:
    """The text, cut to `most` characters with an ellipsis if it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def render(template: str, **values: Any) -> str:
    """Render a page. All values are escaped.

    Args:
        template: The file's name in `tools/templates`.
        values: The template's variables.
    """
    return _environment().get_template(template).render(values)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"colour": colour, "units": "{:g}".format}
    return environment
