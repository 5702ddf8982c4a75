from __future__ import annotations

import base64
import datetime as dt
import functools
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from components.changes import identity
from components.cluster import Cluster, ClusterArgs
from model.settings import Settings, load
from model.steps import STEPS, Step, step_of
from tests.fast import graph

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Lq2vJkzO4b6mKqXb3W8xS8yG3c9hT0vT1s0q2n4aB"
TOKEN = "abcdef.0123456789abcdef"


def raw_settings(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    key = tmp_path / "id"
    key.write_text(
        "-----BEGIN OPENSSH PRIVATE KEY-----\nprivate-login-key\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    key.chmod(0o600)
    return {
        "hosts": [
            {
                "name": name,
                "role": "worker" if number else "control-plane",
                "address": f"192.168.166.{101 + number}",
                "ssh": {"hostKey": HOST_KEY},
            }
            for number, name in enumerate(["master", "node1", "node2"])
        ],
        "ssh": {"privateKeyFile": str(key)},
        **sections,
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(raw_settings(tmp_path), tmp_path)


@functools.cache  # one cluster: two runs that are compared have the same authority
def kubeconfig() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = dt.datetime.now(dt.UTC)
    authority = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "admin",
            "contexts": [{"name": "admin", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": "https://192.168.166.101:6443",
                        "certificate-authority-data": base64.b64encode(authority).decode(),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"client-key-data": "c2VjcmV0LWtleQ=="}}],
        }
    )


def promises() -> str:
    items: list[dict[str, Any]] = []
    for namespace, name, address, port, node_port, endpoints in [
        ("default", "kubernetes", "10.96.0.1", 443, None, ["192.168.166.101"]),
        ("kube-system", "kube-dns", "10.96.0.10", 53, None, ["10.244.0.2", "10.244.0.3"]),
        ("default", "nginx", "10.96.7.7", 80, None, ["10.244.1.2", "10.244.2.2"]),
        ("default", "nginx-nodeport", "10.96.8.8", 80, 30080, ["10.244.1.2", "10.244.2.2"]),
    ]:
        metadata = {"namespace": namespace, "name": name}
        ports: list[dict[str, Any]] = [{"port": port, "protocol": "TCP"}]
        if node_port:
            ports[0]["nodePort"] = node_port
        items.append(
            {"kind": "Service", "metadata": metadata, "spec": {"clusterIP": address, "ports": ports}}
        )
        items.append(
            {
                "kind": "EndpointSlice",
                "addressType": "IPv4",
                "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [e], "conditions": {"ready": True}} for e in endpoints],
                "ports": [{"port": port, "protocol": "TCP"}],
            }
        )
    return json.dumps({"kind": "List", "items": items})


def outputs(name: str) -> dict[str, Any]:
    if name.endswith(("-admin", "-kubeconfig")):
        return {"stdout": kubeconfig(), "stderr": ""}
    if name.endswith("-token"):
        return {"stdout": TOKEN, "stderr": ""}
    if name == "expected-services":
        return {"stdout": promises(), "stderr": ""}
    if name.endswith("-verification"):
        return {"stdout": "== ipvs\n== stats\n== addresses\n== sets\n== spread\n", "stderr": ""}
    return {"stdout": "", "stderr": ""}


def run(settings: Settings, preview: bool = False) -> graph.Recorder:
    kubeconfig()  # once, before threads ask for it
    arguments = ClusterArgs(settings, graph.STACK, None)
    return graph.run(lambda: void(Cluster("test", arguments)), outputs, preview)


def void(_: object) -> None:
    """A program returns nothing."""


@pytest.fixture
def recorded(settings: Settings) -> graph.Recorder:
    return run(settings)


def commands(recorded: graph.Recorder) -> dict[str, Any]:
    return {n: r for n, r in recorded.requests.items() if r.type == "command:remote:Command"}


def steps_of(recorded: graph.Recorder) -> dict[str, Step]:
    """The step of each command, by the resource's name."""
    found = {name: step_of(recorded.inputs[name]["create"]) for name in commands(recorded)}
    return {name: step for name, step in found.items() if step is not None}


def test_a_recorded_run_leaves_no_thread_behind(settings: Settings) -> None:
    run(settings)  # gRPC keeps one thread for the whole process
    before = threading.active_count()
    run(settings)
    assert threading.active_count() <= before, threading.enumerate()


