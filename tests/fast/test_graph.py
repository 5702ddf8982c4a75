"""The resource graph of the program: dependencies, options, inputs and names."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from components.changes import identity
from model.settings import Settings
from model.settings_file import load
from model.steps import STEPS, values_of
from report.plan import STASH
from tests.fast import graph
from tests.fast.recorded_run import TOKEN, commands, run, steps_of
from tests.fast.sample_settings import HOST_KEY, raw_settings

HOSTS = ("master", "node1", "node2")
WORKERS = ("node1", "node2")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(raw_settings(tmp_path), tmp_path)


@pytest.fixture
def recorded(settings: Settings) -> graph.Recorder:
    return run(settings)


def test_recorded_run_leaves_no_thread_behind(settings: Settings) -> None:
    run(settings)  # gRPC keeps one thread for the whole process
    before = threading.active_count()
    run(settings)
    assert threading.active_count() <= before, threading.enumerate()


def test_hosts_are_prepared_independently(recorded: graph.Recorder) -> None:
    for host in HOSTS:
        steps = {f"{host}-{step}" for step in ("claim", "kernel", "firewall", "packages")}
        deregister = set() if host == "master" else {f"{host}-deregister"}
        assert recorded.before(f"{host}-runtime") == steps | deregister


def test_steps_that_change_hosts_know_their_owner(recorded: graph.Recorder) -> None:
    owners = {
        name: re.findall(r"^OWNER=(.*)$", inputs["stdin"], re.MULTILINE)
        for name, inputs in recorded.inputs.items()
        if "stdin" in inputs
    }
    owned = {name for name, found in owners.items() if found}
    # The stack's name isn't enough: stacks in other backends may have the same one.
    chosen = recorded.inputs["owner"]["input"]
    assert re.fullmatch(rf"{graph.STACK} [0-9a-f]{{8}}", chosen)
    assert list(recorded.requests["owner"].ignoreChanges) == ["input"]
    assert {owner for found in owners.values() for owner in found} == {f"'{graph.OWNER}'"}
    assert owned == {name for name in owners if steps_of(recorded)[name].owned}
    assert {name for name, inputs in recorded.inputs.items() if inputs.get("delete")} <= owned


def test_removing_a_worker_may_outlast_its_drain(settings: Settings) -> None:
    slow = settings.model_copy(
        update={"step_timeouts": settings.step_timeouts.model_copy(update={"drain": 7200})}
    )
    recorded = run(slow)
    limit = re.search(r"timeout \S+ (\d+) ", recorded.inputs["node1-node"]["delete"])
    assert limit is not None
    assert int(limit[1]) > 7200


def test_worker_is_deregistered_after_its_reset(recorded: graph.Recorder) -> None:
    """Deletion is in reverse order, and a host that isn't reset yet could register its node again."""
    for host in WORKERS:
        deregister = recorded.requests[f"{host}-deregister"]
        assert f"{host}-deregister" in recorded.before(f"{host}-claim")
        assert recorded.before(f"{host}-deregister") == set()
        assert recorded.names([deregister.deletedWith]) == {"NodeList node-list"}
        assert recorded.inputs[f"{host}-deregister"]["delete"].endswith("delete deregister master")
    # If the control plane's steps depended on it, their deletion would wait for every worker, even dead ones.
    assert not [n for n in recorded.before("master-init") if n.endswith("-deregister")]


def test_desired_changes_are_recorded_before_their_step(recorded: graph.Recorder) -> None:
    steps, changing = steps_of(recorded), set()
    for name, command in commands(recorded).items():
        desired = f"{name}-desired" in recorded.names(command.dependencies)
        assert desired == steps[name].changes, name
        if desired:
            changing.add(steps[name].name)
            # Nothing is recorded for a step that is never reached.
            waits = recorded.before(f"{name}-desired")
            assert waits == recorded.before(name) - {name}
    assert changing == {step.name for step in STEPS.values() if step.changes}


def test_init_waits_only_for_its_own_host(recorded: graph.Recorder) -> None:
    assert {name.partition("-")[0] for name in recorded.before("master-init")} == {"master"}


def test_join_waits_for_its_host_and_init(recorded: graph.Recorder) -> None:
    waits = recorded.before("node1-join")
    assert {"node1-runtime", "master-init", "node1-token", "master-admin"} <= waits
    assert not [name for name in waits if name.startswith("node2")]
    assert not [name for name in waits if "flannel" in name or "nginx" in name]


