"""The resource graph of the program: dependencies, options, inputs and names."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.changes import identity
from components.previous_outputs import PreviousOutputs
from model import kubeadm
from model.settings import Settings
from model.settings_file import load
from model.steps import STEPS, host_of, values_of
from report.plan import STASH
from tests.fast import graph
from tests.fast.recorded_run import (
    commands,
    framed,
    kubeconfig,
    outputs,
    run,
    services_and_slices,
    steps_of,
)
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
        deregister = set() if host == "master" else {f"{host}-deregister"}
        assert recorded.before(f"{host}-preparation") == {f"{host}-claim"} | deregister


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
    assert {"node1-preparation", "master-init"} <= waits
    assert not [name for name in waits if name.startswith("node2")]
    assert not [name for name in waits if "flannel" in name or "nginx" in name]


def test_nodes_wait_for_every_join_and_the_network(recorded: graph.Recorder) -> None:
    """No node becomes Ready without the network."""
    waits = recorded.before("nodes")
    assert {"master-init", "node1-join", "node2-join", "DaemonSet/kube-flannel/flannel"} <= waits
    assert "nodes" in recorded.before("Deployment/default/nginx")
    assert recorded.names([recorded.requests["nodes"].deletedWith]) == {"master-init"}
    values = values_of(recorded.inputs["nodes"]["stdin"])
    taint = "node-role.kubernetes.io/control-plane:NoSchedule"
    assert values and values["NODES"] == f"master - {taint}\nnode1 - -\nnode2 - -"


def test_labels_and_taints_reach_their_nodes(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path)
    raw["hosts"][1]["labels"] = {"disk": "ssd", "a.example/rack": "7"}
    raw["hosts"][2]["taints"] = ["only=web:NoExecute"]
    values = values_of(run(load(raw, tmp_path)).inputs["nodes"]["stdin"])
    assert values and values["NODES"].splitlines()[1:] == [
        "node1 a.example/rack=7,disk=ssd -",
        "node2 - only=web:NoExecute",
    ]


def test_flannel_waits_for_no_worker(recorded: graph.Recorder) -> None:
    waits = recorded.before("DaemonSet/kube-flannel/flannel")
    assert "Namespace/kube-flannel" in waits
    assert not [name for name in waits if name.startswith("node")]


def test_every_verification_comes_last(recorded: graph.Recorder) -> None:
    for host in HOSTS:
        waits = recorded.before(f"{host}-verification")
        assert {"expected-services", "Deployment/default/nginx", "nodes"} <= waits


def test_verification_repeats_until_it_succeeds(settings: Settings) -> None:
    verified: list[str] = []

    def expected(last: str | None) -> str:
        previous = PreviousOutputs(verified=last)
        recorded = run(settings, previous=previous, use=lambda c: c.verified.apply(verified.append))
        return str(recorded.inputs["expected-services"]["stdin"])

    failed, succeeded = expected(None), expected(None)
    assert succeeded != failed
    assert expected(verified[1]) == succeeded
    assert verified[2] == verified[1]


def verified_run(settings: Settings, verified: str, **more: Any) -> graph.Recorder:
    """A run after one whose verification succeeded."""
    return run(settings, previous=PreviousOutputs(verified=verified), **more)


@pytest.fixture
def verified(settings: Settings) -> str:
    """The output of a run whose verification succeeded."""
    found: list[str] = []
    run(settings, use=lambda cluster: cluster.verified.apply(found.append))
    return found[0]


def test_repaired_host_alone_is_verified_again(tmp_path: Path, settings: Settings, verified: str) -> None:
    before = verified_run(settings, verified)
    raw = raw_settings(tmp_path)
    raw["hosts"][1]["repair"] = "1"
    after = verified_run(load(raw, tmp_path), verified)
    assert {name for name in commands(before) if before.inputs[name] != after.inputs[name]} == {
        *(f"node1-{step}" for step in ("preparation", "join", "verification")),
        # The services at that time, and whether the node is still Ready.
        "expected-services",
        "nodes",
    }


def test_preview_takes_the_services_from_the_state(settings: Settings, verified: str) -> None:
    """Otherwise it would show every host as verified again, whenever the services are read again."""
    text = services_and_slices().replace("10.96.7.7", "10.96.9.9")
    kept = base64.b64encode(zlib.compress(text.encode())).decode()

    def found(previous: str | None, preview: bool) -> set[str]:
        def answer(name: str) -> dict[str, Any]:
            # The state's value, as the engine returns it for an input that it ignores.
            return {"input": kept} if name == "verified-services" and preview else outputs(name)

        recorded = run(settings, preview, previous=PreviousOutputs(verified=previous), outputs_of=answer)
        ignored = list(recorded.requests["verified-services"].ignoreChanges)
        assert ignored == (["input"] if preview else [])
        texts = [recorded.inputs[f"{host}-verification"]["stdin"] for host in HOSTS]
        return {address for address in ("10.96.7.7", "10.96.9.9") for text in texts if address in text}

    assert found(verified, preview=True) == {"10.96.9.9"}
    # Something else is verified now, and a run reads the services itself.
    assert found("another attempt", preview=True) == {"10.96.7.7"}
    assert found(verified, preview=False) == {"10.96.7.7"}


def test_commands_are_deleted_before_they_are_replaced(recorded: graph.Recorder) -> None:
    for name, request in commands(recorded).items():
        assert request.deleteBeforeReplace, name


def test_steps_on_a_host_are_deleted_with_its_claim(recorded: graph.Recorder) -> None:
    for host, steps in {
        "master": ["preparation", "init"],
        "node1": ["preparation", "join"],
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
        assert recorded.names([request.deletedWith]) == {"cluster-identity"}, name
        assert recorded.names(request.replace_with) == {"master-init"}, name
        assert request.replacement_trigger.string_value == "master", name


def test_identity_changes_with_init_only(recorded: graph.Recorder) -> None:
    """If it were replaced alone, nothing would be deleted with it any more."""
    identity = recorded.requests["cluster-identity"]
    assert recorded.inputs["cluster-identity"] == {"input": "master-init-id"}
    assert recorded.names([identity.deletedWith]) == {"master-init"}
    assert recorded.names(identity.replace_with) == {"master-init"}
    assert list(identity.replaceOnChanges) == ["input"]
    for worker in WORKERS:
        node = recorded.requests[f"{worker}-node"]
        assert recorded.names([node.deletedWith]) == {"cluster-identity"}


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
    values = values_of(run(settings).inputs["node1-preparation"]["stdin"])
    ca = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"
    assert values and values["MIRRORS"] == f"docker.io https://a/v2/b#override_path#ca={ca} https://c"


def add_workers(raw: dict[str, Any], count: int) -> dict[str, Any]:
    """Add workers after the three hosts."""
    for number in range(3, 3 + count):
        address = f"192.168.166.{101 + number}"
        raw["hosts"].append(
            {"name": f"node{number}", "role": "worker", "address": address, "ssh": {"hostKey": HOST_KEY}}
        )
    return raw


@pytest.mark.parametrize("workers", [2, 12])
def test_new_worker_leaves_other_hosts_unchanged(tmp_path: Path, workers: int) -> None:
    found: list[str] = []
    few = load(add_workers(raw_settings(tmp_path), workers - 2), tmp_path)
    run(few, use=lambda cluster: cluster.verified.apply(found.append))
    hosts = [host.name for host in few.hosts]
    previous = PreviousOutputs(verified=found[0], members=frozenset(hosts))
    before = run(few, previous=previous)
    after = run(load(add_workers(raw_settings(tmp_path), workers - 1), tmp_path), previous=previous)
    again = {"nodes", "expected-services"}
    # Each host's firewall lets in the cluster's hosts only.
    again |= {f"{host}-preparation" for host in hosts}
    # Each host requests the NodePorts of its peers; with few hosts, these are all others.
    again |= {f"{host}-verification" for host in (hosts if workers == 2 else ["master"])}
    for name in commands(before):
        assert (after.inputs[name] != before.inputs[name]) == (name in again), name
    for name in before.inputs:
        if name.startswith(("DaemonSet", "Deployment", "Service", "ConfigMap")):
            assert after.inputs[name] == before.inputs[name], name
    assert after.inputs["verified-services"] == before.inputs["verified-services"]


def test_dead_worker_comes_last(settings: Settings, recorded: graph.Recorder) -> None:
    dead = run(settings, dead=frozenset({"node1"}))
    assert set(dead.requests) == set(recorded.requests)
    order = [name for name in dead.requests if dead.requests[name].type != STASH]
    last = [name for name in order if name.startswith("node1-")]
    on_control_plane = {"node1-deregister"}
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

    # A percentage, which a new host doesn't change.
    assert objects(frozenset()) == (("10%", None), 2)
    assert objects(frozenset({"node1"})) == ((2, "true"), 1)
    assert objects(frozenset(WORKERS)) == ((3, "true"), 1)


def test_dead_workers_node_isnt_waited_for(settings: Settings) -> None:
    """Otherwise the control plane would wait for it for a quarter of an hour."""
    recorded = run(settings, dead=frozenset({"node1"}))
    values = values_of(recorded.inputs["nodes"]["stdin"])
    assert values and [line.split()[0] for line in values["NODES"].splitlines()] == ["master", "node2"]
    assert not [name for name in recorded.before("nodes") if name.startswith("node1")]


def test_dead_workers_steps_run_after_every_verification(settings: Settings) -> None:
    """They wait for its login, which is known only then."""
    ended: list[str] = []

    def answer(name: str) -> dict[str, Any]:
        ended.append(name)
        return outputs(name)

    run(settings, dead=frozenset({"node1"}), outputs_of=answer)
    for name in ("node1-login", "node1-claim", "node1-preparation", "node1-join"):
        assert ended.index(name) > max(ended.index(f"{host}-verification") for host in ("master", "node2"))


def test_dead_workers_verification_always_runs(settings: Settings, recorded: graph.Recorder) -> None:
    first, second = (run(settings, dead=frozenset({"node1"})) for _ in range(2))
    for name in ("node1-verification", "node2-verification"):
        triggers = [run.inputs[name]["triggers"] for run in (recorded, first, second)]
        assert len({tuple(trigger) for trigger in triggers}) == (3 if name.startswith("node1") else 1)


def test_secrets_are_encrypted_in_the_state(recorded: graph.Recorder) -> None:
    for name in ("node1-join", "node2-join"):
        assert {"stdin", "stdout", "stderr"} <= set(recorded.requests[name].additionalSecretOutputs), name
        assert recorded.plain[name]["stdin"] == "[secret]", name
    # Its results end with the kubeconfig; its values are shown in previews.
    assert "stdout" in recorded.requests["master-init"].additionalSecretOutputs
    assert "\nCONFIG=" in recorded.plain["master-init"]["stdin"]
    assert recorded.plain["join-tokens"] == {"input": "[secret]"}
    assert recorded.plain["test"]["kubeconfig"] == "[secret]"


def test_steps_report_progress_but_no_results(recorded: graph.Recorder) -> None:
    """Results may be secret; what steps report isn't (`redact` in scripts/lib/step.sh)."""
    assert {recorded.inputs[name]["logging"] for name in commands(recorded)} == {"stderr"}