def test_each_host_is_prepared_without_waiting_for_another(recorded: graph.Recorder) -> None:
    for host in ("master", "node1", "node2"):
        steps = {f"{host}-{step}" for step in ("claim", "kernel", "firewall", "packages")}
        registration = set() if host == "master" else {f"{host}-deregister"}
        assert recorded.before(f"{host}-runtime") == steps | registration


def test_every_step_that_changes_or_deletes_is_told_whose_the_host_is(recorded: graph.Recorder) -> None:
    told = {
        name: re.findall(r"^OWNER=(.*)$", inputs["stdin"], re.MULTILINE)
        for name, inputs in recorded.inputs.items()
        if "stdin" in inputs
    }
    owned = {name for name, owner in told.items() if owner}
    # Not by the stack's name alone, which another state's stack may have too.
    chosen = recorded.inputs["owner"]["input"]
    assert re.fullmatch(rf"{graph.STACK} [0-9a-f]{{8}}", chosen)
    assert list(recorded.requests["owner"].ignoreChanges) == ["input"]
    assert {owner for owners in told.values() for owner in owners} == {f"'{graph.OWNER}'"}
    assert owned == {name for name in told if steps_of(recorded)[name].owned}
    assert {name for name, inputs in recorded.inputs.items() if inputs.get("delete")} <= owned


def test_a_workers_removal_has_more_time_than_its_drain(settings: Settings) -> None:
    slow = settings.model_copy(
        update={"step_timeouts": settings.step_timeouts.model_copy(update={"drain": 7200})}
    )
    recorded = run(slow)
    limit = re.search(r"timeout \S+ (\d+) ", recorded.inputs["node1-node"]["delete"])
    assert limit is not None
    assert int(limit[1]) > 7200


def test_a_workers_registration_outlives_its_host_and_goes_with_the_cluster(recorded: graph.Recorder) -> None:
    """What is made first is deleted last: a host that isn't given back yet may register its node again."""
    for host in ("node1", "node2"):
        registration = recorded.requests[f"{host}-deregister"]
        assert f"{host}-deregister" in recorded.before(f"{host}-claim")
        assert recorded.before(f"{host}-deregister") == set()
        assert recorded.names([registration.deletedWith]) == {"NodeList node-list"}
        assert recorded.inputs[f"{host}-deregister"]["delete"].endswith("delete deregister master")
    # Not with a step on the control plane: that one would have to wait for every worker, dead ones included.
    assert not [n for n in recorded.before("master-init") if n.endswith("-deregister")]


def test_what_changes_a_host_is_asked_for_in_the_state_before_it_begins(recorded: graph.Recorder) -> None:
    steps, changing = steps_of(recorded), set()
    for name, command in commands(recorded).items():
        remembered = f"{name}-desired" in recorded.names(command.dependencies)
        assert remembered == (steps[name].changes), name
        if remembered:
            changing.add(steps[name].name)
            # A step whose turn never comes isn't asked.
            waits = recorded.before(f"{name}-desired")
            assert waits == recorded.before(name) - {name}
    assert changing == {step.name for step in STEPS.values() if step.changes}


def test_init_waits_only_for_the_control_planes_own_preparation(recorded: graph.Recorder) -> None:
    assert {name.partition("-")[0] for name in recorded.before("master-init")} == {"master"}


def test_a_worker_joins_when_it_is_prepared_and_the_api_is_up(recorded: graph.Recorder) -> None:
    waits = recorded.before("node1-join")
    assert {"node1-runtime", "master-init", "node1-token", "master-admin"} <= waits
    assert not [name for name in waits if name.startswith("node2")]
    assert not [name for name in waits if "flannel" in name or "nginx" in name]


def test_flannel_waits_for_no_worker(recorded: graph.Recorder) -> None:
    waits = recorded.before("DaemonSet/kube-flannel/flannel")
    assert "Namespace/kube-flannel" in waits
    assert not [name for name in waits if name.startswith("node")]


def test_the_proof_of_each_host_comes_last(recorded: graph.Recorder) -> None:
    for host in ("master", "node1", "node2"):
        waits = recorded.before(f"{host}-verification")
        assert {"expected-services", "Deployment/default/nginx", "node1-node", "node2-node"} <= waits


