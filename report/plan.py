"""Parses `pulumi preview --json` into changes, one for each resource that doesn't stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from model.steps import CLAIM, step_of, values_of

CLUSTER = "kubeadm-ipvs:index:Cluster"
COMMAND = "command:remote:Command"
STASH = "pulumi:index:Stash"
"""The type of the resources that store a step's desired value (components/remote.py)."""

# The steps that aren't about a single host, and an earlier resource name.
_CLUSTER_WIDE = ("expected-services", "promises", "nodes")
_OPS = {
    "create": "create",
    "update": "update",
    "delete": "delete",
    "replace": "replace",
    "create-replacement": "replace",
    "delete-replaced": "replace",
    "discard-replaced": "replace",
}


@dataclass(frozen=True)
class Change:
    """What the engine would do to one resource.

    Attributes:
        op: create, update, replace or delete; `same` if only its protection changes; otherwise the engine's
            own term.
        name: The resource's Pulumi name.
        type: The resource's Pulumi type.
        old: The inputs before the change, empty for a new resource.
        new: The inputs after the change, empty for a deleted resource.
        protected: Whether the engine refuses to delete it, before and after; equal unless it exists in both.
    """

    op: str
    name: str
    type: str
    old: Mapping[str, Any] = field(default_factory=dict)
    new: Mapping[str, Any] = field(default_factory=dict)
    protected: tuple[bool, bool] = (False, False)

    @property
    def host(self) -> str:
        """The host that a step is for; meaningless for other resources."""
        return "" if self.name in _CLUSTER_WIDE else self.name.rpartition("-")[0]

    @property
    def step(self) -> str:
        """The name of the step that a command runs; empty for other resources."""
        if self.type != COMMAND:
            return ""
        inputs = self.new or self.old
        step = step_of(str(inputs.get("create") or inputs.get("delete") or ""))
        return "" if step is None else step.name

    @property
    def address(self) -> str:
        """The host's address, if this is its claim."""
        inputs = self.new or self.old
        return str((inputs.get("triggers") or [""])[0]) if self.step == CLAIM.name else ""

    @property
    def is_obsolete(self) -> bool:
        """Whether a step of an earlier version only leaves the state: its deletion runs nothing."""
        return self.op == "delete" and self.type == COMMAND and not self.step and not self.old.get("delete")

    @cached_property
    def changed_values(self) -> dict[str, tuple[str, str]] | None:
        """A step's values that differ, each before and after; None if they are hidden.

        A value that is only in one of the texts is left out: the other one is of another version of the
        program. `repair` is the exception, because a step has it only if it is set.
        """
        old, new = (values_of(str(inputs.get("stdin", ""))) for inputs in (self.old, self.new))
        if old is None or new is None:
            return None
        names = (old.keys() & new.keys()) | ({"REPAIR"} & (old.keys() | new.keys()))
        return {
            name: (old.get(name, ""), new.get(name, ""))
            for name in sorted(names)
            if old.get(name) != new.get(name)
        }

    @cached_property
    def changed_inputs(self) -> list[tuple[str, Any, Any]]:
        """The inputs that differ: path, value before, value after."""
        return list(_differences(self.old, self.new))


def changes_in(plan: Mapping[str, Any]) -> list[Change]:
    """The changes in a parsed preview, one for each resource, in the engine's order.

    The stored desired values of steps are left out: the steps themselves are in the list.
    """
    found: dict[str, Change] = {}
    for entry in plan.get("steps") or []:
        if entry["op"] == "refresh":
            continue
        old, new = entry.get("oldState") or {}, entry.get("newState") or {}
        state = new or old
        protected = (bool(old.get("protect")), bool(new.get("protect"))) if old and new else (False, False)
        # The engine reports `same` even if the protection changes.
        if entry["op"] == "same" and protected[0] == protected[1]:
            continue
        if state.get("type") == STASH:
            continue
        # A replacement comes in several steps.
        earlier = found.get(entry["urn"])
        found[entry["urn"]] = Change(
            op=_OPS.get(entry["op"], entry["op"]),
            name=entry["urn"].rpartition("::")[2],
            type=str(state.get("type", "")),
            old=old.get("inputs") or (earlier.old if earlier else {}),
            new=new.get("inputs") or (earlier.new if earlier else {}),
            protected=protected,
        )
    return list(found.values())


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            # Keys with two underscores are the provider's own bookkeeping.
            if not key.startswith("__"):
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif old != new:
        yield path, old, new