def test_no_plain_input_contains_a_secret(recorded: graph.Recorder) -> None:
    tokens = [kubeadm.join_token(graph.TOKEN_KEY, worker) for worker in WORKERS]
    for token, worker in zip(tokens, WORKERS, strict=True):
        assert token in recorded.inputs[f"{worker}-join"]["stdin"]
    chosen = recorded.inputs["join-tokens"]["input"]
    assert re.fullmatch("[0-9a-f]{64}", chosen)
    halves = [token.partition(".")[2] for token in tokens]
    for name in recorded.requests:
        plain = json.dumps(recorded.plain[name])
        for secret in (*halves, chosen, graph.TOKEN_KEY, "private-login-key", "c2VjcmV0LWtleQ"):
            assert secret not in plain, f"{secret} in {name}"


def test_join_tokens_stay_the_same(settings: Settings, recorded: graph.Recorder) -> None:
    """A join whose token changed would run again in every run."""
    assert list(recorded.requests["join-tokens"].ignoreChanges) == ["input"]
    again = run(settings)
    assert again.inputs["join-tokens"] != recorded.inputs["join-tokens"], "only the first is kept"
    assert again.inputs["node1-join"] == recorded.inputs["node1-join"]


def other_kubeconfig() -> str:
    """A kubeconfig of the same cluster, with another key."""
    return kubeconfig().replace("c2VjcmV0LWtleQ==", "b3RoZXIta2V5")


