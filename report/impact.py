"""Assesses the changes in a preview: what each one does to the cluster, and how much is at stake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from model import change_impact
from model.sorting import natural
from model.steps import STEPS, values_of
from report import impact_texts
from report.impact_texts import ImpactText, Level
from report.plan import CLUSTER, Change
from report.text import conjunction, count, display, mask

_MAX_PROPERTIES = 4
_WORKLOADS = ("Deployment", "DaemonSet", "StatefulSet")
# Their updates run nothing on a host.
_DELETIONS = {step.name for step in STEPS.values() if step.limit is None}


@dataclass(frozen=True)
class Impact:
    """One thing that a reviewer should know."""

    level: Level
    text: str


def impacts(changes: Sequence[Change], host_order: Sequence[str], lanes: int = 1) -> list[Impact]:
    """Describe what the changes do, worst first.

    Args:
        changes: The changes of one environment.
        host_order: Host names in the order of the settings; other hosts follow by name.
        lanes: How many workers may change kube-proxy at a time (`proxy.maxUnavailable`).
    """
    assessment = _Assessment(changes, host_order, lanes)
    found = [
        *assessment.cluster(),
        *assessment.hosts(),
        *assessment.protection(),
        *assessment.objects(),
        *assessment.steps(),
        *assessment.others(),
    ]
    return sorted(found, key=lambda impact: -impact.level)


class _Assessment:
    def __init__(self, changes: Sequence[Change], host_order: Sequence[str], lanes: int) -> None:
        self._lanes = lanes
        names = {change.host for change in changes if change.step and change.host}
        self._host_order = [*host_order, *sorted(names - set(host_order), key=natural)]
        ordered = sorted(changes, key=lambda change: (self._rank(change), natural(change.name)))
        self._changes = [change for change in ordered if change.op != "same"]
        self._protection = {
            change.host if change.step else f"`{change.name}`": change.protected[1]
            for change in ordered
            if change.protected[0] != change.protected[1]
        }
        inits = {change.op for change in self._changes if change.step == "init"}
        self._is_lost = bool(inits & {"replace", "delete"})
        self._is_new = inits == {"create"}

    def _rank(self, change: Change) -> int:
        order = self._host_order
        return order.index(change.host) if change.host in order else len(order)

    def _changes_of(self, step: str, *ops: str) -> list[Change]:
        return [change for change in self._changes if change.step == step and change.op in ops]

    def _hosts_of(self, step: str, *ops: str) -> list[str]:
        return [change.host for change in self._changes_of(step, *ops)]

    @property
    def _objects(self) -> list[Change]:
        return [change for change in self._changes if change.type.startswith("kubernetes:")]

    def cluster(self) -> Iterator[Impact]:
        made = self._hosts_of("init", "create", "replace")
        joined = self._hosts_of("join", "create", "replace")
        if self._is_new:
            objects = [change for change in self._objects if change.op in ("create", "replace")]
            workers = f", worker{'s' if len(joined) > 1 else ''} {conjunction(joined)}" if joined else ""
            yield Impact(
                Level.MADE,
                f"**A new cluster is created**: control plane {conjunction(made)}{workers}, "
                f"{count(len(objects), 'Kubernetes object')}.",
            )
        if not self._is_lost:
            return
        reasons = [
            f"`{mask(reason)}`"
            for change in self._changes
            if change.type == CLUSTER
            for reason in change_impact.identity_changes(change.old, change.new)
        ]
        because = f" because of {', '.join(reasons)}" if reasons else ""
        rebuilt = f" {change_impact.rebuilt([*made, *joined])}." if made else ""
        fate = "replaced" if made else "removed"
        yield Impact(
            Level.LOSS,
            f"**The cluster is {fate} and every workload in it is lost**{because}. "
            f"{change_impact.LOST}.{rebuilt}",
        )

    def hosts(self) -> Iterator[Impact]:
        yield from self._leaving_hosts()
        for change in self._changes_of("claim", "create"):
            has_init = any(c.step == "init" and c.host == change.host for c in self._changes)
            if not self._is_new and not has_init:
                yield Impact(Level.MADE, f"**{change.host} is prepared and joins the cluster**.")
            for old in self._changes_of("claim", "delete"):
                if old.address == change.address != "":
                    advice = impact_texts.RENAMED_WORKER
                    if old.host in self._hosts_of("init", "delete", "replace"):
                        advice = impact_texts.RENAMED_CONTROL_PLANE
                    text = f"{impact_texts.SAME_ADDRESS} {advice}".format(old=old.host, new=change.host)
                    yield Impact(Level.LOSS, f"⚠ {text}")

    def _leaving_hosts(self) -> Iterator[Impact]:
        removed = set(self._hosts_of("node", "delete", "replace"))
        for host in self._hosts_of("claim", "delete"):
            is_drained = host in removed and not self._is_lost
            leaves = "drained, removed from the cluster" if is_drained else "reset"
            pods = "" if self._is_lost else f" {impact_texts.PODS_MOVE}"
            yield Impact(Level.LOSS, f"**{host} is {leaves} and restored to its original state**.{pods}")
        if self._is_lost:
            return
        claims = self._hosts_of("claim", "replace")
        for host in claims:
            yield Impact(
                Level.LOSS,
                f"**{host} is drained, removed from the cluster and restored to its original state**. "
                f"{impact_texts.PODS_MOVE} The machine at the new address then joins as {host}.",
            )
        for host in self._hosts_of("join", "replace"):
            if host not in claims:
                text = f"**{host} is drained, removed from the cluster and joins again**."
                yield Impact(Level.LOSS, f"{text} {impact_texts.PODS_MOVE}")

    def protection(self) -> Iterator[Impact]:
        for name, is_protected in self._protection.items():
            if is_protected:
                text = f"{name} becomes protected: no run can delete or replace it."
            else:
                text = f"**{name} loses its protection: runs can delete or replace it again**."
            yield Impact(Level.IN_PLACE, text)

    def objects(self) -> Iterator[Impact]:
        changes = [] if self._is_new or self._is_lost else self._objects
        # If the provider's own inputs are unknown, as in a repair, the engine updates every object.
        unchanged = [change for change in changes if change.op == "update" and not change.changed_inputs]
        if unchanged:
            objects = count(len(unchanged), "Kubernetes object")
            yield Impact(Level.QUIET, f"{objects} may be rewritten unchanged")
        for change in changes:
            name = f"`{change.name}`"
            if change.op == "create":
                yield Impact(Level.IN_PLACE, f"{name} is created.")
            elif change.op == "delete":
                yield Impact(Level.LOSS, f"**{name} is deleted**.")
            elif change.op == "replace":
                yield Impact(Level.LOSS, f"**{name} is deleted and recreated**: {_properties(change)}.")
            elif change not in unchanged:
                yield _object_update(change)

    def steps(self) -> Iterator[Impact]:
        found: dict[tuple[ImpactText, str, str], list[str]] = {}

        def add(text: ImpactText, host: str, old: str = "", new: str = "") -> None:
            hosts = found.setdefault((text, old, new) if "{old}" in text.text else (text, "", ""), [])
            if host not in hosts:
                hosts.append(host)

        updates = [change for change in self._changes if change.step and change.op == "update"]
        init = next((change for change in updates if change.step == "init"), None)
        # A join's values are hidden. It has the settings of `init`, and of its node.
        settings = (init and init.changed_values) or {}
        relabeled: set[str] = set()
        for change in updates:
            if change.step == "nodes":
                for text, host in _node_texts(change):
                    add(text, host)
                    relabeled.add(host)
        # Removing `repair` from the settings repairs nothing.
        repaired = {
            change.host
            for change in updates
            if change.host and (change.changed_values or {}).get("REPAIR", ("", ""))[1]
        }
        for change in updates:
            # `nodes` and `expected_services` concern all hosts, and change nothing else on them.
            if not change.host or change.step in _DELETIONS:
                continue
            rerun = impact_texts.RERUN
            if change.host in repaired:
                rerun = impact_texts.REPAIR
                add(rerun, change.host)
            values = change.changed_values
            if change.step == "verification":
                if change.host not in repaired:
                    add(impact_texts.VERIFIED, change.host)
            elif change.step == "join":
                for name, text in _texts("init", settings).items():
                    if text.joins:
                        add(text, change.host, *settings[name])
                # Otherwise its script has changed.
                if not settings and change.host not in relabeled:
                    add(rerun, change.host)
            elif values is not None:
                texts = _texts(change.step, values)
                for name, text in texts.items():
                    add(text, change.host, *values[name])
                if not texts and all(name == "REPAIR" or name.endswith("_SECONDS") for name in values):
                    add(rerun, change.host)
        for (text, old, new), hosts in found.items():
            yield Impact(text.level, _sentence(text, hosts, old, new, self._lanes))

    def others(self) -> Iterator[Impact]:
        """Changes that the table of texts doesn't cover."""
        obsolete = [change for change in self._changes if change.is_obsolete]
        if obsolete:
            text = impact_texts.OBSOLETE.format(steps=count(len(obsolete), "step"))
            yield Impact(Level.QUIET, text)
        for change in self._changes:
            known = change.type.startswith(("kubernetes:", "kubeadm-ipvs:", "pulumi:"))
            if known or change.is_obsolete or change.step in impact_texts.STEPS:
                continue
            level = Level.LOSS if change.op in ("delete", "replace") else Level.IN_PLACE
            yield Impact(level, f"`{change.name}` ({change.type}): {change.op}.")


