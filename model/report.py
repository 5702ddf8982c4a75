"""A preview as a page that a person understands in ten seconds: what `tools/report.py` makes a comment of.

Out of `pulumi preview --json`, without Pulumi: what happens in words and where (the words are in
`model/change_impact.py`), the settings that differ as a diff, the resources. Nothing of a resource's
inputs is shown but what is told here, and that masked: scripts and keys stay out of comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic.fields import FieldInfo

from model import change_impact
from model.change_impact import ImpactText, Level
from model.policy_findings import Finding
from model.settings import Effect, effect_of, fields
from model.steps import step_of, values_of

LIMIT_CHARACTERS = 60_000
"""Of a whole page: GitHub takes 65,536 characters in a comment, GitLab a million."""
MEANT = "destructive"
"""The label that a pull request has where its author means what it destroys."""

COMMAND = "command:remote:Command"
REMEMBERED = "pulumi:index:Stash"  # what a step was last asked (components/remote.py)
_CLUSTER = "kubeadm-ipvs:index:Cluster"
# The resource of the one step that isn't about a single host, now and formerly.
_CLUSTER_WIDE = ("expected-services", "promises")
_OPS = {
    "create": "create",
    "update": "update",
    "delete": "delete",
    "replace": "replace",
    "create-replacement": "replace",
    "delete-replaced": "replace",
    "discard-replaced": "replace",
}
_SIGNS = {"replace": "±", "delete": "-", "create": "+", "update": "~"}
_VALUE_CHARACTERS = 120
_OF_A_RULE = 3  # resources that break the same rule and are told each by itself
_WORDS_AT_MOST = 40  # lines of what happens, where even folded lists don't make the page short enough


@dataclass(frozen=True)
class Change:
    """What the engine would do to one resource.

    Attributes:
        op: create, update, replace or delete; `same` where nothing but its protection is another; anything
            else is the engine's own word.
        old: Its inputs now, if it is there.
        new: Its inputs then, if it still is.
        protected: Whether no run may delete it, now and then; the same where it comes or goes.
    """

    op: str
    name: str
    type: str
    old: Mapping[str, Any] = field(default_factory=dict)
    new: Mapping[str, Any] = field(default_factory=dict)
    protected: tuple[bool, bool] = (False, False)

    @property
    def host(self) -> str:
        """Of a step: the host that it is about."""
        return "" if self.name in _CLUSTER_WIDE else self.name.rpartition("-")[0]

    @property
    def step(self) -> str:
        """Of a command: its step, by which the table of words is read; empty for what is no step."""
        if self.type != COMMAND:
            return ""
        step = step_of(str((self.new or self.old).get("create", "")))
        return "" if step is None else step.name

    @cached_property
    def differing(self) -> dict[str, tuple[str, str]] | None:
        """A step's values that differ, before and after; None where they can't be seen."""
        old, new = (values_of(str(inputs.get("stdin", ""))) for inputs in (self.old, self.new))
        if old is None or new is None:
            return None
        return {
            name: (old.get(name, ""), new.get(name, ""))
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        }


@dataclass(frozen=True)
class Impact:
    """One thing that a reviewer should know."""

    level: Level
    text: str


@dataclass(frozen=True)
class Environment:
    """One environment of a change.

    Attributes:
        plan: `pulumi preview --json`, parsed; None where the preview failed.
        errors: Why it failed.
        before: Its settings as they were, whole and without prefixes; None where nobody knows them.
        after: Its settings as they would be.
        findings: The rules of the policy pack that it breaks.
    """

    name: str
    plan: Mapping[str, Any] | None
    errors: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()

    @cached_property
    def changes(self) -> list[Change]:
        """What isn't left as it is."""
        return [] if self.plan is None else changes_of(self.plan)

    @cached_property
    def impacts(self) -> list[Impact]:
        """What would happen, worst first."""
        order = [str(host.get("name")) for host in self.after.get("hosts") or [] if isinstance(host, Mapping)]
        return impacts(self.changes, order)

    @property
    def destructive(self) -> bool:
        """Whether anything is gone afterwards."""
        return any(impact.level is Level.LOSS for impact in self.impacts)

    @property
    def refused(self) -> bool:
        """Whether a mandatory rule is broken."""
        return any(finding.mandatory for finding in self.findings)