@pytest.mark.parametrize(
    ("preview", "previous", "used"),
    [
        # A preview that changes `init` doesn't know its results.
        (True, other_kubeconfig(), "b3RoZXIta2V5"),
        (True, None, "c2VjcmV0LWtleQ=="),
        (False, other_kubeconfig(), "c2VjcmV0LWtleQ=="),
        (False, None, "c2VjcmV0LWtleQ=="),
    ],
)
def test_preview_uses_the_kubeconfig_of_the_last_run(
    settings: Settings, preview: bool, previous: str | None, used: str
) -> None:
    recorded = run(settings, preview, previous=PreviousOutputs(kubeconfig=previous))
    given = yaml.safe_load(recorded.inputs["test"]["kubeconfig"])
    assert given["users"][0]["user"]["client-key-data"] == used
    assert given["clusters"][0]["cluster"]["server"] == "https://192.168.166.101:6443"


def test_kubeconfig_survives_a_run_without_init(settings: Settings) -> None:
    """`--target` may leave out `init`, whose results in the state are those of an earlier version."""

    def answer(name: str) -> dict[str, Any]:
        if name.endswith("-init"):
            return {"stdout": framed("certificates expire 2027-11-30T10:00:00Z\n")}
        return outputs(name)

    recorded = run(settings, previous=PreviousOutputs(kubeconfig=other_kubeconfig()), outputs_of=answer)
    assert "b3RoZXIta2V5" in recorded.inputs["test"]["kubeconfig"]


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
        inputs = recorded.inputs[name]
        host = host_of(inputs.get("create") or inputs["delete"])
        for hooks in (request.hooks.before_create, request.hooks.before_update):
            assert hooks[0] == f"{host}-ssh-access", name
        # A clock that differs must not stop the repair of a node.
        assert (f"{host}-clock" in request.hooks.before_create) == name.endswith("-claim"), name
        assert f"{host}-clock" not in request.hooks.before_update, name
    assert len(steps) == 3 * 3 + 2 * 3 + 3