def _texts(step: str, values: Mapping[str, tuple[str, str]]) -> dict[str, ImpactText]:
    """The texts for a step's changed values, by the values' names."""
    found: dict[str, ImpactText] = {}
    for key, text in impact_texts.STEPS.get(step, {}).items():
        name, _, value = key.partition("=")
        applies = name in values and (not value or values[name][1] == value)
        if applies and name not in found and not values.keys() & set(text.unless):
            found[name] = replace(text, after="") if values.keys() & set(text.after_unless) else text
    return found


def _node_texts(change: Change) -> Iterator[tuple[ImpactText, str]]:
    """The texts for the nodes whose labels or taints differ, with the nodes' names.

    Args:
        change: An update of the step `nodes`, which has a line `name labels taints` for each node.
    """
    before, after = (
        {
            name: (labels, taints)
            for line in (values_of(str(inputs.get("stdin", ""))) or {}).get("NODES", "").splitlines()
            for name, labels, taints in [line.split()]
        }
        for inputs in (change.old, change.new)
    )
    for name in after:
        # Others join or leave.
        if name in before:
            for text, old, new in zip(
                (impact_texts.LABELS, impact_texts.TAINTS), before[name], after[name], strict=True
            ):
                if old != new:
                    yield text, name


def _sentence(impact: ImpactText, hosts: Sequence[str], old: str, new: str, lanes: int) -> str:
    several = len(hosts) > 1
    pace = ", one by one" if lanes == 1 else f", at most {lanes} at a time"
    where = f"{len(hosts)} nodes" if several else hosts[0]
    text = impact.text.format(hosts=where, old=mask(old), new=mask(new))
    if impact.level >= Level.ROLLING:
        text = f"**{text}{pace if impact.in_lanes and several else ''}**"
    names = f": {', '.join(hosts)}" if several else ""
    return f"{text}{names}.{f' {impact.after}' if impact.after else ''}"


def _object_update(change: Change) -> Impact:
    kind = change.name.partition("/")[0]
    in_template = any(path.startswith("spec.template.") for path, _, _ in change.changed_inputs)
    name, properties = f"`{change.name}`", _properties(change)
    if kind in _WORKLOADS and in_template:
        return Impact(Level.ROLLING, f"**Rolling update of {name}**: {properties}.")
    return Impact(Level.IN_PLACE, f"{name} changes in place: {properties}.")


def _properties(change: Change) -> str:
    is_secret = change.name.startswith("Secret/")
    found = [
        path if is_secret else f"`{path}` {display(old)} → {display(new)}"
        for path, old, new in change.changed_inputs
    ]
    hidden = len(found) - _MAX_PROPERTIES
    more = [f"and {hidden} more"] if hidden > 0 else []
    return ", ".join([*found[:_MAX_PROPERTIES], *more]) or "no visible difference"
