"""Parsing previews into changes, and engine events into policy findings."""

from __future__ import annotations

from typing import Any

import pytest

from model.steps import STEPS, step_text, values_of
from report.plan import STASH, changes_in
from report.policy_findings import Finding, findings_in
from tests.fast.report_plans import claim, script, step, update, update_protection


@pytest.mark.parametrize("value", ["", "rr", "it's 'quoted'", "a\nB=c\n\nSTEP=$2 HOST=$3\n", "$(x) `y` \\"])
def test_values_are_read_as_bash_reads_them(value: str) -> None:
    text = step_text(STEPS["join"], {"MODE": "ipvs", "PROXY": value})
    assert values_of(text) == {"MODE": "ipvs", "PROXY": value}
    assert values_of("[secret]") is None


def test_replacement_is_one_change() -> None:
    ops = ("delete-replaced", "replace", "create-replacement")
    steps = [step("master-init", op, script(CONFIG="a"), script(CONFIG="b")) for op in ops]
    [change] = changes_in({"steps": steps})
    assert (change.op, change.changed_values) == ("replace", {"CONFIG": ("a", "b")})


def test_unchanged_resources_and_records_are_left_out() -> None:
    steps = [
        update_protection("master-init", True, True),
        update_protection("node1-join", False, False),
        step("node1-join", "refresh", script(), script()),
        step("node1-join-desired", "update", {"input": 1}, {"input": 2}, STASH),
    ]
    assert changes_in({"steps": steps}) == []


def test_change_knows_its_host_and_step() -> None:
    earlier = step("promises", "update", script(), script(), "command:remote:Command2")
    earlier["newState"]["type"] = "command:remote:Command"
    earlier["newState"]["inputs"]["create"] = "timeout 60 bash -s -- create look master"
    steps = [
        update("node-a-preparation", {}, MODE="ipvs"),
        earlier,
        update("nodes", {}, NODES="a - -"),
        step("node-a-node", "delete", script(NODE="node-a")),
    ]
    assert [(change.host, change.step) for change in changes_in({"steps": steps})] == [
        ("node-a", "preparation"),
        ("", "expected_services"),
        ("", "nodes"),
        ("node-a", "node"),
    ]


def test_only_a_claim_has_an_address() -> None:
    steps = [
        step("node1-claim", "create", None, claim("10.0.0.12")),
        step("node1-join", "create", None, {"stdin": "[secret]", "triggers": ["master-init-id"]}),
    ]
    assert [change.address for change in changes_in({"steps": steps})] == ["10.0.0.12", ""]


def test_values_of_other_versions_arent_changes() -> None:
    old, new = script(SANDBOX_IMAGE="a", RENEWAL="text"), script(SANDBOX_IMAGE="b", MODE="ipvs", REPAIR="1")
    [change] = changes_in({"steps": [step("node1-preparation", "update", old, new)]})
    assert change.changed_values == {"REPAIR": ("", "1"), "SANDBOX_IMAGE": ("a", "b")}


def policy_event(level: str, rule: str, resource: str, violation: str) -> dict[str, Any]:
    event = {
        "resourceUrn": f"urn:pulumi:t::p::k::t::{resource}",
        "message": f"The rule's description.\n{violation}\n",
        "policyName": rule,
        "enforcementLevel": level,
    }
    return {"policyEvent": event}


def test_findings_are_unique_and_mandatory_ones_first() -> None:
    warning = policy_event("advisory", "a-rule", "x", "x is odd -> fix x")
    violation = policy_event("mandatory", "b-rule", "y", "y is bad")
    passed = {"policyAnalyzeSummaryEvent": {"passed": ["a-rule"]}}
    found = findings_in([warning, passed, violation, warning])
    assert found == [
        Finding("b-rule", True, "y", "y is bad"),
        Finding("a-rule", False, "x", "x is odd -> fix x"),
    ]
    assert [(finding.problem, finding.fix) for finding in found] == [("y is bad", ""), ("x is odd", "fix x")]
    assert [str(finding) for finding in found] == [
        "policy b-rule rejects y: y is bad",
        "policy a-rule warns about x: x is odd -> fix x",
    ]