class Joins:
    """Answers for a run that keep each join busy for a while.

    Attributes:
        began: The workers' names, in the order in which they began to join.
        most: How many joins ran at the same time at most.
    """

    def __init__(self, failing: str = "") -> None:
        self._failing = failing
        self._running = 0
        self._lock = threading.Lock()
        self.began: list[str] = []
        self.most = 0

    def answer(self, name: str) -> dict[str, Any]:
        if not name.endswith("-join"):
            return outputs(name)
        with self._lock:
            self.began.append(name.removesuffix("-join"))
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(0.2)
        with self._lock:
            self._running -= 1
        if name == f"{self._failing}-join":
            raise RuntimeError("the join failed")
        return outputs(name)


def lanes(tmp_path: Path, joins: Joins, share: str, members: set[str]) -> graph.Recorder:
    """Run with six workers, some of which are in the cluster already."""
    raw = add_workers(raw_settings(tmp_path, proxy={"maxUnavailable": share}), 4)
    previous = PreviousOutputs(members=frozenset(members))
    return run(load(raw, tmp_path), previous=previous, outputs_of=joins.answer)


SIX = [f"node{number}" for number in range(1, 7)]


@pytest.mark.parametrize(("share", "most"), [("10%", 1), ("1", 1), ("2", 2), ("50%", 3)])
def test_existing_nodes_change_in_lanes(tmp_path: Path, share: str, most: int) -> None:
    joins = Joins()
    recorded = lanes(tmp_path, joins, share, {"master", *SIX})
    assert joins.most == most
    assert sorted(joins.began) == SIX
    if most == 1:
        assert joins.began == SIX
    # Dependencies would order the removal of hosts too.
    for name in SIX:
        others = {other for other in recorded.before(f"{name}-join") if other.startswith("node")}
        assert others == {f"{name}-{step}" for step in ("claim", "deregister", "preparation")}