def changes_of(plan: Mapping[str, Any]) -> list[Change]:
    """What is not left as it is: a change for each resource, by name within the engine's order of types."""
    found: dict[str, Change] = {}
    for entry in plan.get("steps") or []:
        if entry["op"] == "refresh":
            continue
        old, new = entry.get("oldState") or {}, entry.get("newState") or {}
        state = new or old
        protected = (bool(old.get("protect")), bool(new.get("protect"))) if old and new else (False, False)
        # The engine calls it the same where only its protection is another.
        if entry["op"] == "same" and protected[0] == protected[1]:
            continue
        # What a step is asked is told by the step.
        if state.get("type") == REMEMBERED:
            continue
        former = found.get(entry["urn"])
        found[entry["urn"]] = Change(
            op=_OPS.get(entry["op"], entry["op"]),
            name=entry["urn"].rpartition("::")[2],
            type=str(state.get("type", "")),
            old=old.get("inputs") or (former.old if former else {}),
            new=new.get("inputs") or (former.new if former else {}),
            protected=protected,
        )
    return list(found.values())


def impacts(changes: Sequence[Change], order: Sequence[str]) -> list[Impact]:
    """What a change does, in words, worst first.

    :param order: the hosts' names as a person has them in mind; others follow by name.
    """
    told = _Told(changes, order)
    found = [
        *told.cluster(),
        *told.hosts(),
        *told.protection(),
        *told.objects(),
        *told.steps(),
        *told.others(),
    ]
    return sorted(found, key=lambda impact: -impact.level)


