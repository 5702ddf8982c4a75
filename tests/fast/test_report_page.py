"""The rendered page. tests/engine/test_report.py compares whole pages for previews of the real engine."""

from __future__ import annotations

import random

from report.page import Environment, render
from report.policy_findings import Finding
from tests.fast.report_plans import REMOVED_WORKER, environment, script, step, update, update_proxies
from tests.stacks import PROJECT


def test_page_is_empty_without_changes() -> None:
    assert render([environment("prod")], approved=False).text == "## prod: no changes\n"


def test_order_of_steps_and_environments_doesnt_matter() -> None:
    steps = [*update_proxies(2), *REMOVED_WORKER]
    first = render([environment("b", *steps), environment("a")], approved=False).text
    assert first.index("## a") < first.index("## b")
    for seed in range(3):
        random.Random(seed).shuffle(steps)
        assert render([environment("a"), environment("b", *steps)], approved=False).text == first


def test_worst_impact_is_first_and_background_ones_last() -> None:
    kernel = update("node1-preparation", {"MODE": "ipvs"}, MODE="iptables")
    verification = update("node1-verification", {"MODE": "ipvs"}, MODE="iptables")
    found = environment("a", kernel, verification, *update_proxies(1), *REMOVED_WORKER)
    lines = render([found], approved=False).text.splitlines()
    bullets = [line for line in lines if line.startswith(("- **", "- In the background"))]
    assert [bullet.split()[1] for bullet in bullets] == ["**node2", "**kube-proxy", "In"]


def test_long_page_is_cut_but_keeps_the_impacts() -> None:
    names = [f"node{number}" for number in range(400)]
    texts = script(MIRRORS="a"), script(MIRRORS="b")
    many = [step(f"{name}-preparation", "update", *texts) for name in names]
    before = {"hosts": [{"name": name, "address": "10.0.0.1"} for name in names]}
    found = [environment(f"env{number}", *many, *REMOVED_WORKER, before=before) for number in range(3)]
    text = render(found, approved=False).text
    assert len(text) < 60_000
    assert text.count("node2 is drained") == 3
    assert text.count("<details>") == text.count("</details>") == 3
    tiny = render(found, approved=False, max_characters=2000).text
    assert len(tiny) <= 2000
    assert "This change is destructive in env0, env1 and env2." in tiny
    assert "Not shown because the comment would be too long: env" in tiny


def test_html_in_an_operation_is_escaped() -> None:
    text = render([environment("a", step("x", "<b>", {}, {}, "aws:s3:Bucket"))], approved=False).text
    assert "<summary>1 resource: 1 &lt;b&gt;</summary>" in text


def test_warnings_about_plugins_are_left_out() -> None:
    plugins = ("using pulumi-resource-command from $PATH", "resource plugin kubernetes is expected to have")
    warnings = [
        {"severity": "warning", "message": f"warning: {text}"}
        for text in (*plugins, "a setting is deprecated")
    ]
    plan = {"steps": REMOVED_WORKER, "diagnostics": warnings}
    text = render([Environment("prod", plan)], approved=False).text
    assert "> warning: a setting is deprecated" in text
    assert not any(words in text for words in plugins)


def test_code_blocks_in_errors_are_contained() -> None:
    text = render([Environment("prod", None, errors="a\n```\n# title\n````\n")], approved=False).text
    assert "\n`````text\na\n```\n# title\n````\n`````" in text


def test_configuration_problems_are_listed() -> None:
    errors = "error: The configuration has 2 problems; nothing was changed.\n  a: is wrong\n  b: is wrong\n"
    text = render([Environment("prod", None, errors=errors)], approved=False).text
    assert "## prod: no preview (2 problems in the configuration)" in text
    assert "  a: is wrong\n  b: is wrong" in text


def test_documentation_shows_a_real_page() -> None:
    example = (PROJECT / "tests/engine/data/report/worker-removed.md").read_text()
    assert f"````markdown\n{example}````\n" in (PROJECT / "docs/reviewing.md").read_text()


def test_broken_mandatory_rule_fails_despite_approval() -> None:
    broken = Finding("images-pinned", True, "Deployment/default/web", "web has no tag -> add one")
    page = render([environment("prod", *update_proxies(), findings=[broken])], approved=True)
    assert page.has_failed and not page.is_destructive
    assert "**This change violates mandatory policy rules in prod.**" in page.text
    assert "## prod: rolling restarts; violates policy\n" in page.text
    assert "- **Mandatory rule** `images-pinned` fails for `Deployment/default/web`: web has no" in page.text
    assert "tag. Fix: add one.\n" in page.text


def test_broken_advisory_rule_is_only_a_warning() -> None:
    odd = Finding("single-control-plane", False, "prod", "one host runs etcd -> back up etcd")
    page = render([environment("prod", findings=[odd])], approved=False)
    assert not page.has_failed
    assert "violates" not in page.text
    assert (
        "- Advisory rule `single-control-plane` fails for `prod`: one host runs etcd. Fix: back up etcd."
        in page.text
    )


def test_failed_preview_still_shows_findings() -> None:
    odd = Finding("a-rule", False, "x", "x is odd")
    text = render([Environment("prod", None, errors="no stack", findings=[odd])], approved=False).text
    assert text.index("no stack") < text.index("- Advisory rule `a-rule` fails for `x`: x is odd.")


def test_findings_of_one_rule_are_grouped() -> None:
    many = [Finding("a-rule", True, f"node{n}", f"node{n} is odd") for n in range(400)]
    text = render([environment("prod", findings=many)], approved=False).text
    assert text.count("is odd.") == 3
    assert "- `a-rule` also fails for `node3`, `node4`" in text
    assert "and 387 more." in text


def test_secrets_in_findings_are_masked() -> None:
    leaky = Finding("a-rule", True, "x", "x contains password=hush -> remove password=hush")
    assert "hush" not in render([environment("prod", findings=[leaky])], approved=False).text