def test_new_hosts_join_in_parallel(tmp_path: Path) -> None:
    joins = Joins()
    lanes(tmp_path, joins, "1", set())
    # With few cores, the recorder runs fewer operations at a time.
    assert joins.most > 2


def test_new_hosts_dont_wait_for_existing_ones(tmp_path: Path) -> None:
    joins = Joins()
    lanes(tmp_path, joins, "1", {"master", "node1", "node2", "node3"})
    assert set(joins.began[:4]) == {"node1", "node4", "node5", "node6"}
    assert [name for name in joins.began if name in SIX[:3]] == SIX[:3]


def test_lane_ends_at_its_first_failure(tmp_path: Path) -> None:
    joins = Joins(failing="node2")
    with pytest.raises(Exception, match="the join failed"):
        lanes(tmp_path, joins, "1", {"master", *SIX})
    assert joins.began == ["node1", "node2"]


def test_other_lanes_continue_after_a_failure(tmp_path: Path) -> None:
    joins = Joins(failing="node1")
    with pytest.raises(Exception, match="the join failed"):
        lanes(tmp_path, joins, "2", {"master", *SIX})
    assert set(joins.began) <= {"node1", "node2", "node4", "node6"}


def test_control_plane_changes_before_every_worker(recorded: graph.Recorder) -> None:
    for host in WORKERS:
        assert "master-init" in recorded.before(f"{host}-join")
    for host in HOSTS:
        assert {"master-init", "node1-join", "node2-join"} <= recorded.before(f"{host}-verification")


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
    names = [f"{host}-preparation" for host in HOSTS] + ["master-init", "node1-join", "node2-join"]
    for name in names:
        assert changed.inputs[name]["stdin"] != recorded.inputs[name]["stdin"], name


def test_replaced_worker_is_drained_first(recorded: graph.Recorder) -> None:
    assert recorded.inputs["node1-node"]["triggers"] == ["master-init-id", "node1-join-id"]
    assert "delete" in recorded.inputs["node1-node"]
    assert "master-node" not in recorded.inputs


def test_resources_that_are_only_deleted_need_no_login(recorded: graph.Recorder) -> None:
    """The provider doesn't connect for a create or update without a command."""
    for name, step in steps_of(recorded).items():
        assert ("create" in recorded.inputs[name]) == (step.limit is not None), name
        assert ("update" in recorded.inputs[name]) == (step.limit is not None), name
        assert ("delete" in recorded.inputs[name]) == (step.delete_limit is not None), name


def test_claim_is_in_the_state_before_its_host_changes(recorded: graph.Recorder) -> None:
    """Whatever fails on the host, its deletion restores it."""
    for host in HOSTS:
        assert recorded.inputs[f"{host}-claim"].keys() >= {"delete"}
        for name in commands(recorded):
            if name.startswith(f"{host}-") and not name.endswith(("-claim", "-deregister")):
                assert f"{host}-claim" in recorded.before(name), name


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
    assert set(commands(recorded)) == {
        *(f"{host}-{step}" for host in HOSTS for step in ("claim", "preparation", "verification")),
        *(f"{host}-{step}" for host in WORKERS for step in ("deregister", "join", "node")),
        "master-init",
        "nodes",
        "expected-services",
    }