class _Told:
    def __init__(self, changes: Sequence[Change], order: Sequence[str]) -> None:
        names = {change.host for change in changes if change.step and change.host}
        self._order = [*order, *sorted(names - set(order), key=_natural)]
        ordered = sorted(changes, key=lambda change: (self._rank(change), _natural(change.name)))
        self._changes = [change for change in ordered if change.op != "same"]
        self._protection = {
            change.host if change.step else f"`{change.name}`": change.protected[1]
            for change in ordered
            if change.protected[0] != change.protected[1]
        }
        inits = {change.op for change in self._changes if change.step == "init"}
        self._lost = bool(inits & {"replace", "delete"})
        self._fresh = inits == {"create"}

    def _rank(self, change: Change) -> int:
        return self._order.index(change.host) if change.host in self._order else len(self._order)

    def _of(self, step: str, *ops: str) -> list[Change]:
        return [change for change in self._changes if change.step == step and change.op in ops]

    def _hosts(self, step: str, *ops: str) -> list[str]:
        return [change.host for change in self._of(step, *ops)]

    @property
    def _objects(self) -> list[Change]:
        return [change for change in self._changes if change.type.startswith("kubernetes:")]

    def cluster(self) -> Iterator[Impact]:
        made = self._hosts("init", "create", "replace")
        joined = self._hosts("join", "create", "replace")
        objects = [change for change in self._objects if change.op in ("create", "replace")]
        if self._fresh:
            joins = f"; {_and(joined)} {'joins' if len(joined) == 1 else 'join'} it" if joined else ""
            yield Impact(
                Level.MADE,
                f"**a new cluster is made**: {_and(made)} becomes its control plane{joins}; it gets "
                f"{_count(len(objects), 'Kubernetes object')}.",
            )
        if not self._lost:
            return
        done = "replaced" if made else "removed"
        why = [
            reason
            for change in self._changes
            if change.type == _CLUSTER
            for reason in change_impact.identity_changes(change.old, change.new)
        ]
        because = f", because of {'; '.join(f'`{mask(reason)}`' for reason in why)}" if why else ""
        anew = f" Reset and made anew: {', '.join([*made, *joined])}." if made else ""
        yield Impact(
            Level.LOSS,
            f"**the cluster is {done}: every workload in it is lost**{because}. Lost with it: "
            f"{change_impact.LOST}.{anew} {change_impact.SILENT}.",
        )

    def hosts(self) -> Iterator[Impact]:
        removed = set(self._hosts("node", "delete", "replace"))
        for change in self._of("claim", "delete"):
            leaves = "drained, removed, " if change.host in removed and not self._lost else "reset, "
            after = "" if self._lost else f" {change_impact.ELSEWHERE}"
            yield Impact(Level.LOSS, f"**{change.host} is {leaves}given back**.{after}")
        if not self._lost:
            again = set(self._hosts("claim", "replace"))
            for change in self._of("claim", "replace"):
                yield Impact(
                    Level.LOSS,
                    f"**{change.host} is drained, removed, given back**, then prepared and joined anew as "
                    f"another machine. {change_impact.ELSEWHERE}",
                )
            for host in self._hosts("join", "replace"):
                if host not in again:
                    yield Impact(
                        Level.LOSS,
                        f"**{host} is drained, removed from the cluster**, and joins anew. "
                        f"{change_impact.ELSEWHERE}",
                    )
        for change in self._of("claim", "create"):
            if not self._fresh and "init" not in {c.step for c in self._changes if c.host == change.host}:
                yield Impact(Level.MADE, f"**{change.host} is prepared and joins the cluster**.")
            for old in self._of("claim", "delete"):
                if _address(old.old) == _address(change.new) != "":
                    plane = old.host in self._hosts("init", "delete", "replace")
                    move = change_impact.RENAMED_CONTROL_PLANE if plane else change_impact.RENAMED_WORKER
                    text = f"{change_impact.SAME_MACHINE} {move}".format(old=old.host, new=change.host)
                    yield Impact(Level.LOSS, f"⚠ {text}")

    def protection(self) -> Iterator[Impact]:
        for name, protected in self._protection.items():
            if protected:
                text = f"{name} is protected from now on: no run deletes or replaces it."
            else:
                text = f"**{name} may be deleted and replaced again: its protection goes**."
            yield Impact(Level.IN_PLACE, text)

    def objects(self) -> Iterator[Impact]:
        changes = [] if self._fresh or self._lost else self._objects
        # While the provider's own inputs aren't known yet, as in a repair, each object seems to change.
        unseen = [change for change in changes if change.op == "update" and not _visibly(change)]
        if unseen:
            yield Impact(
                Level.QUIET, f"{_count(len(unseen), 'Kubernetes object')} may be written again, unchanged"
            )
        for change in [change for change in changes if change not in unseen]:
            name = f"`{change.name}`"
            if change.op == "create":
                yield Impact(Level.IN_PLACE, f"{name} is made.")
            elif change.op == "delete":
                yield Impact(Level.LOSS, f"**{name} is deleted**.")
            elif change.op == "replace":
                yield Impact(Level.LOSS, f"**{name} is deleted and made anew**: {_properties(change)}.")
            else:
                yield _update_of_object(change)

    def steps(self) -> Iterator[Impact]:
        found: dict[tuple[ImpactText, str, str], list[str]] = {}

        def tell(words: ImpactText, host: str, old: str = "", new: str = "") -> None:
            hosts = found.setdefault((words, old, new) if "{old}" in words.text else (words, "", ""), [])
            if host not in hosts:
                hosts.append(host)

        updated = [change for change in self._changes if change.step and change.op == "update"]
        seen = {change.name: change.differing for change in updated}
        uploads = any(seen[change.name] for change in updated if change.step == "init")
        # A join registers the node with the labels and taints that its member then keeps: told by the member.
        nodes = {change.host for change in updated if change.step == "node" and seen[change.name]}
        # A text that is taken out of the settings asks for nothing.
        repaired = {
            change.host
            for change in updated
            if change.host and (seen[change.name] or {}).get("REPAIR", ("", ""))[1]
        }
        for change in updated:
            values = seen[change.name]
            again = change_impact.AGAIN
            if change.host in repaired:
                again = change_impact.REPAIR
                tell(again, change.host)
            # A registration has nothing to do before its host leaves.
            if change.step in ("verification", "expected_services", "deregister"):
                if change.step == "verification" and change.host not in repaired:
                    tell(change_impact.PROVED, change.host)
            elif values is None:
                # A join's text is secret. What init is told anew, each join is; else its script is another.
                if change.step == "join" and not uploads and change.host not in nodes:
                    tell(again, change.host)
            else:
                differing = _words(change.step, values)
                for name, words in differing.items():
                    tell(words, change.host, *values[name])
                if not differing and all(name == "REPAIR" or name.endswith("_SECONDS") for name in values):
                    tell(again, change.host)
        for (words, old, new), hosts in found.items():
            yield Impact(words.level, _sentence(words, hosts, old, new))

    def others(self) -> Iterator[Impact]:
        """What the table of words doesn't know is at least named."""
        strange = [
            change
            for change in self._changes
            if not change.type.startswith(("kubernetes:", "kubeadm-ipvs:", "pulumi:"))
            and change.step not in change_impact.STEPS
        ]
        for change in strange:
            level = Level.LOSS if change.op in ("delete", "replace") else Level.IN_PLACE
            yield Impact(level, f"`{change.name}` ({change.type}): {change.op}.")