def test_flannel_waits_for_no_worker(recorded: graph.Recorder) -> None:
    waits = recorded.before("DaemonSet/kube-flannel/flannel")
    assert "Namespace/kube-flannel" in waits
    assert not [name for name in waits if name.startswith("node")]


def test_every_verification_comes_last(recorded: graph.Recorder) -> None:
    for host in HOSTS:
        waits = recorded.before(f"{host}-verification")
        assert {"expected-services", "Deployment/default/nginx", "node1-node", "node2-node"} <= waits


def test_verification_repeats_until_it_succeeds(tmp_path: Path, settings: Settings) -> None:
    verified: list[str] = []

    def expected(settings: Settings, last: str | None) -> str:
        recorded = run(settings, verified=last, use=lambda cluster: cluster.verified.apply(verified.append))
        return str(recorded.inputs["expected-services"]["stdin"])

    failed, succeeded = expected(settings, None), expected(settings, None)
    assert succeeded != failed
    assert expected(settings, verified[1]) == succeeded
    assert verified[2] == verified[1]
    repaired = raw_settings(tmp_path)
    repaired["hosts"][1]["repair"] = "1"
    assert expected(load(repaired, tmp_path), verified[1]) != succeeded
    assert verified[3] != verified[1]


def test_commands_are_deleted_before_they_are_replaced(recorded: graph.Recorder) -> None:
    for name, request in commands(recorded).items():
        assert request.deleteBeforeReplace, name


def test_steps_on_a_host_are_deleted_with_its_claim(recorded: graph.Recorder) -> None:
    for host, steps in {
        "master": ["kernel", "firewall", "packages", "runtime", "init"],
        "node1": ["kernel", "firewall", "packages", "runtime", "join"],
    }.items():
        for step in steps:
            request = recorded.requests[f"{host}-{step}"]
            assert recorded.names([request.deletedWith]) == {f"{host}-claim"}, step
            assert f"{host}-claim" in recorded.names(request.replace_with), step


def test_objects_are_deleted_and_replaced_with_the_cluster(recorded: graph.Recorder) -> None:
    objects = {n: r for n, r in recorded.requests.items() if r.type.startswith("kubernetes:")}
    assert {
        "Deployment/default/nginx",
        "Service/default/nginx-nodeport",
        "ConfigMap/kube-flannel/flannel",
    } <= set(objects)
    for name, request in objects.items():
        assert recorded.names([request.deletedWith]) == {"master-admin"}, name
        assert recorded.names(request.replace_with) == {"master-init"}, name
        assert request.replacement_trigger.string_value == "master", name


def test_only_identity_settings_create_a_new_cluster(tmp_path: Path, settings: Settings) -> None:
    same = load(
        raw_settings(
            tmp_path,
            proxy={"scheduler": "wrr"},
            runtime={"mirrors": {"docker.io": ["http://mirror:5000"]}},
            nginx={"replicas": 3},
            cluster={"certSANs": ["k8s.example.com"]},
            stepTimeouts={"init": 4000},
        ),
        tmp_path,
    )
    assert identity(same) == identity(settings)
    other = load(raw_settings(tmp_path, network={"podSubnet": "10.200.0.0/16"}), tmp_path)
    assert identity(other) != identity(settings)


