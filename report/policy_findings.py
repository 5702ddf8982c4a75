"""Policy violations, read from the engine's events: `pulumi preview --json` leaves them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_SEPARATOR = " -> "  # between the problem and its fix in each violation of policy/rules.py


@dataclass(frozen=True)
class Finding:
    """A rule that a resource violates.

    Attributes:
        rule: The rule's name; docs/policy.md explains it.
        mandatory: Whether the violation fails the run; otherwise it is a warning.
        resource: The resource's Pulumi name.
        text: The problem and, after ` -> `, the fix, on one line.
    """

    rule: str
    mandatory: bool
    resource: str
    text: str

    @property
    def problem(self) -> str:
        """What is wrong."""
        return self.text.partition(_SEPARATOR)[0]

    @property
    def fix(self) -> str:
        """How to fix it; empty if the rule doesn't give a fix."""
        return self.text.partition(_SEPARATOR)[2]

    def __str__(self) -> str:
        verb = "rejects" if self.mandatory else "warns about"
        return f"policy {self.rule} {verb} {self.resource}: {self.text}"


def finding_in(event: Mapping[str, Any]) -> Finding | None:
    """Read the violation from one of the engine's events (`EngineEvent`); None for other events."""
    policy = event.get("policyEvent")
    if policy is None:
        return None
    # The first line is the rule's description, the rest describes this violation.
    description, _, violation = str(policy.get("message", "")).strip().partition("\n")
    return Finding(
        rule=str(policy.get("policyName", "")),
        # The engine's third level, `remediate`, also ends the run if it can't fix the resource.
        mandatory=policy.get("enforcementLevel") != "advisory",
        resource=str(policy.get("resourceUrn", "")).rpartition("::")[2] or "the stack",
        text=" ".join((violation or description).split()),
    )


def findings_in(events: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """All violations in the events without duplicates; mandatory ones first, then by rule and resource."""
    found = {finding for event in events if (finding := finding_in(event)) is not None}
    return sorted(found, key=lambda f: (not f.mandatory, f.rule, f.resource, f.text))
