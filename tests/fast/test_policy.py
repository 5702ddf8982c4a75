"""The policy pack: its rules, installation and start."""

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
from tests.fast.fake_programs import program
from tools import policy

RULES = {rule.name: rule for rule in rules.RULES}
PROD = Environment("prod", protected=True, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
DEV = Environment("dev", protected=False, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
INIT = "command:remote:Command"


def violations(rule: str, environment: Environment, resource: Resource) -> list[str]:
    return list(RULES[rule].violations(environment, resource))


def command(name: str = "master-init", *, protect: bool = False, **connection: Any) -> Resource:
    return Resource(INIT, name, {"connection": {"host": "10.0.0.1", **connection}}, protect)


def deployment(image: Any, where: str = "containers") -> Resource:
    spec = {"template": {"spec": {where: [{"name": "web", "image": image}]}}}
    return Resource("kubernetes:apps/v1:Deployment", "Deployment/default/web", {"spec": spec})


def service(port: Any, kind: str = "NodePort", purpose: Any = "HTTP for users", **more: Any) -> Resource:
    ports = [{"port": 80} if port is None else {"port": 80, "nodePort": port}]
    annotations = {} if purpose is None else {rules.PURPOSE: purpose}
    properties = {"metadata": {"annotations": annotations}, "spec": {"type": kind, "ports": ports, **more}}
    return Resource("kubernetes:core/v1:Service", "Service/default/web", properties)


def cluster() -> Resource:
    return Resource(rules.CLUSTER, "prod", {"kubernetesVersion": "1.37.2"})


def of_stack(**outputs: Any) -> Resource:
    return Resource(rules.STACK, "kubeadm-ipvs-prod", outputs)


@pytest.mark.parametrize("key", [None, "", "none", "AAAAC3Nza"])
def test_command_without_host_key_is_rejected(key: str | None) -> None:
    connection: dict[str, Any] = {} if key is None else {"hostKey": key}
    (violation,) = violations("ssh-host-keys-pinned", DEV, command(**connection))
    assert "connection.hostKey of master-init" in violation


def test_jump_host_needs_a_key_too() -> None:
    (violation,) = violations(
        "ssh-host-keys-pinned", DEV, command(hostKey=stacks.HOST_KEY, proxy={"host": "jump"})
    )
    assert "connection.proxy.hostKey" in violation


@pytest.mark.parametrize("key", [stacks.HOST_KEY, Hidden(stacks.HOST_KEY), Unknown()])
def test_command_with_host_key_passes(key: Any) -> None:
    assert violations("ssh-host-keys-pinned", DEV, command(hostKey=key)) == []


def test_unprotected_control_plane_in_production_is_rejected() -> None:
    assert "master-init isn't protected" in violations("production-protected", PROD, command())[0]


@pytest.mark.parametrize("name", ["prod", "production", "prod-eu", "live.1"])
def test_production_by_name_needs_the_setting(name: str) -> None:
    named = Environment(name, protected=False, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=1)
    assert "production: true" in violations("production-protected", named, cluster())[0]
    assert RULES["production-protected"].level(named) is Level.MANDATORY


def test_protected_control_plane_and_other_commands_pass() -> None:
    assert violations("production-protected", PROD, command(protect=True)) == []
    assert violations("production-protected", PROD, command("node1-join")) == []
    assert violations("production-protected", PROD, cluster()) == []
    assert violations("production-protected", DEV, command()) == []


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("nginx", "has no tag"),
        ("nginx:latest", "tag latest"),
        ("localhost:5000/nginx", "has no tag"),
        ("nginx:1@sha256:12", "has an invalid digest"),
        (None, "is missing"),
    ],
)
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_unpinned_image_is_rejected(image: str | None, why: str, where: str) -> None:
    (violation,) = violations("images-pinned", DEV, deployment(image, where))
    assert why in violation
    assert "Deployment/default/web" in violation


@pytest.mark.parametrize(
    "image",
    ["docker.io/library/nginx:1.29", "localhost:5000/nginx:1", "nginx@sha256:" + "0" * 64, Unknown()],
)
def test_pinned_image_passes(image: Any) -> None:
    assert violations("images-pinned", DEV, deployment(image)) == []


def test_images_in_pods_and_cron_jobs_are_checked() -> None:
    pod = {"containers": [{"name": "x", "image": "x"}]}
    job = {"jobTemplate": {"spec": {"template": {"spec": pod}}}}
    assert violations("images-pinned", DEV, Resource("kubernetes:core/v1:Pod", "p", {"spec": pod}))
    assert violations("images-pinned", DEV, Resource("kubernetes:batch/v1:CronJob", "c", {"spec": job}))