def test_what_is_promised_is_asked_again_until_every_host_is_proved(
    tmp_path: Path, settings: Settings
) -> None:
    proved: list[str] = []

    def promised(settings: Settings, last: str | None) -> str:
        def program() -> None:
            cluster = Cluster("test", ClusterArgs(settings, graph.STACK, last))
            cluster.proved.apply(proved.append)

        return str(graph.run(program, outputs).inputs["expected-services"]["stdin"])

    kubeconfig()
    failed, succeeded = promised(settings, None), promised(settings, None)
    assert succeeded != failed
    assert promised(settings, proved[1]) == succeeded
    assert proved[2] == proved[1]
    repaired = raw_settings(tmp_path)
    repaired["hosts"][1]["repair"] = "1"
    assert promised(load(repaired, tmp_path), proved[1]) != succeeded
    assert proved[3] != proved[1]


def test_every_command_is_deleted_before_it_is_replaced(recorded: graph.Recorder) -> None:
    for name, request in commands(recorded).items():
        assert request.deleteBeforeReplace, name


def test_what_stands_on_a_host_goes_with_its_claim(recorded: graph.Recorder) -> None:
    for host, steps in {
        "master": ["kernel", "firewall", "packages", "runtime", "init"],
        "node1": ["kernel", "firewall", "packages", "runtime", "join"],
    }.items():
        for step in steps:
            request = recorded.requests[f"{host}-{step}"]
            assert recorded.names([request.deletedWith]) == {f"{host}-claim"}, step
            assert f"{host}-claim" in recorded.names(request.replace_with), step


def test_objects_go_with_the_cluster_and_are_replaced_with_it(recorded: graph.Recorder) -> None:
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


def test_only_what_defines_a_cluster_makes_a_new_one(tmp_path: Path, settings: Settings) -> None:
    same = load(
        raw_settings(
            tmp_path,
            proxy={"scheduler": "wrr"},
            registry={"mirrors": {"docker.io": ["http://mirror:5000"]}},
            nginx={"replicas": 3},
            cluster={"certSANs": ["k8s.example.com"]},
            stepTimeouts={"init": 4000},
        ),
        tmp_path,
    )
    assert identity(same) == identity(settings)
    other = load(raw_settings(tmp_path, network={"podSubnet": "10.200.0.0/16"}), tmp_path)
    assert identity(other) != identity(settings)


def test_a_worker_more_leaves_the_others_as_they_are(tmp_path: Path, recorded: graph.Recorder) -> None:
    raw = raw_settings(tmp_path)
    raw["hosts"].append(
        {"name": "node3", "role": "worker", "address": "192.168.166.104", "ssh": {"hostKey": HOST_KEY}}
    )
    more = run(load(raw, tmp_path))
    # Proofs ask every host's NodePort, the new one's too; and so of what is promised by then.
    anew = {"expected-services", "master-verification", "node1-verification", "node2-verification"}
    for name in commands(recorded):
        assert (more.inputs[name] != recorded.inputs[name]) == (name in anew), name
    for name in recorded.inputs:
        if name.startswith(("DaemonSet", "Deployment", "Service", "ConfigMap")):
            assert more.inputs[name] == recorded.inputs[name], name


