"""Phrases that confuse readers, and what to write instead (CONTRIBUTING.md, Style)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stacks import PROJECT
from tools.lint import project_files

SUFFIXES = {".c", ".go", ".in", ".j2", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
NAMES = {"Makefile", "run"}
QUOTES = "\"'`"

# Regular expressions. A space also stands for a line break inside a comment or between two string literals.
REPLACEMENTS = {
    r"anew": "again, from scratch",
    r"another than": "different from",
    r"(?:is|are|was|were) no(?! (?:longer|more|less|such|match|one)\b)": "isn't a, has no",
    r"(?:is|are|was|were) none of(?! (?:them|these|those)\b)": "isn't, doesn't belong to",
    r"(?:giv(?:e|es|en|ing)|gave) (?:(?:it|them|hosts?|the hosts?) )?back": "restore",
    r"so long (?:as|may)": "how long, as long as",
    r"hosts (?:more|less)": "adding and removing hosts",
    r"mend(?:s|ed|ing)?": "fix",
    r"\w*tortur\w*": "resilience",
    r"by which": "that, with which",
    r"of which (?:the|only)": "whose",
    r"whose (?:it is|host)": "the owner",
    r"what it is that": "what",
    r"(?:is|are|was|were|be) told(?! (?:apart|from)\b)": "gets, is reported",
    r"said so": "reported it",
    r"look(?:s|ed|ing)? whether": "check whether",
    r"looked (?:after|over)": "checked, maintained",
    r"(?:hold|holds|held|holding) \w+ against|held against": "compare with",
    r"the way in": "SSH access",
    r"(?:may|can|can't|could|couldn't) be had": "is available, can be downloaded",
    r"(?:a|the) person's own": "the user's own",
    r"for ever": "forever",
    r"former": "previous",
    r"proofs?": "verification",
    r"promis(?:e|es|ed|ing)": "expect, guarantee",
    r"(?:last|live|next|first) look": "the last reading, the last check",
    r"(?:come|comes|came|coming) to its end": "finish",
    r"what stands (?:on|behind)": "what depends on",
    r"dear": "expensive",
}

SPACE = r"""(?:\s|\#|//|["']\s*f?["'])+"""
# One pattern with a group for each phrase. "There is no ..." is fine.
PHRASES = "|".join(f"({phrase.replace(' ', SPACE)})" for phrase in REPLACEMENTS)
PATTERN = re.compile(rf"(?:\b(?P<there>there{SPACE}))?(?<![\w:-])(?:{PHRASES})(?![\w-])", re.IGNORECASE)


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of every file that people read, except this one."""
    for path in project_files(PROJECT):
        name = path.relative_to(PROJECT).as_posix()
        if (path.suffix in SUFFIXES or path.name in NAMES) and path != Path(__file__).resolve():
            text = path.read_text(encoding="utf-8")
            if name == "CONTRIBUTING.md":
                # Its table of bad examples.
                text = re.sub(r"^\| instead of .*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
            yield name, text


def findings(name: str, text: str) -> Iterator[str]:
    instead = list(REPLACEMENTS.values())
    for found in PATTERN.finditer(text):
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        # A name in quotes is an identifier, such as a resource's earlier name.
        if found["there"] or (before and before in QUOTES and after == before):
            continue
        line = text.count("\n", 0, found.start()) + 1
        # The first group is "there".
        yield f'{name}:{line}: "{" ".join(found[0].split())}": write {instead[(found.lastindex or 0) - 2]}'


def test_texts_have_no_banned_phrases() -> None:
    found = [finding for name, text in texts() for finding in findings(name, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The file is\n# written anew.", 1),
        ("The host is\n    # no member of the cluster.", 1),
        ('"the host is told "\n    "to stop"', 1),
        ("There is no member, and there\nis no node.", 0),
        ("::error::There is no preview", 0),
        ("The hosts were given back.", 1),
        ('aliases=[pulumi.Alias(name="proof")]', 0),
        ("The path is no longer used.", 0),
    ],
)
def test_phrases_are_found_across_lines_with_exceptions(text: str, count: int) -> None:
    assert len(list(findings("file", text))) == count