@pytest.mark.parametrize("port", [None, 80, 29999, 32768, 30080.5])
@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_node_port_outside_the_range_is_rejected(port: float | None, kind: str) -> None:
    (violation,) = violations("node-ports-documented", DEV, service(port, kind))
    assert "choose one from 30000 to 32767" in violation


@pytest.mark.parametrize("purpose", [None, "", "  "])
def test_undocumented_node_port_is_rejected(purpose: str | None) -> None:
    (violation,) = violations("node-ports-documented", DEV, service(30080, purpose=purpose))
    assert rules.PURPOSE in violation


@pytest.mark.parametrize("port", [30000, 32767, 30080.0, Unknown()])
def test_documented_node_port_in_the_range_passes(port: Any) -> None:
    assert violations("node-ports-documented", DEV, service(port)) == []


def test_service_without_node_ports_passes() -> None:
    assert violations("node-ports-documented", DEV, service(None, "ClusterIP", None)) == []
    balanced = service(None, "LoadBalancer", None, allocateLoadBalancerNodePorts=False)
    assert violations("node-ports-documented", DEV, balanced) == []


def test_load_balancers_explicit_node_ports_are_checked() -> None:
    without = {"allocateLoadBalancerNodePorts": False}
    wrong_port = service(80, "LoadBalancer", **without)
    without_purpose = service(30080, "LoadBalancer", None, **without)
    assert "is 80" in violations("node-ports-documented", DEV, wrong_port)[0]
    assert rules.PURPOSE in violations("node-ports-documented", DEV, without_purpose)[0]


@pytest.mark.parametrize("port", [None, 80])
def test_health_check_port_is_checked_like_others(port: int | None) -> None:
    local = {"allocateLoadBalancerNodePorts": False, "externalTrafficPolicy": "Local"}
    chosen = {} if port is None else {"healthCheckNodePort": port}
    (violation,) = violations("node-ports-documented", DEV, service(None, "LoadBalancer", **local, **chosen))
    assert "healthCheckNodePort of Service/default/web" in violation
    valid = service(None, "LoadBalancer", healthCheckNodePort=30100, **local)
    assert violations("node-ports-documented", DEV, valid) == []


def test_only_local_load_balancers_have_health_check_ports() -> None:
    assert violations("node-ports-documented", DEV, service(30080, externalTrafficPolicy="Local")) == []
    assert violations("node-ports-documented", DEV, service(30080, "LoadBalancer")) == []


@pytest.mark.parametrize("version", [(1, 40), (1, 41), (2, 0)])
def test_ipvs_without_kube_proxy_support_is_rejected(version: tuple[int, int]) -> None:
    late = Environment("dev", protected=False, kubernetes=version, proxy_mode="ipvs", control_planes=1)
    assert "proxy.mode is ipvs" in violations("no-ipvs-past-its-end", late, cluster())[0]


def test_ipvs_before_its_end_and_nftables_pass() -> None:
    later = Environment("dev", protected=False, kubernetes=(1, 40), proxy_mode="nftables", control_planes=1)
    last = Environment("dev", protected=False, kubernetes=(1, 39), proxy_mode="ipvs", control_planes=1)
    assert violations("no-ipvs-past-its-end", later, cluster()) == []
    assert violations("no-ipvs-past-its-end", last, cluster()) == []


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ({"kubeconfig": "apiVersion: v1"}, "named like a secret"),
        ({"login": {"password": "x"}}, "login.password"),
        ({"text": stacks.PRIVATE_KEY.replace("none", "b3BlbnNzaC1rZXktdjEA")}, "a private key"),
        ({"text": "client-key-data: LS0tLS1CRUdJTiBSU0E="}, "a kubeconfig's credentials"),
        ({"list": ["kubeadm join --token abcdef.0123456789abcdef"]}, "a bootstrap token"),
    ],
)
def test_plain_secret_output_is_rejected_but_not_printed(output: dict[str, Any], why: str) -> None:
    (violation,) = violations("no-plain-secrets", DEV, of_stack(**output))
    assert why in violation
    assert "0123456789abcdef" not in violation


def test_marked_secrets_and_ordinary_outputs_pass() -> None:
    ordinary = {"nodePorts": ["http://10.0.0.1:30080/"], "tables": {"node1": "TCP 10.96.0.1:443 rr"}}
    outputs = of_stack(
        kubeconfig=Hidden("client-key-data: LS0tLS1CRUdJTiBSU0E="), later=Unknown(), **ordinary
    )
    assert violations("no-plain-secrets", DEV, outputs) == []


