"""What the policy pack says of a run's resources: read from the engine's events, told in a sentence.

`pulumi preview --json` leaves policies out, so the events are the one place where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_NEXT = " -> "  # policy/rules.py writes each violation as what is wrong, this, and the next move


@dataclass(frozen=True)
class Finding:
    """A rule that a resource breaks.

    Attributes:
        rule: The rule's name, by which docs/policy.md explains it.
        mandatory: Whether it refuses the change; else it warns.
        resource: Pulumi's name of the resource.
        text: What is wrong and, behind ` -> `, what to do, on one line.
    """

    rule: str
    mandatory: bool
    resource: str
    text: str

    @property
    def wrong(self) -> str:
        """What is wrong."""
        return self.text.partition(_NEXT)[0]

    @property
    def todo(self) -> str:
        """What to do about it; empty where the rule doesn't say."""
        return self.text.partition(_NEXT)[2]

    def __str__(self) -> str:
        does = "refuses" if self.mandatory else "warns of"
        return f"policy {self.rule} {does} {self.resource}: {self.text}"


def finding_in(event: Mapping[str, Any]) -> Finding | None:
    """What one of the engine's events (`EngineEvent`) says of a broken rule; None if it is about else."""
    said = event.get("policyEvent")
    if said is None:
        return None
    # The rule's description comes first, on a line of its own: the violation says the same of this resource.
    description, _, violation = str(said.get("message", "")).strip().partition("\n")
    return Finding(
        rule=str(said.get("policyName", "")),
        # The engine has a third level, which ends a run too where it can't mend the resource.
        mandatory=said.get("enforcementLevel") != "advisory",
        resource=str(said.get("resourceUrn", "")).rpartition("::")[2] or "the stack",
        text=" ".join((violation or description).split()),
    )


def findings_in(events: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Each broken rule once, what refuses first, then by rule and resource."""
    found = {finding for event in events if (finding := finding_in(event)) is not None}
    return sorted(found, key=lambda f: (not f.mandatory, f.rule, f.resource, f.text))
