"""The report's texts for each kind of change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.settings_file import load
from model.steps import STEPS, step_of, values_of
from report import impact_texts
from report.impact import impacts
from report.impact_texts import Level
from report.page import Environment, render
from report.plan import COMMAND, changes_in
from tests.fast.recorded_run import run
from tests.fast.report_plans import (
    HOSTS,
    REMOVED_WORKER,
    claim,
    environment,
    impact_texts_of,
    script,
    step,
    update,
    update_hidden,
    update_protection,
    update_proxies,
)
from tests.fast.sample_settings import raw_settings

RERUN_ON_NODE1 = "steps run again with unchanged settings on node1."
UNPROTECTED = "**master loses its protection: runs can delete or replace it again**."


def test_table_covers_every_step_and_only_known_values(tmp_path: Path) -> None:
    recorded = run(load(raw_settings(tmp_path), tmp_path))
    values: dict[str, set[str]] = {}
    for name, inputs in recorded.inputs.items():
        if "stdin" in inputs and "/" not in name:
            found = values_of(inputs["stdin"])
            assert found is not None
            known = step_of(inputs.get("create") or inputs["delete"])
            assert known is not None
            values.setdefault(known.name, set()).update(found)
    assert set(values) == set(impact_texts.STEPS) == set(STEPS)
    for name, texts in impact_texts.STEPS.items():
        assert {key.partition("=")[0] for key in texts} <= values[name], name


def test_new_scheduler_restarts_kube_proxy_one_by_one() -> None:
    assert impact_texts_of(*update_proxies()) == [
        "**kube-proxy restarts on 3 nodes, one by one**: master, node1, node2. "
        "The kernel keeps balancing meanwhile."
    ]
    assert impact_texts_of(*update_proxies(1))[0].startswith("**kube-proxy restarts on master**. ")


def test_lost_protection_is_listed_once_and_destroys_nothing() -> None:
    steps = [update_protection(f"master-{name}", True, False) for name in ("claim", "init")]
    assert impact_texts_of(*steps) == [UNPROTECTED]
    page = render([environment("prod", *steps)], approved=False)
    assert page.text == f"## prod: changes in place\n\n- {UNPROTECTED}\n"
    assert not page.is_destructive


def test_new_protection_is_listed() -> None:
    assert impact_texts_of(update_protection("master-init", False, True)) == [
        "master becomes protected: no run can delete or replace it."
    ]


def test_lost_protection_is_listed_besides_an_update() -> None:
    assert UNPROTECTED in impact_texts_of(update_protection("master-init", True, False, op="update"))


def test_removed_worker_is_drained_and_restored() -> None:
    [text] = impact_texts_of(*REMOVED_WORKER)
    assert text.startswith(
        "**node2 is drained, removed from the cluster and restored to its original state**. Its pods"
    )


def test_deleted_unknown_resource_is_a_loss() -> None:
    plan = {"steps": [step("logs", "delete", {}, None, "aws:s3:Bucket")]}
    assert [(impact.level, impact.text) for impact in impacts(changes_in(plan), HOSTS)] == [
        (Level.LOSS, "`logs` (aws:s3:Bucket): delete.")
    ]


@pytest.mark.parametrize(
    ("op", "words"), [("delete", "is deleted**"), ("replace", "is deleted and recreated**: `spec.x` 1 → 2")]
)
def test_lost_object_is_destructive(op: str, words: str) -> None:
    old, new = {"spec": {"x": 1}}, {"spec": {"x": 2}}
    name, kind = "Service/default/web", "kubernetes:core/v1:Service"
    found = environment("prod", step(name, op, old, None if op == "delete" else new, kind))
    assert found.is_destructive
    assert words in render([found], approved=False).text


@pytest.mark.parametrize(
    "steps",
    [
        [step("master-init", "replace", script(CONFIG="a"), script(CONFIG="b"))],
        [step("old-init", "delete", script()), step("new-init", "create", None, script())],
    ],
    ids=["replaced", "renamed"],
)
def test_new_init_replaces_the_cluster(steps: list[object]) -> None:
    assert impact_texts_of(*steps)[0].startswith(
        "**The cluster is replaced and every workload in it is lost**. This deletes all its objects"
    )


def test_changed_script_alone_is_a_rerun() -> None:
    old, new = script(FIREWALL="open"), script(FIREWALL="open")
    new["stdin"] = "# more\n" + new["stdin"]
    assert impact_texts_of(step("node1-preparation", "update", old, new)) == [RERUN_ON_NODE1]


def test_taints_that_evict_are_listed_besides_labels() -> None:
    before = {"NODES": "master - -\nnode1 - -\nnode2 rack=1 -", "SUBJECT": "a"}
    after = "master - -\nnode1 disk=ssd only=web:NoExecute\nnode2 - -"
    # A join registers its node with them.
    joins = [update_hidden("node1-join"), update_hidden("node2-join")]
    assert impact_texts_of(update("nodes", before, NODES=after, SUBJECT="a"), *joins) == [
        "Labels change on 2 nodes: node1, node2.",
        "Taints change on node1. A NoExecute taint evicts pods that don't tolerate it.",
    ]


def test_nodes_that_join_or_leave_have_no_new_labels() -> None:
    before = {"NODES": "master - -\nnode1 - -", "SUBJECT": "a"}
    assert impact_texts_of(update("nodes", before, NODES="master - -\nnode2 disk=ssd -", SUBJECT="b")) == []


def test_mirrors_restart_nothing_unless_containerd_restarts() -> None:
    both = update("node1-preparation", {}, MIRRORS="a b", SANDBOX_IMAGE="c", IMAGES="d")
    assert impact_texts_of(both) == [
        "**containerd restarts with a new sandbox image on node1**. Pods keep running.",
        "containerd uses different registry mirrors on node1.",
    ]
    mirrors = update("node1-preparation", {}, MIRRORS="a b", IMAGES="d")
    assert "Nothing restarts" in impact_texts_of(mirrors)[0]


def test_renewed_certificates_restart_the_control_plane() -> None:
    [text] = impact_texts_of(update("master-init", {"RENEW": ""}, RENEW="2027-11-30T10:00:00Z"))
    assert text == (
        "**Certificates that expire soon are renewed on master**. "
        "The control plane's components restart; pods keep running."
    )


def test_renewal_timer_is_one_line() -> None:
    before = {"RENEWAL_TIMER": "", "CERTIFICATE_DAYS": "30"}
    [text] = impact_texts_of(update("master-init", before, RENEWAL_TIMER="true", CERTIFICATE_DAYS="45"))
    assert text == "The timer that renews certificates is set up or removed on master."


def test_certificate_names_dont_hide_a_kubelet_restart() -> None:
    steps = [
        update("master-init", {}, CERT_SANS="api.test", KUBELET="maxPods: 60", CONFIG="both"),
        update_hidden("node1-join"),
    ]
    assert impact_texts_of(*steps) == [
        "**kubelet restarts with new settings on every node**. Pods keep running.",
        "The API server's certificate is reissued with different names on master.",
    ]
    assert "## prod: rolling restarts" in render([environment("prod", *steps)], approved=False).text


def test_new_proxy_mode_covers_its_settings() -> None:
    control_plane = update("master-init", {"MODE": "ipvs", "PROXY": "a"}, MODE="nftables", PROXY="b")
    [text] = impact_texts_of(control_plane)
    assert text.startswith("**kube-proxy switches from ipvs to nftables on master**. On each node")
    [text] = impact_texts_of(control_plane, update_hidden("node1-join"), update_hidden("node2-join"))
    assert text == (
        "**kube-proxy switches from ipvs to nftables on 3 nodes, one by one**: master, node1, node2. "
        "On each node, Services are unavailable until its kube-proxy has programmed them again."
    )


@pytest.mark.parametrize(
    ("given", "workers", "pace"),
    [
        (None, 2, "one by one"),
        (None, 19, "one by one"),
        (None, 30, "at most 3 at a time"),
        (5, 30, "at most 5 at a time"),
        ("50%", 30, "at most 15 at a time"),
    ],
)
def test_lanes_are_those_of_the_settings(given: str | int | None, workers: int, pace: str) -> None:
    hosts = [{"name": "master", "role": "control-plane"}]
    hosts += [{"name": f"node{number}", "role": "worker"} for number in range(1, workers + 1)]
    after: dict[str, Any] = {"hosts": hosts}
    if given is not None:
        after["proxy"] = {"maxUnavailable": given}
    text = render([environment("prod", *update_proxies(), after=after)], approved=False).text
    assert f"- **kube-proxy restarts on 3 nodes, {pace}**: master, node1, node2." in text


def test_settings_dont_matter_without_a_preview() -> None:
    failed = Environment("prod", None, errors="no", after={"proxy": {"maxUnavailable": "nonsense"}})
    assert not failed.is_destructive
    assert "no preview" in render([failed], approved=False).text


def test_repair_doesnt_hide_other_changes() -> None:
    assert impact_texts_of(
        update("master-init", {}, REPAIR="today", KUBELET="maxPods: 60"),
        update("master-preparation", {}, REPAIR="today", MIRRORS="a b"),
        update_hidden("master-verification"),
    ) == [
        "**kubelet restarts with new settings on every node**. Pods keep running.",
        "Every step runs again to repair drift on master. containerd restarts; pods keep running.",
        "containerd uses different registry mirrors on master.",
    ]


def test_removing_repair_from_the_settings_repairs_nothing() -> None:
    assert impact_texts_of(update("node1-preparation", {"REPAIR": "today"})) == [RERUN_ON_NODE1]


def test_changed_timeout_is_listed() -> None:
    old, new = ({**script(), "create": f"timeout {limit} bash"} for limit in (1, 2))
    found = environment("prod", step("node1-preparation", "update", old, new))
    assert "no changes" not in render([found], approved=True).text


@pytest.mark.parametrize("name", ["claim", "node", "deregister"])
def test_updated_deletion_is_no_impact(name: str) -> None:
    """Its text matters when its host leaves."""
    assert (
        impact_texts_of(update(f"node1-{name}", {"NODE": "a", "DRAIN_SECONDS": "1"}, DRAIN_SECONDS="2")) == []
    )


# Steps of earlier versions that are parts of others now, and the ones that continue them.
MERGED = ("kernel", "firewall", "packages", "proxy", "token", "admin", "kubeconfig")


def earlier(name: str, op: str = "delete", *, host: str = "node1", **values: str) -> Any:
    """A step of a stack that an earlier version of the program made."""
    command = {"create": f"timeout --kill-after=20 600 bash -s -- create {name} {host}"}
    inputs = {**script(**values), **command}
    return {
        "op": op,
        "urn": f"urn:pulumi:t::p::{COMMAND}::{host}-{name}",
        "oldState": {"type": COMMAND, "inputs": inputs},
    }


def test_upgrade_of_the_program_is_no_visible_effect() -> None:
    """Its merged steps leave the state without a command; the others run again."""
    removed = [earlier(name, host=host) for name in MERGED for host in HOSTS]
    removed.append(earlier("node", host="master", NODE="master"))
    prepared = step(
        "node1-preparation",
        "update",
        script(SANDBOX_IMAGE="a", MIRRORS="", IMAGES="b", OWNER="dev"),
        script(
            SANDBOX_IMAGE="a", MIRRORS="", IMAGES="b", OWNER="dev", MODE="ipvs", FIREWALL="open", VERSION="1"
        ),
    )
    prepared["oldState"]["inputs"]["create"] = "timeout 600 bash -s -- create runtime node1"
    initialized = step(
        "master-init",
        "update",
        script(CONFIG="a", KUBELET="b", PROXY="c", RENEWAL="text"),
        script(CONFIG="a", KUBELET="b", PROXY="c", RENEWAL_TIMER="true", MODE="ipvs", SCHEDULER="rr"),
    )
    claimed = step("node1-claim", "update", script(ADDRESS="a", MODE="ipvs"), claim("a"))
    node = step("node1-node", "update", script(NODE="node1", LABELS="a=b", TAINTS=""), script(NODE="node1"))
    nodes = step("nodes", "create", None, script(NODES="master - -\nnode1 a=b -"))
    found = environment(
        "prod", *removed, prepared, initialized, claimed, node, nodes, update_hidden("node1-join")
    )
    assert [(impact.level, impact.text) for impact in found.impacts] == [
        (Level.QUIET, "steps run again with unchanged settings on 2 nodes: master, node1."),
        (
            Level.QUIET,
            f"the state no longer lists {len(MERGED) * 3} steps of an earlier version, which are "
            "parts of other steps now",
        ),
    ]
    assert not found.is_destructive
    text = render([found], approved=False).text
    assert "## prod: no visible effect" in text
    assert not [name for name in MERGED if f"node1-{name}" in text]


def test_removed_components_of_earlier_versions_are_left_out() -> None:
    kinds = ("Worker", "Node", "ProxyMode")
    steps = [step(f"node1-{kind}", "delete", {}, None, f"kubeadm-ipvs:index:{kind}") for kind in kinds]
    found = environment("prod", *steps)
    assert found.impacts == []
    assert not found.is_destructive


def test_unknown_step_with_a_deletion_is_listed() -> None:
    unknown = earlier("mystery")
    unknown["oldState"]["inputs"]["delete"] = "timeout 600 bash -s -- delete mystery node1"
    assert [(impact.level, impact.text) for impact in environment("prod", unknown).impacts] == [
        (Level.LOSS, "`node1-mystery` (command:remote:Command): delete.")
    ]


def test_secret_objects_show_only_paths() -> None:
    old, new = {"stringData": {"key": "hush"}}, {"stringData": {"key": "hushhush"}}
    secret = step("Secret/a/b", "update", old, new, "kubernetes:core/v1:Secret")
    text = render([environment("p", secret)], approved=True).text
    assert "stringData.key" in text
    assert "hush" not in text