def _words(step: str, values: Mapping[str, tuple[str, str]]) -> dict[str, ImpactText]:
    """What the values of a step that differ do, by their names."""
    found: dict[str, ImpactText] = {}
    for key, words in change_impact.STEPS.get(step, {}).items():
        name, _, value = key.partition("=")
        fits = name in values and (not value or values[name][1] == value)
        if fits and name not in found and not values.keys() & set(words.unless):
            found[name] = replace(words, after="") if values.keys() & set(words.after_unless) else words
    return found


def _sentence(words: ImpactText, hosts: Sequence[str], old: str, new: str) -> str:
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} nodes"
    text = words.text.format(hosts=where, old=mask(old), new=mask(new))
    if words.level >= Level.ROLLING:
        text = f"**{text}{', one by one' if words.one_by_one and len(hosts) > 1 else ''}**"
    names = f": {', '.join(hosts)}" if len(hosts) > 1 else ""
    return f"{text}{names}.{f' {words.after}' if words.after else ''}"


def _update_of_object(change: Change) -> Impact:
    paths = [path for path, _, _ in _differences(change.old, change.new)]
    kind, *_ = change.name.split("/")
    name, what = f"`{change.name}`", _properties(change)
    if kind in ("Deployment", "DaemonSet", "StatefulSet") and any(
        p.startswith("spec.template.") for p in paths
    ):
        return Impact(Level.ROLLING, f"**the pods of {name} are replaced, one after the other**: {what}.")
    return Impact(Level.IN_PLACE, f"{name} changes in place: {what}.")


def _properties(change: Change) -> str:
    secret = change.name.startswith("Secret/")
    found = [
        path if secret else f"`{path}` {_shown(old)} → {_shown(new)}"
        for path, old, new in _differences(change.old, change.new)
    ]
    more = [f"and {len(found) - 4} more"] if len(found) > 4 else []
    return ", ".join([*found[:4], *more]) or "nothing that can be seen"


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            # What the provider keeps for itself is in no manifest.
            if not key.startswith("__"):
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif old != new:
        yield path, old, new


def _visibly(change: Change) -> bool:
    return any(True for _ in _differences(change.old, change.new))


def _address(inputs: Mapping[str, Any]) -> str:
    return (values_of(str(inputs.get("stdin", ""))) or {}).get("ADDRESS", "")


# -- settings


def settings_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`-path: value` and `+path: value` of each setting that differs, with what such a change does."""
    old, new = dict(_flat(before)), dict(_flat(after))
    known = fields()
    lines: list[str] = []
    for path in [*new, *(path for path in old if path not in new)]:
        if old.get(path, _ABSENT) == new.get(path, _ABSENT):
            continue
        setting, default = _setting(path, known)
        # A host that comes or goes as a whole is told in words above.
        host = re.match(r"hosts\[.*?\]", path)
        both = host is None or all(any(p.startswith(host[0]) for p in values) for values in (old, new))
        effect = _effect(setting) if setting and both else ""
        for sign, values in (("-", old), ("+", new)):
            notes = [effect] if sign == "+" or (path not in new and default is None) else []
            if path in values:
                value = values[path]
            elif default is not None:
                value, notes = default, ["by default", *notes]
            else:
                continue
            note = f"  # {', '.join(notes)}" if any(notes) else ""
            lines.append(f"{sign}{path}: {_secretless(value)}{note}")
    return lines


def _effect(setting: FieldInfo) -> str:
    effect = effect_of(setting)
    return "changes no host" if effect is Effect.NOTHING else effect.label


def _setting(path: str, known: Mapping[str, FieldInfo]) -> tuple[FieldInfo | None, Any]:
    """The setting that a path is of, or lies in (`registry.mirrors.docker.io`), and its default."""
    name = re.sub(r"\[.*?\]", "[]", path)
    while name and name not in known:
        name = name.rpartition(".")[0]
    if not name:
        return None, None
    setting = known[name]
    whole = name == path and not setting.is_required()
    return setting, setting.default if whole and setting.default not in ({}, ()) else None


_ABSENT = object()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path, a host's by its name: `hosts[node1].address`."""
    if isinstance(value, Mapping) and value and "secure" not in value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif path == "hosts" and isinstance(value, list):
        for index, host in enumerate(value):
            if isinstance(host, Mapping):
                own = {key: item for key, item in host.items() if key != "name"}
                yield from _flat(own, f"hosts[{host.get('name', index)}]")
    elif path:
        yield path, value


