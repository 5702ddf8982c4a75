"""Previews for the tests of the report: steps as in `pulumi preview --json`, and their impacts."""

from __future__ import annotations

from typing import Any

from model.steps import STEPS, command_text, step_text
from report.impact import impacts
from report.page import Environment
from report.plan import COMMAND, changes_in

HOSTS = ["master", "node1", "node2"]


def script(**values: str) -> dict[str, Any]:
    """The inputs of a remote command with these values."""
    return {"stdin": step_text(STEPS["init"], values)}


def claim(address: str) -> dict[str, Any]:
    """The inputs of the claim of a host with this address."""
    return {**script(POD_NETWORK="lines"), "triggers": [address]}


def step(name: str, op: str, old: Any = None, new: Any = None, kind: str = COMMAND) -> Any:
    """One step of a preview.

    Args:
        name: The resource's name. A command's name ends with its step: `node1-preparation`.
        op: The operation.
        old: The inputs before the change; None for a new resource.
        new: The inputs after the change; None for a deleted resource.
        kind: The resource's type.
    """
    entry: dict[str, Any] = {"op": op, "urn": f"urn:pulumi:t::p::{kind}::{name}"}
    command = {}
    if kind == COMMAND:
        known = STEPS["expected_services" if name == "expected-services" else name.rpartition("-")[2]]
        limits = {"create": known.limit, "update": known.limit, "delete": known.delete_limit}
        command = {
            verb: command_text(verb, known.name, "master", 60, "root")
            for verb, limit in limits.items()
            if limit
        }
    for key, inputs in (("oldState", old), ("newState", new)):
        if inputs is not None:
            entry[key] = {"type": kind, "inputs": {**command, **inputs}}
    return entry


def update(name: str, before: dict[str, str], **after: str) -> Any:
    """An update of a command that changes its values. Those that are missing in `before` were empty."""
    empty = {name: "" for name in after if name != "REPAIR"}
    return step(name, "update", script(**(empty | before)), script(**after))


def update_hidden(name: str) -> Any:
    """An update of a command whose values are secret."""
    return step(name, "update", {"stdin": "[secret]"}, {"stdin": "[secret]"})


def update_protection(name: str, before: bool, after: bool, op: str = "same") -> Any:
    """A step that changes the resource's protection."""
    entry = step(name, op, script(), script())
    entry["oldState"]["protect"], entry["newState"]["protect"] = before, after
    return entry


def update_proxies(hosts: int = 3) -> list[Any]:
    """Updates of kube-proxy's settings on the first hosts."""
    control_plane = update("master-init", {"PROXY": "scheduler: rr"}, PROXY="scheduler: wrr")
    return [control_plane, *(update_hidden(f"{host}-join") for host in HOSTS[1:hosts])]


REMOVED_WORKER = [
    step("node2-node", "delete", script(NODE="node2")),
    step("node2-join", "delete", {"stdin": "[secret]"}),
    step("node2-claim", "delete", claim("10.0.0.13")),
]


def impact_texts_of(*steps: Any) -> list[str]:
    """The texts of the impacts of these steps."""
    return [impact.text for impact in impacts(changes_in({"steps": list(steps)}), HOSTS)]


def environment(name: str, *steps: Any, **more: Any) -> Environment:
    """An environment whose preview has these steps."""
    return Environment(name, {"steps": list(steps)}, **more)
