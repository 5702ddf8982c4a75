"""Renders the comment on a pull request: what a change does to each environment, as Markdown.

A reviewer should understand it in ten seconds. It shows the impacts, the broken policy rules, the settings
that differ and the resources. It shows only those inputs of a resource that these mention, and masks them:
scripts and keys stay out of comments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from model.change_impact import REPLACES_CLUSTER
from model.field_types import share_of
from model.settings import fields
from model.sorting import natural
from report.impact import Impact, impacts
from report.impact_texts import Level
from report.plan import Change, changes_in
from report.policy_findings import Finding
from report.settings_diff import settings_diff
from report.text import conjunction, count, fenced, mask, shorten

MAX_CHARACTERS = 60_000
"""The size of a page: GitHub accepts 65,536 characters in a comment, GitLab a million."""
DESTRUCTIVE_LABEL = "destructive"
"""The label that confirms that a pull request's destructive change is intended."""

_LINE_LIMITS = (2000, 400, 100, 25, 0)  # lines of each folded list, tried until the page is short enough
_MAX_UNFOLDED_LINES = 40  # lines of impacts and findings once the folded lists are empty
_MAX_WARNINGS = 10
_MAX_FINDINGS = 3  # findings of one rule that are listed in full
_MAX_NAMES = 10  # further resources that break the same rule, by name
_MAX_INPUTS = 6  # changed inputs that are named for each resource
_MAX_UNAVAILABLE = fields()["proxy.maxUnavailable"].default

_SIGNS = {"replace": "±", "delete": "-", "create": "+", "update": "~"}
_RANKS = {op: rank for rank, op in enumerate(_SIGNS)}
_TITLES = {
    Level.LOSS: "destructive",
    Level.MADE: "adds hosts",
    Level.ROLLING: "rolling restarts",
    Level.IN_PLACE: "changes in place",
    Level.QUIET: "no visible effect",
}
# The engine's own text around an error of the program or of a hook.
_PREFIX = re.compile(r'^(error: )?(Preview failed: )?((before|after) hook "[^"]*" failed: )?')
_UNINFORMATIVE = re.compile(r"^error: (preview failed|an unhandled error occurred: program exited with .*)$")
_REFUSED = 'before hook "changes" failed'
# Where plugins come from doesn't matter to a reviewer, and the impacts already cover a new cluster.
_IGNORED_WARNINGS = (
    "warning: using pulumi-",
    "warning: resource plugin ",
    REPLACES_CLUSTER,
    f"warning: {REPLACES_CLUSTER}",
)


@dataclass(frozen=True)
class Environment:
    """One environment that a change touches.

    Attributes:
        plan: The parsed output of `pulumi preview --json`; None if the preview failed.
        errors: Why it failed.
        before: The settings before the change, complete and without prefixes; None if unknown.
        after: The settings after it.
        findings: The policy rules that it breaks.
    """

    name: str
    plan: Mapping[str, Any] | None
    errors: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()

    @cached_property
    def changes(self) -> list[Change]:
        """The resources that don't stay the same."""
        return [] if self.plan is None else changes_in(self.plan)

    @cached_property
    def impacts(self) -> list[Impact]:
        """What would happen, worst first."""
        if self.plan is None:
            return []
        hosts = [host for host in self.after.get("hosts") or [] if isinstance(host, Mapping)]
        share = (self.after.get("proxy") or {}).get("maxUnavailable", _MAX_UNAVAILABLE)
        lanes = share_of(str(share), sum(host.get("role") == "worker" for host in hosts))
        return impacts(self.changes, [str(host.get("name")) for host in hosts], lanes)

    @property
    def is_destructive(self) -> bool:
        """Whether anything is lost."""
        return any(impact.level is Level.LOSS for impact in self.impacts)

    @property
    def violates_policy(self) -> bool:
        """Whether a mandatory rule is broken."""
        return any(finding.mandatory for finding in self.findings)


@dataclass(frozen=True)
class Page:
    """The comment.

    Attributes:
        is_destructive: Whether anything is lost in any environment.
        has_failed: Whether a preview failed or a mandatory rule is broken.
    """

    text: str
    is_destructive: bool
    has_failed: bool


@dataclass(frozen=True)
class _Section:
    """An environment as the template shows it; every list is already shortened."""

    name: str
    title: str
    errors: Sequence[str]
    impacts: Sequence[str]
    warnings: Sequence[str]
    findings: Sequence[str]
    settings: Sequence[str]
    resource_counts: str
    resources: Sequence[str]


def render(
    environments: Sequence[Environment], *, approved: bool, max_characters: int = MAX_CHARACTERS
) -> Page:
    """Render the report on a change.

    Args:
        environments: The environments that it touches, in any order.
        approved: Whether the pull request has the label `destructive`.
        max_characters: The size of the page. Folded lists are cut first, then whole environments are dropped.
    """
    ordered = sorted(environments, key=lambda environment: natural(environment.name))
    destructive = [environment.name for environment in ordered if environment.is_destructive]
    violating = [environment.name for environment in ordered if environment.violates_policy]

    def text(max_lines: int, shown: int) -> str:
        rendered = _TEMPLATE.render(
            approved=approved,
            destructive=destructive,
            label=DESTRUCTIVE_LABEL,
            omitted=[environment.name for environment in ordered[shown:]],
            sections=[_section(environment, max_lines) for environment in ordered[:shown]],
            violating=violating,
        )
        return rendered.rstrip("\n") + "\n"

    attempts = [(limit, len(ordered)) for limit in _LINE_LIMITS]
    attempts += [(0, shown) for shown in reversed(range(len(ordered)))]
    page = ""
    for max_lines, shown in attempts:
        page = text(max_lines, shown)
        if len(page) <= max_characters:
            break
    return Page(
        page[:max_characters],
        is_destructive=bool(destructive),
        has_failed=bool(violating) or any(environment.plan is None for environment in ordered),
    )


