"""Each rule of the policy pack: what breaks it, and what keeps it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.progress import Progress
from model import documents
from policy import engine_values, rules
from policy.rules import Environment, Hidden, Level, Resource, Unknown
from tests import stacks
from tools import policy

RULES = {rule.name: rule for rule in rules.RULES}
PROD = Environment("prod", protected=True, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
DEV = Environment("dev", protected=False, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
INIT = "command:remote:Command"


def found(rule: str, environment: Environment, resource: Resource) -> list[str]:
    return list(RULES[rule].violations(environment, resource))


def command(name: str = "master-init", *, protect: bool = False, **connection: Any) -> Resource:
    return Resource(INIT, name, {"connection": {"host": "10.0.0.1", **connection}}, protect)


def deployment(image: Any, where: str = "containers") -> Resource:
    spec = {"template": {"spec": {where: [{"name": "web", "image": image}]}}}
    return Resource("kubernetes:apps/v1:Deployment", "Deployment/default/web", {"spec": spec})


def service(port: Any, kind: str = "NodePort", purpose: Any = "HTTP for people", **more: Any) -> Resource:
    ports = [{"port": 80} if port is None else {"port": 80, "nodePort": port}]
    annotations = {} if purpose is None else {rules.PURPOSE: purpose}
    properties = {"metadata": {"annotations": annotations}, "spec": {"type": kind, "ports": ports, **more}}
    return Resource("kubernetes:core/v1:Service", "Service/default/web", properties)


def cluster() -> Resource:
    return Resource(rules.CLUSTER, "prod", {"kubernetesVersion": "1.37.2"})


def of_stack(**outputs: Any) -> Resource:
    return Resource(rules.STACK, "kubeadm-ipvs-prod", outputs)


@pytest.mark.parametrize("key", [None, "", "none", "AAAAC3Nza"])
def test_a_command_on_a_host_without_its_key_is_refused(key: str | None) -> None:
    way: dict[str, Any] = {} if key is None else {"hostKey": key}
    (said,) = found("ssh-host-keys-pinned", DEV, command(**way))
    assert "connection.hostKey of master-init" in said


def test_a_jump_hosts_key_is_asked_for_too() -> None:
    (said,) = found("ssh-host-keys-pinned", DEV, command(hostKey=stacks.HOST_KEY, proxy={"host": "jump"}))
    assert "connection.proxy.hostKey" in said


@pytest.mark.parametrize("key", [stacks.HOST_KEY, Hidden(stacks.HOST_KEY), Unknown()])
def test_a_command_with_its_hosts_key_is_right(key: Any) -> None:
    assert found("ssh-host-keys-pinned", DEV, command(hostKey=key)) == []


def test_a_control_plane_in_production_that_may_be_deleted_is_refused() -> None:
    assert "master-init may be deleted" in found("production-protected", PROD, command())[0]


@pytest.mark.parametrize("name", ["prod", "production", "prod-eu", "live.1"])
def test_a_stack_that_is_production_by_its_name_must_say_so_in_its_settings(name: str) -> None:
    called = Environment(name, protected=False, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
    assert "production: true" in found("production-protected", called, cluster())[0]
    assert RULES["production-protected"].level(called) is Level.MANDATORY


def test_a_protected_control_plane_and_a_command_that_makes_no_cluster_are_right() -> None:
    assert found("production-protected", PROD, command(protect=True)) == []
    assert found("production-protected", PROD, command("node1-join")) == []
    assert found("production-protected", PROD, cluster()) == []
    assert found("production-protected", DEV, command()) == []


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("nginx", "has no tag"),
        ("nginx:latest", "tag latest"),
        ("localhost:5000/nginx", "has no tag"),
        ("nginx:1@sha256:12", "has a digest that is none"),
        (None, "is missing"),
    ],
)
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_an_image_that_may_be_another_tomorrow_is_refused(image: str | None, why: str, where: str) -> None:
    (said,) = found("images-pinned", DEV, deployment(image, where))
    assert why in said
    assert "Deployment/default/web" in said


@pytest.mark.parametrize(
    "image",
    ["docker.io/library/nginx:1.29", "localhost:5000/nginx:1", "nginx@sha256:" + "0" * 64, Unknown()],
)
def test_an_image_with_a_versions_tag_or_a_digest_is_right(image: Any) -> None:
    assert found("images-pinned", DEV, deployment(image)) == []


def test_images_are_found_in_a_pod_and_in_a_cron_job() -> None:
    pod = {"containers": [{"name": "x", "image": "x"}]}
    job = {"jobTemplate": {"spec": {"template": {"spec": pod}}}}
    assert found("images-pinned", DEV, Resource("kubernetes:core/v1:Pod", "p", {"spec": pod}))
    assert found("images-pinned", DEV, Resource("kubernetes:batch/v1:CronJob", "c", {"spec": job}))


@pytest.mark.parametrize("port", [None, 80, 29999, 32768, 30080.5])
@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_a_node_port_that_is_not_chosen_within_the_range_is_refused(port: float | None, kind: str) -> None:
    (said,) = found("node-ports-documented", DEV, service(port, kind))
    assert "write one from 30000 to 32767" in said


@pytest.mark.parametrize("purpose", [None, "", "  "])
def test_a_node_port_that_does_not_say_what_for_is_refused(purpose: str | None) -> None:
    (said,) = found("node-ports-documented", DEV, service(30080, purpose=purpose))
    assert rules.PURPOSE in said


@pytest.mark.parametrize("port", [30000, 32767, 30080.0, Unknown()])
def test_a_documented_node_port_within_the_range_is_right(port: Any) -> None:
    assert found("node-ports-documented", DEV, service(port)) == []


def test_a_service_without_node_ports_needs_no_purpose() -> None:
    assert found("node-ports-documented", DEV, service(None, "ClusterIP", None)) == []
    balanced = service(None, "LoadBalancer", None, allocateLoadBalancerNodePorts=False)
    assert found("node-ports-documented", DEV, balanced) == []


def test_a_load_balancer_that_is_given_no_node_ports_is_asked_for_those_that_it_writes() -> None:
    without = {"allocateLoadBalancerNodePorts": False}
    wrong_port = service(80, "LoadBalancer", **without)
    without_purpose = service(30080, "LoadBalancer", None, **without)
    assert "is 80" in found("node-ports-documented", DEV, wrong_port)[0]
    assert rules.PURPOSE in found("node-ports-documented", DEV, without_purpose)[0]


@pytest.mark.parametrize("port", [None, 80])
def test_a_port_for_a_load_balancers_health_checks_is_chosen_like_any_other(port: int | None) -> None:
    local = {"allocateLoadBalancerNodePorts": False, "externalTrafficPolicy": "Local"}
    chosen = {} if port is None else {"healthCheckNodePort": port}
    (said,) = found("node-ports-documented", DEV, service(None, "LoadBalancer", **local, **chosen))
    assert "healthCheckNodePort of Service/default/web" in said
    right = service(None, "LoadBalancer", healthCheckNodePort=30100, **local)
    assert found("node-ports-documented", DEV, right) == []


def test_only_a_load_balancer_that_keeps_its_traffic_local_has_health_checks() -> None:
    assert found("node-ports-documented", DEV, service(30080, externalTrafficPolicy="Local")) == []
    assert found("node-ports-documented", DEV, service(30080, "LoadBalancer")) == []


@pytest.mark.parametrize("version", [(1, 40), (1, 41), (2, 0)])
def test_ipvs_past_its_end_is_refused(version: tuple[int, int]) -> None:
    late = Environment("dev", protected=False, kubernetes=version, proxy_mode="ipvs", control_planes=1)
    assert "proxy.mode is ipvs" in found("no-ipvs-past-its-end", late, cluster())[0]


def test_ipvs_before_its_end_and_nftables_after_it_are_right() -> None:
    later = Environment("dev", protected=False, kubernetes=(1, 40), proxy_mode="nftables", control_planes=1)
    last = Environment("dev", protected=False, kubernetes=(1, 39), proxy_mode="ipvs", control_planes=1)
    assert found("no-ipvs-past-its-end", later, cluster()) == []
    assert found("no-ipvs-past-its-end", last, cluster()) == []


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ({"kubeconfig": "apiVersion: v1"}, "by its name"),
        ({"login": {"password": "x"}}, "login.password"),
        ({"text": stacks.PRIVATE_KEY.replace("none", "b3BlbnNzaC1rZXktdjEA")}, "a private key"),
        ({"text": "client-key-data: LS0tLS1CRUdJTiBSU0E="}, "a kubeconfig's credentials"),
        ({"list": ["kubeadm join --token abcdef.0123456789abcdef"]}, "a bootstrap token"),
    ],
)
def test_a_plain_secret_among_the_outputs_is_refused_and_not_repeated(
    output: dict[str, Any], why: str
) -> None:
    (said,) = found("no-plain-secrets", DEV, of_stack(**output))
    assert why in said
    assert "0123456789abcdef" not in said


def test_a_marked_secret_and_ordinary_outputs_are_right() -> None:
    ordinary = {"nodePorts": ["http://10.0.0.1:30080/"], "tables": {"node1": "TCP 10.96.0.1:443 rr"}}
    outputs = of_stack(
        kubeconfig=Hidden("client-key-data: LS0tLS1CRUdJTiBSU0E="), later=Unknown(), **ordinary
    )
    assert found("no-plain-secrets", DEV, outputs) == []


@pytest.mark.parametrize("host", ["tokenizer1", "secrets-1", "token.example.com"])
def test_a_hosts_name_makes_no_secret_of_what_its_kernel_balances(host: str) -> None:
    tables = {host: [{"protocol": "TCP", "destinations": [{"address": "10.244.0.2"}]}], "node1": []}
    assert found("no-plain-secrets", DEV, of_stack(virtualServers=tables)) == []


def test_what_is_secret_by_another_name_or_its_look_is_refused_below_a_host_too() -> None:
    tables = {"node1": [{"password": "x"}], "node2": ["abcdef.0123456789abcdef"]}
    by_name, by_look = found("no-plain-secrets", DEV, of_stack(virtualServers=tables))
    assert "virtualServers.node1[0].password" in by_name
    assert "virtualServers.node2[0]" in by_look


def test_one_control_plane_in_production_is_warned_of_and_never_refused() -> None:
    rule = RULES["single-control-plane"]
    assert "one host holds etcd" in found(rule.name, PROD, cluster())[0]
    assert rule.level(PROD) is Level.ADVISORY
    assert rule.level(DEV) is Level.DISABLED


def test_three_control_planes_in_production_and_one_elsewhere_are_right() -> None:
    three = Environment("prod", protected=True, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=3)
    assert found("single-control-plane", three, cluster()) == []
    assert found("single-control-plane", DEV, cluster()) == []


def test_the_engines_secrets_are_marked_and_the_rest_is_as_it_was() -> None:
    secret = {engine_values.SIGNATURE: engine_values.SECRET, "value": {"key": "k", "port": 22}}
    asset = {engine_values.SIGNATURE: "asset", "text": "t"}
    seen = engine_values.marked({"plain": "p", "list": [secret], "asset": asset})
    assert seen == {"plain": "p", "list": [{"key": "k", "port": 22}], "asset": asset}
    assert isinstance(seen["list"][0]["key"], Hidden)
    assert not isinstance(seen["plain"], Hidden)


def test_the_facts_are_the_settings_those_of_the_shared_file_included(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(
        "config:\n  kubeadm-ipvs:production: true\n  kubeadm-ipvs:proxy: {mode: nftables}\n"
    )
    ssh = {"hostKey": stacks.HOST_KEY}
    host = {"name": "a", "role": "control-plane", "address": "10.0.0.1", "ssh": ssh}
    config = {
        "kubeadm-ipvs:hosts": json.dumps([host]),
        "kubeadm-ipvs:extends": "shared.yaml",
        "kubeadm-ipvs:cluster": '{"kubernetesVersion": "1.36.3"}',
        "other:name": "x",
    }
    facts = engine_values.environment("qa", "kubeadm-ipvs", config, tmp_path)
    assert facts == Environment(
        "qa", protected=True, kubernetes=(1, 36), proxy_mode="nftables", control_planes=1
    )


def test_settings_that_can_not_be_used_get_the_strictest_levels(tmp_path: Path) -> None:
    assert engine_values.environment("qa", "kubeadm-ipvs", {}, tmp_path).production


def test_the_manifests_of_this_project_keep_the_rules() -> None:
    parameters: dict[str, documents.Parameter] = {
        "image": "docker.io/library/nginx:1.29",
        "replicas": 2,
        "node_port": 30080,
        "spread": 2,
    }
    for document in documents.load(stacks.PROJECT / "manifests/nginx.yaml", parameters):
        resource = Resource(document.type, document.name, document.body)
        for rule in rules.RULES:
            assert list(rule.violations(PROD, resource)) == [], rule.name


def test_every_rule_is_in_the_page_with_its_levels() -> None:
    page = (stacks.PROJECT / "docs/policy.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| (\w+) \| \w+ \|", page, re.MULTILINE))
    elsewhere = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| \w+ \| (\w+) \|", page, re.MULTILINE))
    assert rows == {rule.name: rule.production.value for rule in rules.RULES}
    assert elsewhere == {rule.name: rule.elsewhere.value for rule in rules.RULES}


def test_the_lock_holds_the_packs_sdk_and_the_programs_own_version_of_pulumi() -> None:
    locked = dict(re.findall(r"^([a-z-]+)==(\S+)", policy.LOCK.read_text(), re.MULTILINE))
    program = (stacks.PROJECT / "requirements.txt").read_text()
    assert "pulumi-policy" in locked
    assert f"pulumi=={locked['pulumi']} " in program
    assert "pulumi-policy" not in program


def test_the_launcher_is_what_the_engine_looks_for_and_starts_the_packs_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = re.search(r"^runtime: (\S+)$", (policy.PACK / "PulumiPolicy.yaml").read_text(), re.MULTILINE)
    assert runtime is not None
    interpreter = tmp_path / "a place" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text('#!/bin/sh\necho "$@"\n')
    interpreter.chmod(0o755)
    program = policy.launcher(interpreter) / f"pulumi-analyzer-policy-{runtime[1]}"
    said = subprocess.run([program, "127.0.0.1:1", "."], capture_output=True, text=True, check=True).stdout
    assert said == "-u -m pulumi.policy 127.0.0.1:1 .\n"


def test_an_environment_that_can_not_be_made_is_begun_again_and_is_never_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "requirements.txt"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lock.write_text("pulumi-policy==1.21.0\n")
    for _ in range(2):
        with pytest.raises(UserError, match="can't be made"):
            policy.python(Progress(quiet=True), lock)
    lock.write_text("# nothing\n")
    made = policy.python(Progress(quiet=True), lock)
    said = subprocess.run([made, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert said.stdout.strip() == str(made.parent.parent)
    assert sys.prefix not in said.stdout