def test_steps_with_secrets_log_nothing_and_keep_all_of_it_secret(recorded: graph.Recorder) -> None:
    for name in (
        "master-admin",
        "master-kubeconfig",
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


def test_no_secret_is_in_any_command_text_or_plain_input(recorded: graph.Recorder) -> None:
    for name in recorded.requests:
        plain = json.dumps(recorded.plain[name])
        for secret in (TOKEN, TOKEN.partition(".")[2], "private-login-key", "c2VjcmV0LWtleQ"):
            assert secret not in plain, f"{secret} in {name}"


def test_every_connection_pins_the_hosts_key_and_is_bounded(recorded: graph.Recorder) -> None:
    for name in commands(recorded):
        connection = recorded.inputs[name]["connection"]
        assert connection["hostKey"] == HOST_KEY, name
        assert 0 <= connection["dialErrorLimit"] <= 100, name
        assert 0 < connection["perDialTimeout"] <= 60, name


def test_the_provider_keeps_its_identity_for_good(recorded: graph.Recorder) -> None:
    provider = recorded.inputs["test"]
    assert re.fullmatch("test [0-9a-f]{8}", provider["clusterIdentifier"]), "the stack's own mark"
    assert recorded.requests["test"].ignoreChanges == ["clusterIdentifier"]
    assert provider["deleteUnreachable"] in (True, "true")


def test_an_object_of_a_run_that_was_cut_off_is_taken_on(recorded: graph.Recorder) -> None:
    assert recorded.inputs["test"]["upsertExistingObjects"] in (True, "true")


def test_joins_are_admitted_right_before_and_revoked_right_after(recorded: graph.Recorder) -> None:
    hooks = recorded.requests["node1-join"].hooks
    # An update joins as well, where somebody has taken the node apart by hand.
    for before, after in [
        (hooks.before_create, hooks.after_create),
        (hooks.before_update, hooks.after_update),
    ]:
        assert list(before) == ["node1-reach", "node1-admit"]
        assert list(after) == ["node1-revoke"]


def test_every_step_waits_for_the_way_in_to_its_host(recorded: graph.Recorder) -> None:
    """Which one runs first is the change's: of a host that is there already its claim is the same."""
    steps = {name: r for name, r in recorded.requests.items() if r.type == "command:remote:Command"}
    for name, request in steps.items():
        host = request.object["create"].split()[-1]
        for hooks in (request.hooks.before_create, request.hooks.before_update):
            assert hooks[0] == f"{host}-reach", name
    assert len(steps) > 3 * 8


def test_kube_proxy_is_changed_on_one_host_after_the_other(recorded: graph.Recorder) -> None:
    assert not {"node1-proxy", "node2-proxy"} & recorded.before("master-proxy")
    assert "master-proxy" in recorded.before("node1-proxy")
    assert "node1-proxy" in recorded.before("node2-proxy")
    for host in ("master", "node1", "node2"):
        assert {"master-proxy", "node1-proxy", "node2-proxy"} <= recorded.before(f"{host}-verification")


@pytest.mark.parametrize(
    "proxy",
    [{"mode": "nftables"}, {"mode": "iptables"}, {"scheduler": "lc"}],
    ids=lambda p: "-".join(p.values()),
)
def test_another_proxy_mode_or_scheduler_is_an_update_on_every_host_and_replaces_nothing(
    tmp_path: Path, recorded: graph.Recorder, proxy: dict[str, str]
) -> None:
    changed = run(load(raw_settings(tmp_path, proxy=proxy), tmp_path))
    for name in commands(recorded):
        assert changed.inputs[name].get("triggers") == recorded.inputs[name].get("triggers"), name
    for host in ("master", "node1", "node2"):
        for step in ("kernel", "proxy"):
            assert changed.inputs[f"{host}-{step}"]["stdin"] != recorded.inputs[f"{host}-{step}"]["stdin"]
    assert changed.inputs["master-init"]["stdin"] != recorded.inputs["master-init"]["stdin"]


def test_another_machine_of_the_same_name_is_drained_away_before_it_joins_anew(
    recorded: graph.Recorder,
) -> None:
    assert recorded.inputs["node1-node"]["triggers"] == ["master-init-id", "node1-join-id"]
    assert "delete" in recorded.inputs["node1-node"]
    assert "delete" not in recorded.inputs["master-node"]


def test_production_protects_the_control_plane_and_lets_workers_go(tmp_path: Path) -> None:
    protected = run(load(raw_settings(tmp_path, production=True), tmp_path))
    assert {name for name, request in protected.requests.items() if request.protect} == {
        "master-claim",
        "master-init",
    }


def test_the_cluster_keeps_what_can_not_change_in_place_where_its_hook_sees_it(
    recorded: graph.Recorder,
) -> None:
    kept = recorded.inputs["Cluster test"]
    assert kept["kubernetesVersion"] == "1.37.2"
    assert kept["network.podSubnet"] == "10.244.0.0/16"
    assert list(recorded.requests["Cluster test"].hooks.before_update) == ["changes"]


def test_resource_names_are_stable(recorded: graph.Recorder) -> None:
    assert set(commands(recorded)) == {
        *(
            f"{h}-{s}"
            for h in ("master", "node1", "node2")
            for s in ("claim", "kernel", "firewall", "packages")
        ),
        *(f"{h}-{s}" for h in ("master", "node1", "node2") for s in ("runtime", "member", "proxy", "proof")),
        *(f"{h}-{s}" for h in ("node1", "node2") for s in ("registration", "token", "join")),
        "master-init",
        "master-admin",
        "master-kubeconfig",
        "expected-services",
    }