@pytest.mark.parametrize("host", ["tokenizer1", "secrets-1", "token.example.com"])
def test_host_name_doesnt_make_its_table_secret(host: str) -> None:
    tables = {host: [{"protocol": "TCP", "destinations": [{"address": "10.244.0.2"}]}], "node1": []}
    assert violations("no-plain-secrets", DEV, of_stack(virtualServers=tables)) == []


def test_secrets_below_a_host_are_rejected() -> None:
    tables = {"node1": [{"password": "x"}], "node2": ["abcdef.0123456789abcdef"]}
    by_name, by_content = violations("no-plain-secrets", DEV, of_stack(virtualServers=tables))
    assert "virtualServers.node1[0].password" in by_name
    assert "virtualServers.node2[0]" in by_content


def test_single_control_plane_in_production_is_a_warning() -> None:
    rule = RULES["single-control-plane"]
    assert "one host runs etcd" in violations(rule.name, PROD, cluster())[0]
    assert rule.level(PROD) is Level.ADVISORY
    assert rule.level(DEV) is Level.DISABLED


def test_three_control_planes_or_no_production_pass() -> None:
    three = Environment("prod", protected=True, kubernetes=(1, 37), proxy_mode="ipvs", control_planes=3)
    assert violations("single-control-plane", three, cluster()) == []
    assert violations("single-control-plane", DEV, cluster()) == []


def test_only_the_engines_secrets_are_marked() -> None:
    secret = {engine_values.SIGNATURE: engine_values.SECRET, "value": {"key": "k", "port": 22}}
    asset = {engine_values.SIGNATURE: "asset", "text": "t"}
    values = engine_values.marked({"plain": "p", "list": [secret], "asset": asset})
    assert values == {"plain": "p", "list": [{"key": "k", "port": 22}], "asset": asset}
    assert isinstance(values["list"][0]["key"], Hidden)
    assert not isinstance(values["plain"], Hidden)


def test_facts_include_the_shared_settings(tmp_path: Path) -> None:
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


def test_invalid_settings_get_the_strictest_levels(tmp_path: Path) -> None:
    assert engine_values.environment("qa", "kubeadm-ipvs", {}, tmp_path).production


def test_own_manifests_pass_all_rules() -> None:
    parameters: dict[str, documents.Parameter] = {
        "image": "docker.io/library/nginx:1.29",
        "replicas": 2,
        "node_port": 30080,
        "spread": 2,
        "pause": 16,
        "grace": 46,
    }
    for document in documents.load(stacks.PROJECT / "manifests/nginx.yaml", parameters):
        resource = Resource(document.type, document.name, document.body)
        for rule in rules.RULES:
            assert list(rule.violations(PROD, resource)) == [], rule.name


def test_docs_list_every_rule_with_its_levels() -> None:
    page = (stacks.PROJECT / "docs/policy.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| (\w+) \| \w+ \|", page, re.MULTILINE))
    elsewhere = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| \w+ \| (\w+) \|", page, re.MULTILINE))
    assert rows == {rule.name: rule.production.value for rule in rules.RULES}
    assert elsewhere == {rule.name: rule.elsewhere.value for rule in rules.RULES}


def test_lock_has_the_sdk_and_the_programs_pulumi_version() -> None:
    locked = dict(re.findall(r"^([a-z-]+)==(\S+)", policy.LOCK.read_text(), re.MULTILINE))
    requirements = (stacks.PROJECT / "requirements.txt").read_text()
    assert "pulumi-policy" in locked
    assert f"pulumi=={locked['pulumi']} " in requirements
    assert "pulumi-policy" not in requirements


def test_launcher_starts_the_packs_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = re.search(r"^runtime: (\S+)$", (policy.PACK / "PulumiPolicy.yaml").read_text(), re.MULTILINE)
    assert runtime is not None
    interpreter = program(tmp_path / "a place" / "python", 'echo "$@"')
    launcher = policy.launcher(interpreter) / f"pulumi-analyzer-policy-{runtime[1]}"
    output = subprocess.run([launcher, "127.0.0.1:1", "."], capture_output=True, text=True, check=True).stdout
    assert output == "-u -m pulumi.policy 127.0.0.1:1 .\n"


def test_failed_environment_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "requirements.txt"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lock.write_text("pulumi-policy==1.21.0\n")
    for _ in range(2):
        with pytest.raises(UserError, match="can't be created"):
            policy.python(Progress(quiet=True), lock)
    lock.write_text("# nothing\n")
    python = policy.python(Progress(quiet=True), lock)
    done = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert done.stdout.strip() == str(python.parent.parent)
    assert sys.prefix not in done.stdout