def _secretless(value: Any) -> str:
    if isinstance(value, Mapping) and "secure" in value:
        return "[secret]"
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = (
        value
        if isinstance(value, str) and value and "\n" not in value
        else json.dumps(value, ensure_ascii=False)
    )
    text = mask(text)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 3]}..."


_SECRETS = (
    # A PEM's private part, cut short or not.
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "[secret]",
    ),
    # Name and password in a URL.
    (re.compile(r"(?<=://)[^/\s@\"']+(?=@)"), "[secret]"),
    # kubeadm's join token.
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), "[secret]"),
    # What Pulumi has encrypted: of no use to a reader.
    (re.compile(r"\bv1:[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+"), "[secret]"),
    (re.compile(r"(?i)((?:password|passphrase|token|secret)\s*[=:]\s*)[^\s,;'\"]+"), r"\1[secret]"),
)


def mask(text: str) -> str:
    """The text without what looks like a secret, whoever has put it there."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


# -- the page


@dataclass(frozen=True)
class Page:
    """The comment.

    Attributes:
        destructive: Something would be gone afterwards.
        failed: A preview has failed, or a mandatory rule is broken.
    """

    text: str
    destructive: bool
    failed: bool


def page(environments: Sequence[Environment], *, meant: bool, limit: int = LIMIT_CHARACTERS) -> Page:
    """The report of a change.

    :param meant: what it destroys is meant.
    :param limit: of the text, in characters: lists are cut first, what happens last.
    """
    ordered = sorted(environments, key=lambda environment: _natural(environment.name))
    destructive = [environment.name for environment in ordered if environment.destructive]
    refused = [environment.name for environment in ordered if environment.refused]
    head = [*_head(destructive, meant), *_refusal(refused)]
    text = ""
    for most in (2000, 400, 100, 25, 0):
        sections = [_section(environment, most) for environment in ordered]
        text = "\n\n".join([*head, *sections]) + "\n"
        if len(text) <= limit:
            break
    else:
        # Nothing is left to be folded: whole environments are named instead of shown, from the end.
        shown = list(sections)
        while len(text) > limit and shown:
            shown.pop()
            rest = ", ".join(environment.name for environment in ordered[len(shown) :])
            note = f"Too long for a comment, and not shown: {rest}. The job's log has the previews."
            text = "\n\n".join([*head, *shown, note]) + "\n"
        text = text[:limit]
    failed = bool(refused) or any(environment.plan is None for environment in ordered)
    return Page(text, bool(destructive), failed)


def _head(destructive: Sequence[str], meant: bool) -> list[str]:
    if not destructive:
        return []
    where = _and(list(destructive))
    if meant:
        return [
            f"> [!WARNING]\n> **This destroys something in {where}**, and the label `{MEANT}` says that it "
            "is meant."
        ]
    return [
        f"> [!CAUTION]\n> **This destroys something in {where}.** The check fails until the pull request has "
        f"the label `{MEANT}`."
    ]


def _refusal(refused: Sequence[str]) -> list[str]:
    if not refused:
        return []
    return [
        f"> [!CAUTION]\n> **The policy refuses this in {_and(list(refused))}.** The check fails until no "
        "mandatory rule is broken; no label changes that."
    ]


def _section(environment: Environment, most: int) -> str:
    parts = [f"## {environment.name}: {_title(environment)}"]
    if environment.plan is None:
        parts.append(_fenced("text", _cut(_said(environment.errors), max(most, 20))))
    else:
        told = _bullets(environment.impacts)
        if told:
            parts.append("\n".join(told if most else _cut(told, _WORDS_AT_MOST)))
        parts += [f"> {line}" for line in _warnings(environment.plan)[:10]]
    if environment.findings:
        told = _verdict(environment.findings)
        parts += ["**Policy**", "\n".join(told if most else _cut(told, _WORDS_AT_MOST))]
    if environment.before is not None:
        lines = settings_diff(environment.before, environment.after)
        if lines:
            parts += ["**Settings**", _fenced("diff", _cut(lines, most))]
    if environment.plan is not None:
        parts += _resources(environment.changes, most)
    return "\n\n".join(parts)


def _bullets(found: Sequence[Impact]) -> list[str]:
    lines = [f"- {impact.text}" for impact in found if impact.level > Level.QUIET]
    quiet = [impact.text.rstrip(".") for impact in found if impact.level is Level.QUIET]
    return [*lines, *([f"- Besides: {'; '.join(quiet)}."] if quiet else [])]


# Hooks and programs fail in the engine's words around our own.
_AROUND = re.compile(r'^(error: )?(Preview failed: )?((before|after) hook "[^"]*" failed: )?')
_NOTHING_NEW = re.compile(r"^error: (preview failed|an unhandled error occurred: program exited with .*)$")
_REFUSED = 'before hook "changes" failed'


def _said(errors: str) -> list[str]:
    lines = [line for line in mask(errors.strip()).splitlines() if not _NOTHING_NEW.match(line)]
    return [_AROUND.sub("", line) for line in lines] or mask(errors.strip()).splitlines()


def _verdict(findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    for rule in dict.fromkeys(finding.rule for finding in findings):
        of_rule = [finding for finding in findings if finding.rule == rule]
        for finding in of_rule[:_OF_A_RULE]:
            words = f"`{finding.rule}` on `{finding.resource}`: {mask(finding.wrong)}."
            todo = f" To do: {mask(finding.todo)}." if finding.todo else ""
            says = "**Refused** by" if finding.mandatory else "Warning of"
            lines.append(f"- {says} {words}{todo}")
        more = [f"`{finding.resource}`" for finding in of_rule[_OF_A_RULE:]]
        if more:
            lines.append(f"- `{rule}` likewise on {_and([*more[:10], *_rest(more[10:])])}.")
    return lines


def _rest(names: Sequence[str]) -> list[str]:
    return [f"{len(names)} more"] if names else []


def _title(environment: Environment) -> str:
    title = _worst(environment)
    return f"{title}; refused by the policy" if environment.refused else title


def _worst(environment: Environment) -> str:
    if environment.plan is None:
        found = re.search(r"The configuration has (\d+ problems?)", environment.errors)
        if found:
            return f"no preview, the configuration has {found[1]}"
        return "refused" if _REFUSED in environment.errors else "no preview"
    if not environment.changes:
        return "nothing changes"
    found_levels = [impact.level for impact in environment.impacts] or [Level.QUIET]
    return {
        Level.LOSS: "destructive",
        Level.MADE: "something new",
        Level.ROLLING: "restarts, one after the other",
        Level.IN_PLACE: "changes in place",
        Level.QUIET: "nothing that anybody notices",
    }[max(found_levels)]


def _warnings(plan: Mapping[str, Any]) -> list[str]:
    said = [
        " ".join(str(entry.get("message", "")).split())
        for entry in plan.get("diagnostics") or []
        if entry.get("severity") == "warning"
    ]
    # Of where plugins are on that machine; and the hook's own, which stands above in the same words.
    own = (
        "warning: using pulumi-",
        "warning: resource plugin ",
        "this change makes a new cluster",
        "warning: this change makes a new cluster",
    )
    return list(dict.fromkeys(mask(text) for text in said if not text.startswith(own)))


def _resources(changed: Sequence[Change], most: int) -> list[str]:
    components = ("kubeadm-ipvs:", "pulumi:pulumi:")
    changes = [change for change in changed if change.op != "same" and not change.type.startswith(components)]
    if not changes:
        return []
    ranks = list(_SIGNS)
    changes.sort(key=lambda c: (ranks.index(c.op) if c.op in ranks else len(ranks), _natural(c.name)))
    counts = {op: sum(change.op == op for change in changes) for op in dict.fromkeys(c.op for c in changes)}
    summary = ", ".join(f"{count} {op}" for op, count in counts.items())
    width = max(len(change.op) for change in changes)
    lines = [
        f"{_SIGNS.get(change.op, '?')} {change.op.ljust(width)} {mask(change.name)}{_which(change)}"
        for change in changes
    ]
    body = _fenced("text", _cut(lines, most))
    return [
        f"<details><summary>{_count(len(changes), 'resource')}: {summary}</summary>\n\n{body}\n\n</details>"
    ]


def _which(change: Change) -> str:
    if change.type.startswith("pulumi:providers:"):
        return " (the provider of the Kubernetes objects)"
    if change.op != "update":
        return ""
    if change.step:
        values = change.differing
        words = ["not shown"] if values is None else list(values) or ["its script, a limit or its way in"]
    else:
        words = [path for path, _, _ in _differences(change.old, change.new)]
    shown = ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")
    return f" ({shown})" if shown else ""


def _fenced(language: str, lines: Sequence[str]) -> str:
    """A block that nothing in it can end."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _cut(lines: Sequence[str], most: int) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"... {len(lines) - most} more"]


def _natural(text: str) -> list[tuple[int, str]]:
    """`node2` before `node10`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", text)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