@pytest.mark.parametrize(("period", "pause"), [("0s", 15), ("1s", 16), ("4500ms", 20)])
def test_nginx_outlasts_kube_proxys_pause(tmp_path: Path, period: str, pause: int) -> None:
    raw = raw_settings(tmp_path, proxy={"minSyncPeriod": period})
    deployment = run(load(raw, tmp_path)).inputs["Deployment/default/nginx"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == pause


def test_mirrors_reach_the_hosts_with_their_options(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    mirrors = [{"url": "https://a/v2/b", "overridePath": True, "ca": "ca.crt"}, "https://c"]
    settings = load(raw_settings(tmp_path, runtime={"mirrors": {"docker.io": mirrors}}), tmp_path)
    values = values_of(run(settings).inputs["node1-runtime"]["stdin"])
    ca = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"
    assert values and values["MIRRORS"] == f"docker.io https://a/v2/b#override_path#ca={ca} https://c"


def test_new_worker_leaves_other_hosts_unchanged(tmp_path: Path, recorded: graph.Recorder) -> None:
    raw = raw_settings(tmp_path)
    raw["hosts"].append(
        {"name": "node3", "role": "worker", "address": "192.168.166.104", "ssh": {"hostKey": HOST_KEY}}
    )
    more = run(load(raw, tmp_path))
    # Each verification uses every host's NodePort, including the new host's, so all of them run again.
    again = {"expected-services", "master-verification", "node1-verification", "node2-verification"}
    # Each host's firewall lets in the cluster's hosts only.
    again |= {"master-firewall", "node1-firewall", "node2-firewall"}
    for name in commands(recorded):
        assert (more.inputs[name] != recorded.inputs[name]) == (name in again), name
    for name in recorded.inputs:
        if name.startswith(("DaemonSet", "Deployment", "Service", "ConfigMap")):
            assert more.inputs[name] == recorded.inputs[name], name


def test_dead_worker_comes_last(settings: Settings, recorded: graph.Recorder) -> None:
    dead = run(settings, dead=frozenset({"node1"}))
    assert set(dead.requests) == set(recorded.requests)
    order = [name for name in dead.requests if dead.requests[name].type != STASH]
    last = [name for name in order if name.startswith("node1-")]
    on_control_plane = {"node1-deregister", "node1-token"}
    ended = max(order.index(f"{host}-verification") for host in ("master", "node2"))
    assert {name for name in last if order.index(name) < ended} == on_control_plane
    for name in dead.requests:
        if "node1" not in name:
            waits = {other for other in dead.before(name) if other.startswith("node1")}
            assert waits <= {"node1-deregister"}, name
    # A destroy must not wait for the dead host either.
    assert not [name for name in dead.before("node1-claim") if name.startswith("node2")]


def test_dead_worker_is_left_out_of_rollouts(settings: Settings) -> None:
    def objects(dead: frozenset[str]) -> tuple[Any, Any]:
        inputs = run(settings, dead=dead).inputs
        flannel = inputs["DaemonSet/kube-flannel/flannel"]
        rollout = flannel["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"]
        skipped = flannel["metadata"]["annotations"].get("pulumi.com/skipAwait")
        [spread] = inputs["Deployment/default/nginx"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
        return (rollout, skipped), spread["minDomains"]

    assert objects(frozenset()) == ((1, None), 2)
    assert objects(frozenset({"node1"})) == ((2, "true"), 1)
    assert objects(frozenset(WORKERS)) == ((3, "true"), 1)


def test_dead_workers_steps_check_its_access_first(settings: Settings) -> None:
    """Otherwise the control plane would wait for the dead host's node for a quarter of an hour."""
    hooks = run(settings, dead=frozenset({"node1"})).requests["node1-node"].hooks
    assert list(hooks.before_update) == ["master-ssh-access", "node1-ssh-access"]


def test_dead_workers_verification_always_runs(settings: Settings, recorded: graph.Recorder) -> None:
    first, second = (run(settings, dead=frozenset({"node1"})) for _ in range(2))
    for name in ("node1-verification", "node2-verification"):
        triggers = [run.inputs[name]["triggers"] for run in (recorded, first, second)]
        assert len({tuple(trigger) for trigger in triggers}) == (3 if name.startswith("node1") else 1)


def test_steps_with_secrets_log_nothing(recorded: graph.Recorder) -> None:
    for name in (
        "master-admin",
        "master-kubeconfig",
        "node1-token",
        "node2-token",
        "node1-join",
        "node2-join",
    ):
        request = recorded.requests[name]
        assert {"stdin", "stdout", "stderr"} <= set(request.additionalSecretOutputs), name
        assert recorded.inputs[name]["logging"] == "none", name
        assert recorded.plain[name]["stdin"] == "[secret]", name


def test_no_plain_input_contains_a_secret(recorded: graph.Recorder) -> None:
    for name in recorded.requests:
        plain = json.dumps(recorded.plain[name])
        for secret in (TOKEN, TOKEN.partition(".")[2], "private-login-key", "c2VjcmV0LWtleQ"):
            assert secret not in plain, f"{secret} in {name}"


def test_connections_pin_the_host_key_and_time_out(recorded: graph.Recorder) -> None:
    for name in commands(recorded):
        connection = recorded.inputs[name]["connection"]
        assert connection["hostKey"] == HOST_KEY, name
        assert 0 <= connection["dialErrorLimit"] <= 100, name
        assert 0 < connection["perDialTimeout"] <= 60, name


def test_provider_keeps_its_cluster_identifier(recorded: graph.Recorder) -> None:
    provider = recorded.inputs["test"]
    assert re.fullmatch("test [0-9a-f]{8}", provider["clusterIdentifier"]), "the stack's own identifier"
    assert recorded.requests["test"].ignoreChanges == ["clusterIdentifier"]
    assert provider["deleteUnreachable"] in (True, "true")


def test_objects_of_an_interrupted_run_are_adopted(recorded: graph.Recorder) -> None:
    assert recorded.inputs["test"]["upsertExistingObjects"] in (True, "true")


def test_token_exists_only_during_its_join(recorded: graph.Recorder) -> None:
    hooks = recorded.requests["node1-join"].hooks
    # An update also joins the node if it was reset by hand.
    for before, after in [
        (hooks.before_create, hooks.after_create),
        (hooks.before_update, hooks.after_update),
    ]:
        assert list(before) == ["node1-ssh-access", "node1-create-token"]
        assert list(after) == ["node1-revoke-token"]


def test_every_step_waits_for_ssh_access(recorded: graph.Recorder) -> None:
    """Any of a host's steps can be the first to run: if only settings changed, its claim is unchanged."""
    steps = {name: r for name, r in recorded.requests.items() if r.type == "command:remote:Command"}
    for name, request in steps.items():
        host = request.object["create"].split()[-1]
        for hooks in (request.hooks.before_create, request.hooks.before_update):
            assert hooks[0] == f"{host}-ssh-access", name
        # A clock that differs must not stop the repair of a node.
        assert (f"{host}-clock" in request.hooks.before_create) == name.endswith("-claim"), name
        assert f"{host}-clock" not in request.hooks.before_update, name
    assert len(steps) > 3 * 8


def test_kube_proxy_changes_host_by_host(recorded: graph.Recorder) -> None:
    assert not {"node1-proxy", "node2-proxy"} & recorded.before("master-proxy")
    assert "master-proxy" in recorded.before("node1-proxy")
    assert "node1-proxy" in recorded.before("node2-proxy")
    for host in HOSTS:
        assert {"master-proxy", "node1-proxy", "node2-proxy"} <= recorded.before(f"{host}-verification")


@pytest.mark.parametrize(
    "proxy",
    [{"mode": "nftables"}, {"mode": "iptables"}, {"scheduler": "lc"}],
    ids=lambda p: "-".join(p.values()),
)
def test_new_proxy_mode_updates_every_host(
    tmp_path: Path, recorded: graph.Recorder, proxy: dict[str, str]
) -> None:
    changed = run(load(raw_settings(tmp_path, proxy=proxy), tmp_path))
    for name in commands(recorded):
        assert changed.inputs[name].get("triggers") == recorded.inputs[name].get("triggers"), name
    for host in HOSTS:
        for step in ("kernel", "proxy"):
            assert changed.inputs[f"{host}-{step}"]["stdin"] != recorded.inputs[f"{host}-{step}"]["stdin"]
    assert changed.inputs["master-init"]["stdin"] != recorded.inputs["master-init"]["stdin"]


def test_replaced_worker_is_drained_first(recorded: graph.Recorder) -> None:
    assert recorded.inputs["node1-node"]["triggers"] == ["master-init-id", "node1-join-id"]
    assert "delete" in recorded.inputs["node1-node"]
    assert "delete" not in recorded.inputs["master-node"]


def test_production_protects_only_the_control_plane(tmp_path: Path) -> None:
    protected = run(load(raw_settings(tmp_path, production=True), tmp_path))
    assert {name for name, request in protected.requests.items() if request.protect} == {
        "master-claim",
        "master-init",
    }


def test_cluster_records_its_identity(recorded: graph.Recorder) -> None:
    inputs = recorded.inputs["Cluster test"]
    assert inputs["kubernetesVersion"] == "1.37.2"
    assert inputs["network.podSubnet"] == "10.244.0.0/16"
    assert list(recorded.requests["Cluster test"].hooks.before_update) == ["changes"]


def test_resource_names_are_stable(recorded: graph.Recorder) -> None:
    steps = ("claim", "kernel", "firewall", "packages", "runtime", "node", "proxy", "verification")
    assert set(commands(recorded)) == {
        *(f"{host}-{step}" for host in HOSTS for step in steps),
        *(f"{host}-{step}" for host in WORKERS for step in ("deregister", "token", "join")),
        "master-init",
        "master-admin",
        "master-kubeconfig",
        "expected-services",
    }
