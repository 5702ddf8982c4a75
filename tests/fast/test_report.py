"""The page that is made of a preview; what the real engine previews is in tests/engine/test_report.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from model import change_impact
from model.change_impact import Level
from model.policy_findings import Finding, findings_in
from model.report import COMMAND, Environment, changes_of, impacts, mask, page, settings_diff
from model.settings import PREFIX, load
from model.steps import STEPS, command_text, script_text, step_of, values_of
from tests.fast.test_graph import raw_settings, run
from tests.stacks import PROJECT
from tools import report

HOSTS = ["master", "node1", "node2"]


def step(name: str, op: str, old: Any = None, new: Any = None, kind: str = COMMAND) -> Any:
    entry: dict[str, Any] = {"op": op, "urn": f"urn:pulumi:t::p::{kind}::{name}"}
    command = {}
    if kind == COMMAND:
        known = STEPS["expected_services" if name == "expected-services" else name.rpartition("-")[2]]
        command = {"create": command_text("create", known, "master", 60, "root")}
    for key, inputs in (("oldState", old), ("newState", new)):
        if inputs is not None:
            entry[key] = {"type": kind, "inputs": {**command, **inputs}}
    return entry


def script(**values: str) -> dict[str, Any]:
    return {"stdin": script_text(STEPS["kernel"], values)}


def update(name: str, before: dict[str, str], **after: str) -> Any:
    return step(name, "update", script(**before), script(**after))


def told(*steps: Any) -> list[str]:
    return [impact.text for impact in impacts(changes_of({"steps": list(steps)}), HOSTS)]


def proxies(hosts: int = 3) -> list[Any]:
    texts = script(PROXY="scheduler: rr"), script(PROXY="scheduler: wrr")
    return [step(f"{host}-proxy", "update", *texts) for host in HOSTS[:hosts]]


def environment(name: str, *steps: Any, **more: Any) -> Environment:
    return Environment(name, {"steps": list(steps)}, **more)


REMOVAL = [
    step("node2-node", "delete", script(NODE="node2")),
    step("node2-join", "delete", {"stdin": "[secret]"}),
    step("node2-claim", "delete", script(ADDRESS="10.0.0.13")),
]


# -- words


def test_the_table_knows_every_step_and_every_value_that_it_names(tmp_path: Path) -> None:
    recorded = run(load(raw_settings(tmp_path), tmp_path))
    texts: dict[str, set[str]] = {}
    for name, inputs in recorded.inputs.items():
        if "stdin" in inputs and "/" not in name:
            values = values_of(inputs["stdin"])
            assert values is not None
            step = step_of(inputs["create"])
            assert step is not None
            texts.setdefault(step.name, set()).update(values)
    assert set(texts) == set(change_impact.STEPS) <= set(STEPS)
    for known, words in change_impact.STEPS.items():
        assert {key.partition("=")[0] for key in words} <= texts[known], known


@pytest.mark.parametrize("value", ["", "rr", "it's 'quoted'", "a\nB=c\n\nSTEP=$2 HOST=$3\n", "$(x) `y` \\"])
def test_the_values_of_a_steps_text_are_read_as_bash_reads_them(value: str) -> None:
    assert values_of(script_text(STEPS["proxy"], {"MODE": "ipvs", "PROXY": value})) == {
        "MODE": "ipvs",
        "PROXY": value,
    }
    assert values_of("[secret]") is None


def test_a_changed_scheduler_restarts_kube_proxy_node_by_node() -> None:
    assert told(*proxies()) == [
        "**kube-proxy restarts on 3 nodes, one by one**: master, node1, node2. "
        "Meanwhile the kernel balances as before."
    ]
    assert told(*proxies(1))[0].startswith("**kube-proxy restarts on master**. ")


def protecting(name: str, before: bool, after: bool, op: str = "same") -> Any:
    entry = step(name, op, script(), script())
    entry["oldState"]["protect"], entry["newState"]["protect"] = before, after
    return entry


UNPROTECTED = "**master may be deleted and replaced again: its protection goes**."


def test_a_control_plane_that_loses_its_protection_is_told_once_and_destroys_nothing() -> None:
    steps = [protecting(f"master-{name}", True, False) for name in ("claim", "init")]
    assert told(*steps) == [UNPROTECTED]
    made = page([environment("prod", *steps)], meant=False)
    assert made.text == f"## prod: changes in place\n\n- {UNPROTECTED}\n"
    assert not made.destructive


def test_a_control_plane_that_is_protected_from_now_on_is_told_as_such() -> None:
    assert told(protecting("master-init", False, True)) == [
        "master is protected from now on: no run deletes or replaces it."
    ]


def test_protection_that_goes_is_told_beside_what_else_happens_to_the_step() -> None:
    assert UNPROTECTED in told(protecting("master-init", True, False, op="update"))


def test_what_stays_protected_or_open_is_nothing() -> None:
    steps = [protecting("master-init", True, True), protecting("node1-join", False, False)]
    assert page([environment("prod", *steps)], meant=False).text == "## prod: nothing changes\n"


def test_a_worker_that_goes_is_drained_removed_and_given_back() -> None:
    [text] = told(*REMOVAL)
    assert text.startswith("**node2 is drained, removed, given back**.")


def test_what_the_table_does_not_know_is_named_and_its_end_is_a_loss() -> None:
    plan = {"steps": [step("logs", "delete", {}, None, "aws:s3:Bucket")]}
    assert [(h.level, h.text) for h in impacts(changes_of(plan), HOSTS)] == [
        (Level.LOSS, "`logs` (aws:s3:Bucket): delete.")
    ]


@pytest.mark.parametrize(
    ("op", "words"), [("delete", "is deleted**"), ("replace", "is deleted and made anew**: `spec.x` 1 → 2")]
)
def test_an_object_that_is_lost_fails_the_check(op: str, words: str) -> None:
    old, new = {"spec": {"x": 1}}, {"spec": {"x": 2}}
    name, kind = "Service/default/web", "kubernetes:core/v1:Service"
    found = environment("prod", step(name, op, old, None if op == "delete" else new, kind))
    assert found.destructive
    assert words in page([found], meant=False).text


def test_a_replacement_is_one_change_however_many_steps_it_takes() -> None:
    ops = ("delete-replaced", "replace", "create-replacement")
    steps = [step("master-init", op, script(CONFIG="a"), script(CONFIG="b")) for op in ops]
    assert [change.op for change in changes_of({"steps": steps})] == ["replace"]
    assert "the cluster is replaced: every workload in it is lost" in told(*steps)[0]


def test_another_first_control_plane_is_another_cluster() -> None:
    steps = [step("old-init", "delete", script()), step("new-init", "create", None, script())]
    assert "the cluster is replaced" in told(*steps)[0]


def test_a_step_that_runs_again_for_its_script_alone_is_told_as_such() -> None:
    old, new = script(FIREWALL="open"), script(FIREWALL="open")
    new["stdin"] = "# more\n" + new["stdin"]
    assert told(step("node1-firewall", "update", old, new)) == [
        "steps run again on node1, with the settings that they had."
    ]


def test_what_evicts_pods_is_told_beside_the_labels() -> None:
    assert told(update("node1-node", {}, LABELS="disk=ssd", TAINTS="only=web:NoExecute")) == [
        "labels of node1 change.",
        "taints of node1 change. A NoExecute taint evicts pods that don't tolerate it.",
    ]


def test_other_mirrors_are_not_said_to_restart_nothing_where_something_else_does() -> None:
    [restart, mirrors] = told(update("node1-runtime", {}, MIRRORS="a b", SANDBOX_IMAGE="c", IMAGES="d"))
    assert restart == "**containerd restarts on node1, with another sandbox image**. Pods go on."
    assert mirrors == "containerd pulls by other registry mirrors on node1."
    assert "Nothing restarts" in told(update("node1-runtime", {}, MIRRORS="a b", IMAGES="d"))[0]


def test_other_names_of_the_api_server_do_not_hide_that_kubelets_restart() -> None:
    steps = [
        update("master-init", {}, CERT_SANS="api.test", KUBELET="maxPods: 60", CONFIG="both"),
        step("node1-join", "update", {"stdin": "[secret]"}, {"stdin": "[secret]"}),
    ]
    assert told(*steps) == [
        "**kubelet restarts on every node, with other settings**. Pods go on.",
        "the API server's certificate is made anew on master, with other names.",
    ]
    assert "## prod: restarts, one after the other" in page([environment("prod", *steps)], meant=False).text


def test_another_proxy_mode_is_told_once_and_its_settings_are_a_part_of_it() -> None:
    [text] = told(update("node1-proxy", {"MODE": "ipvs", "PROXY": "a"}, MODE="nftables", PROXY="b"))
    assert text.startswith("**kube-proxy changes from ipvs to nftables on node1**. On each node")


def test_what_a_repaired_host_is_asked_besides_is_told_too() -> None:
    assert told(
        update("master-init", {}, REPAIR="today", KUBELET="maxPods: 60"),
        update("master-kernel", {}, REPAIR="today"),
        update("master-runtime", {}, REPAIR="today", MIRRORS="a b"),
        step("master-verification", "update", {"stdin": "[secret]"}, {"stdin": "[secret]"}),
    ) == [
        "**kubelet restarts on every node, with other settings**. Pods go on.",
        "every step on master runs again, to put right what has drifted. containerd restarts; pods go on.",
        "containerd pulls by other registry mirrors on master.",
    ]


def test_a_repair_that_is_taken_out_of_the_settings_repairs_nothing() -> None:
    assert told(update("node1-runtime", {"REPAIR": "today"})) == [
        "steps run again on node1, with the settings that they had."
    ]


def test_a_changed_limit_is_not_told_as_nothing() -> None:
    old, new = ({**script(), "create": f"timeout {limit} bash"} for limit in (1, 2))
    found = environment("prod", step("node1-kernel", "update", old, new))
    assert "nothing changes" not in page([found], meant=True).text


def test_the_value_of_a_secret_object_is_not_shown() -> None:
    old, new = {"stringData": {"key": "hush"}}, {"stringData": {"key": "hushhush"}}
    text = page(
        [environment("p", step("Secret/a/b", "update", old, new, "kubernetes:core/v1:Secret"))], meant=True
    ).text
    assert "stringData.key" in text
    assert "hush" not in text


# -- settings


def test_settings_are_shown_with_their_default_and_what_their_change_does() -> None:
    after = {"proxy": {"scheduler": "wrr"}, "registry": {"mirrors": {"docker.io": ["https://m"]}}}
    assert settings_diff({}, after) == [
        "-proxy.scheduler: rr  # by default",
        "+proxy.scheduler: wrr  # rolling",
        '+registry.mirrors.docker.io: ["https://m"]  # in place',
    ]
    assert settings_diff(after, {"registry": after["registry"]}) == [
        "-proxy.scheduler: wrr",
        "+proxy.scheduler: rr  # by default, rolling",
    ]


def test_hosts_are_compared_by_name() -> None:
    before = {"hosts": [{"name": "a", "address": "1"}, {"name": "b", "address": "2"}]}
    after = {"hosts": [{"name": "b", "address": "2", "labels": {"disk": "ssd"}}]}
    assert settings_diff(before, after) == [
        "+hosts[b].labels.disk: ssd  # in place",
        "-hosts[a].address: 1",
    ]


def test_what_is_encrypted_stays_hidden() -> None:
    before, after = ({"packages": {"key": {"secure": f"v1:abc:{n}"}}} for n in "12")
    assert settings_diff(before, after) == ["-packages.key: [secret]", "+packages.key: [secret]  # in place"]


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hush@mirror.example.com/x",
        "join --token abcdef.0123456789hushab",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nhush\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhush, cut short",
        "password=hush",
        "passphrase: hush",
    ],
)
def test_what_looks_like_a_secret_is_masked_wherever_it_comes_from(text: str) -> None:
    assert "hush" not in mask(text)
    assert "hush" not in page([Environment("prod", None, errors=text)], meant=False).text


def test_ordinary_words_are_not_taken_for_secrets() -> None:
    text = (
        "ssh.privateKeyFile: is /home/me/.ssh/id_ed25519, 10.244.0.0/16 -> 10.200.0.0/16, https://a.example/b"
    )
    assert mask(text) == text


# -- the page


def test_the_order_does_not_depend_on_the_engines() -> None:
    steps = [*proxies(), *REMOVAL]
    first = page([environment("b", *steps), environment("a")], meant=False).text
    assert first.index("## a") < first.index("## b")
    for seed in range(3):
        random.Random(seed).shuffle(steps)
        assert page([environment("a"), environment("b", *steps)], meant=False).text == first


def test_the_worst_comes_first_and_what_nobody_notices_last_in_one_line() -> None:
    kernel = step("node1-kernel", "update", script(MODE="ipvs"), script(MODE="iptables"))
    proof = step("node1-verification", "update", script(MODE="ipvs"), script(MODE="iptables"))
    lines = page([environment("a", kernel, proof, *proxies(1), *REMOVAL)], meant=False).text.splitlines()
    bullets = [line for line in lines if line.startswith(("- **", "- Besides"))]
    assert [bullet.split()[1] for bullet in bullets] == ["**node2", "**kube-proxy", "Besides:"]


def test_a_page_stays_below_its_limit_and_keeps_what_happens() -> None:
    names = [f"node{number}" for number in range(400)]
    texts = script(PROXY="a"), script(PROXY="b")
    many = [step(f"{name}-proxy", "update", *texts) for name in names]
    before = {"hosts": [{"name": name, "address": "10.0.0.1"} for name in names]}
    found = [environment(f"env{number}", *many, *REMOVAL, before=before) for number in range(3)]
    text = page(found, meant=False).text
    assert len(text) < 60_000
    assert text.count("node2 is drained, removed, given back") == 3
    assert text.count("<details>") == text.count("</details>") == 3
    tiny = page(found, meant=False, limit=2000).text
    assert len(tiny) <= 2000
    assert "This destroys something" in tiny


def test_where_plugins_come_from_is_no_reviewers_matter_and_other_warnings_are() -> None:
    said = ("using pulumi-resource-command from $PATH", "resource plugin kubernetes is expected to have")
    warnings = [
        {"severity": "warning", "message": f"warning: {text}"} for text in (*said, "a setting is deprecated")
    ]
    plan = {"steps": REMOVAL, "diagnostics": warnings}
    text = page([Environment("prod", plan)], meant=False).text
    assert "> warning: a setting is deprecated" in text
    assert not any(words in text for words in said)


def test_nothing_in_an_error_ends_its_block() -> None:
    text = page([Environment("prod", None, errors="a\n```\n# title\n````\n")], meant=False).text
    assert "\n`````text\na\n```\n# title\n````\n`````" in text


def test_problems_of_the_configuration_are_the_comment() -> None:
    errors = "error: The configuration has 2 problems; nothing was touched.\n  a: is wrong\n  b: is wrong\n"
    text = page([Environment("prod", None, errors=errors)], meant=False).text
    assert "## prod: no preview, the configuration has 2 problems" in text
    assert "  a: is wrong\n  b: is wrong" in text


def test_the_example_of_the_pages_is_what_the_engines_preview_gave() -> None:
    example = (PROJECT / "tests/engine/data/report/worker-removed.md").read_text()
    assert f"````markdown\n{example}````\n" in (PROJECT / "docs/reviewing.md").read_text()


# -- the policy


def policy_event(level: str, rule: str, resource: str, violation: str) -> dict[str, Any]:
    said = {
        "resourceUrn": f"urn:pulumi:p::k::t::{resource}",
        "message": f"What is asked.\n{violation}\n",
        "policyName": rule,
        "enforcementLevel": level,
    }
    return {"policyEvent": said}


def test_what_the_engine_says_of_rules_is_read_once_and_what_refuses_first() -> None:
    warning = policy_event("advisory", "a-rule", "x", "x is odd -> mend x")
    refusal = policy_event("mandatory", "b-rule", "y", "y is bad")
    passed = {"policyAnalyzeSummaryEvent": {"passed": ["a-rule"]}}
    assert findings_in([warning, passed, refusal, warning]) == [
        Finding("b-rule", True, "y", "y is bad"),
        Finding("a-rule", False, "x", "x is odd -> mend x"),
    ]


def test_a_broken_mandatory_rule_refuses_whatever_is_meant_and_says_what_to_do() -> None:
    broken = Finding("images-pinned", True, "Deployment/default/web", "web has no tag -> give it one")
    made = page([environment("prod", *proxies(), findings=[broken])], meant=True)
    assert made.failed and not made.destructive
    assert "**The policy refuses this in prod.**" in made.text
    assert "## prod: restarts, one after the other; refused by the policy\n" in made.text
    assert (
        "- **Refused** by `images-pinned` on `Deployment/default/web`: web has no tag. To do: give it one."
    ) in made.text


def test_an_advisory_rule_is_a_warning_and_refuses_nothing() -> None:
    odd = Finding("single-control-plane", False, "prod", "one host holds etcd -> keep backups")
    made = page([environment("prod", findings=[odd])], meant=False)
    assert not made.failed
    assert "refuse" not in made.text.lower()
    assert (
        "- Warning of `single-control-plane` on `prod`: one host holds etcd. To do: keep backups."
        in made.text
    )


def test_rules_that_a_failed_preview_got_to_are_told_beside_its_errors() -> None:
    odd = Finding("a-rule", False, "x", "x is odd")
    text = page([Environment("prod", None, errors="no stack", findings=[odd])], meant=False).text
    assert text.index("no stack") < text.index("- Warning of `a-rule` on `x`: x is odd.")


def test_a_rule_that_many_resources_break_is_told_once_with_their_names() -> None:
    many = [Finding("a-rule", True, f"node{n}", f"node{n} is odd") for n in range(400)]
    text = page([environment("prod", findings=many)], meant=False).text
    assert text.count("is odd.") == 3
    assert "- `a-rule` likewise on `node3`, `node4`" in text
    assert "and 387 more." in text


def test_a_secret_that_a_rule_repeats_is_masked() -> None:
    told_all = Finding("a-rule", True, "x", "x holds password=hush -> take password=hush away")
    assert "hush" not in page([environment("prod", findings=[told_all])], meant=False).text


# -- the command line


def files(folder: Path, *steps: Any) -> dict[str, str]:
    (folder / "plan.json").write_text(
        "warning: of the engine\n" + json.dumps({"steps": list(steps)}, indent=4)
    )
    (folder / "errors").write_text("no stack named 'prod'")
    return {"plan": str(folder / "plan.json"), "errors": str(folder / "errors")}


@pytest.mark.parametrize(
    ("destroys", "fails", "options", "status"),
    [
        (False, False, [], 0),
        (True, False, [], 3),
        (True, False, ["--allow-destructive"], 0),
        (False, True, [], 1),
        (True, True, [], 1),
    ],
)
def test_the_status_says_what_the_check_is(
    tmp_path: Path, destroys: bool, fails: bool, options: list[str], status: int
) -> None:
    paths = files(tmp_path, *(REMOVAL if destroys else []))
    arguments = ["--preview", f"prod={paths['plan']}", "--output", str(tmp_path / "out"), *options]
    if fails:
        arguments += ["--errors", f"other={paths['errors']}"]
    assert report.main(arguments) == status
    text = (tmp_path / "out").read_text()
    assert ("node2 is drained" in text) == destroys
    assert ("no stack named" in text) == fails


def test_the_verdict_of_the_policy_is_read_and_a_mandatory_rule_fails_the_check(tmp_path: Path) -> None:
    paths = files(tmp_path)
    for mandatory in (False, True):
        (tmp_path / "policy").write_text(
            report.findings_text([Finding("a-rule", mandatory, "x", "x is odd")])
        )
        arguments = ["--preview", f"prod={paths['plan']}", "--policy", f"prod={tmp_path / 'policy'}"]
        done = report.main([*arguments, "--output", str(tmp_path / "out"), "--allow-destructive"])
        assert done == (1 if mandatory else 0)
        assert "x is odd" in (tmp_path / "out").read_text()


def test_what_is_no_verdict_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path)
    pair = f"prod={paths['plan']}"
    assert report.main(["--preview", pair, "--policy", pair]) == 1
    assert "is no verdict of the policy pack" in capsys.readouterr().err


def test_what_is_no_preview_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path)
    assert report.main(["--preview", f"prod={paths['errors']}"]) == 1
    assert "is no preview\n  -> `pulumi preview --json` writes one" in capsys.readouterr().err
    assert report.main(["--preview", f"a={paths['plan']}", "--errors", f"a={paths['errors']}"]) == 1
    assert "a has a preview and errors" in capsys.readouterr().err


def test_what_is_extended_counts_as_said(tmp_path: Path) -> None:
    shared = {"config": {f"{PREFIX}proxy": {"scheduler": "rr", "mode": "ipvs"}}}
    own = {"config": {f"{PREFIX}extends": "common.yaml", f"{PREFIX}proxy": {"scheduler": "wrr"}}}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(shared))
    (tmp_path / "Pulumi.prod.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(shared))
    paths = files(tmp_path)
    [found] = report.environments(
        tmp_path, {"prod": Path(paths["plan"])}, {}, {"prod": tmp_path / "before.yaml"}, {}
    )
    assert settings_diff(found.before or {}, found.after) == [
        "-proxy.scheduler: rr",
        "+proxy.scheduler: wrr  # rolling",
    ]