def _section(environment: Environment, max_lines: int) -> _Section:
    plan = environment.plan
    max_unfolded = None if max_lines else _MAX_UNFOLDED_LINES
    settings = []
    if environment.before is not None:
        settings = settings_diff(environment.before, environment.after)
    changes = _sorted_resources(environment.changes)
    return _Section(
        name=environment.name,
        title=_title(environment),
        errors=shorten(_error_lines(environment.errors), max(max_lines, 20)) if plan is None else (),
        impacts=shorten(_impact_lines(environment.impacts), max_unfolded) if plan is not None else (),
        warnings=_warnings(plan)[:_MAX_WARNINGS] if plan is not None else (),
        findings=shorten([*_finding_lines(environment.findings)], max_unfolded),
        settings=shorten(settings, max_lines),
        resource_counts=_resource_counts(changes),
        resources=shorten(_resource_lines(changes), max_lines),
    )


def _title(environment: Environment) -> str:
    title = _worst(environment)
    return f"{title}; violates policy" if environment.violates_policy else title


def _worst(environment: Environment) -> str:
    if environment.plan is None:
        problems = re.search(r"The configuration has (\d+ problems?)", environment.errors)
        if problems:
            return f"no preview ({problems[1]} in the configuration)"
        return "refused" if _REFUSED in environment.errors else "no preview"
    if not environment.changes:
        return "no changes"
    return _TITLES[max((impact.level for impact in environment.impacts), default=Level.QUIET)]


def _error_lines(errors: str) -> list[str]:
    lines = mask(errors.strip()).splitlines()
    return [_PREFIX.sub("", line) for line in lines if not _UNINFORMATIVE.match(line)] or lines


def _impact_lines(found: Sequence[Impact]) -> list[str]:
    lines = [f"- {impact.text}" for impact in found if impact.level > Level.QUIET]
    quiet = [impact.text.rstrip(".") for impact in found if impact.level is Level.QUIET]
    return [*lines, f"- In the background: {'; '.join(quiet)}."] if quiet else lines


def _warnings(plan: Mapping[str, Any]) -> list[str]:
    texts = [
        " ".join(str(entry.get("message", "")).split())
        for entry in plan.get("diagnostics") or []
        if entry.get("severity") == "warning"
    ]
    return list(dict.fromkeys(mask(text) for text in texts if not text.startswith(_IGNORED_WARNINGS)))


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    for rule in dict.fromkeys(finding.rule for finding in findings):
        of_rule = [finding for finding in findings if finding.rule == rule]
        for finding in of_rule[:_MAX_FINDINGS]:
            kind = "**Mandatory rule**" if finding.mandatory else "Advisory rule"
            advice = f" Fix: {mask(finding.fix)}." if finding.fix else ""
            yield f"- {kind} `{rule}` fails for `{finding.resource}`: {mask(finding.problem)}.{advice}"
        others = [f"`{finding.resource}`" for finding in of_rule[_MAX_FINDINGS:]]
        if others:
            more = [f"{len(others) - _MAX_NAMES} more"] if len(others) > _MAX_NAMES else []
            yield f"- `{rule}` also fails for {conjunction([*others[:_MAX_NAMES], *more])}."


def _sorted_resources(changes: Sequence[Change]) -> list[Change]:
    components = ("kubeadm-ipvs:", "pulumi:pulumi:")
    shown = [
        change
        for change in changes
        if change.op != "same" and not change.type.startswith(components) and not change.is_obsolete
    ]
    return sorted(shown, key=lambda change: (_RANKS.get(change.op, len(_RANKS)), natural(change.name)))


def _resource_counts(changes: Sequence[Change]) -> str:
    ops = Counter(change.op for change in changes)
    return f"{count(len(changes), 'resource')}: {', '.join(f'{number} {op}' for op, number in ops.items())}"


def _resource_lines(changes: Sequence[Change]) -> list[str]:
    width = max((len(change.op) for change in changes), default=0)
    return [
        f"{_SIGNS.get(change.op, '?')} {change.op.ljust(width)} {mask(change.name)}{_details(change)}"
        for change in changes
    ]


def _details(change: Change) -> str:
    if change.type.startswith("pulumi:providers:"):
        return " (the Kubernetes provider)"
    if change.op != "update":
        return ""
    names: Sequence[str]
    if not change.step:
        names = [path for path, _, _ in change.changed_inputs]
    elif change.changed_values is None:
        names = ["not shown"]
    else:
        names = list(change.changed_values) or ["script, timeout or SSH access"]
    more = ", ..." if len(names) > _MAX_INPUTS else ""
    return f" ({', '.join(names[:_MAX_INPUTS])}{more})" if names else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # It renders Markdown; the one HTML element escapes its text itself.
        autoescape=False,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(conjunction=conjunction, fenced=fenced)
    return environment.get_template("page.md.j2")


_TEMPLATE = _template()
