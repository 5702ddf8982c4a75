"""Text helpers for the report: secrets are masked, values shortened, names sorted and joined."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_MAX_VALUE_CHARACTERS = 120

_SECRETS = (
    # The private part of a PEM, even if it is cut off.
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "[secret]",
    ),
    # User name and password in a URL.
    (re.compile(r"(?<=://)[^/\s@\"']+(?=@)"), "[secret]"),
    # A bootstrap token.
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), "[secret]"),
    # Pulumi's ciphertext is only noise to a reader.
    (re.compile(r"\bv1:[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+"), "[secret]"),
    (re.compile(r"(?i)((?:password|passphrase|token|secret)\s*[=:]\s*)[^\s,;'\"]+"), r"\1[secret]"),
)


def mask(text: str) -> str:
    """Replace everything that looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def display(value: Any) -> str:
    """A value on one line: masked, and shortened if it is long."""
    if value is None:
        return "none"
    plain = isinstance(value, str) and value and "\n" not in value
    text = mask(value if plain else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 3]}..."


def count(number: int, noun: str) -> str:
    """`1 object` or `2 objects`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def conjunction(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shorten(lines: Sequence[str], limit: int | None) -> list[str]:
    """The first lines, and a line that counts the rest."""
    return (
        list(lines)
        if limit is None or len(lines) <= limit
        else [*lines[:limit], f"... {len(lines) - limit} more"]
    )


def fenced(lines: Sequence[str], language: str) -> str:
    """A Markdown code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])
