"""Changing a setting has the effect that its field declares (`Effect`)."""

from __future__ import annotations

import functools
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from components.changes import cluster_inputs
from model import kubeadm
from model.settings import Effect, Settings, effect_of, fields
from model.settings_file import load
from model.steps import STEPS
from tests.fast import graph
from tests.fast.recorded_run import run
from tests.fast.sample_settings import raw_settings

REPAIRING = {step.name for step in STEPS.values() if step.repairs}

# Values that differ from the default, for settings whose type doesn't suggest one.
OTHERS: dict[str, Any] = {
    "cluster.apiServer": "api.example.com:6443",
    "cluster.certSANs": ["k8s.example.com"],
    "cluster.imageRepository": "example.com",
    "cluster.extraEnvs": {"NO_PROXY": "10.0.0.0/8"},
    "cluster.kubelet.containerLogMaxSize": "20Mi",
    "cluster.kubelet.evictionHard": {"memory.available": "1%"},
    "cluster.kubelet.kubeReserved": {"cpu": "100m"},
    "cluster.kubelet.resolvConf": "/etc/resolv.pods.conf",
    "cluster.kubelet.shutdownGracePeriod": "9s",
    "cluster.kubelet.systemReserved": {"cpu": "100m"},
    "cluster.kubernetesVersion": "1.36.3",
    "cluster.name": "other",
    "firewallSources.api": ["10.9.0.0/16"],
    "firewallSources.hosts": ["10.9.0.0/16"],
    "firewallSources.nodePorts": ["10.9.0.0/16"],
    "hosts[].address": "192.168.166.9",
    "hosts[].labels": {"disk": "ssd"},
    "hosts[].name": "other",
    "hosts[].repair": "2026-01-01",
    "hosts[].ssh.host": "192.0.2.9",
    "hosts[].ssh.user": "ops",
    "hosts[].taints": ["a=b:NoSchedule"],
    "network.dnsDomain": "k8s.example",
    "network.flannel.cniPluginImage": "example.com/cni:1",
    "network.flannel.image": "example.com/flannel:1",
    "network.flannel.interfaceRegex": "^192[.]168[.]",
    "network.podSubnet": "10.200.0.0/16",
    "network.serviceSubnet": "10.112.0.0/12",
    "nginx.image": "example.com/nginx:1",
    "packages.key": "https://example.com/key.asc",
    "packages.repository": "https://example.com/{minor}/",
    "packages.revision": "1.1",
    "preflight.ignore": ["NumCPU"],
    "proxy.excludeCidrs": ["10.9.0.0/16"],
    "proxy.maxUnavailable": "25%",
    "proxy.nodePortAddresses": ["primary"],
    "proxy.syncPeriod": "9s",
    "runtime.mirrors": {"docker.io": ["https://example.com"]},
    "ssh.user": "ops",
    "cluster.kubelet.imageGcHighThresholdPercent": 90,
}
# These are refused with other values of `firewall` and `proxy.mode`.
ALONE = {path for path in fields() if path.startswith("firewallSources.")}
JUMP = ("proxyJump", "proxyJumpHostKey")
# Not testable here: files that are read while settings are loaded, and a second control plane.
UNTESTED = {"extends", "ssh.privateKeyFile", "ssh.knownHostsFile", "hosts[].ssh.hostKey", "hosts[].role"}
# A jump host needs a key too; see test_jump_host.py.
UNTESTED |= {f"{section}.{name}" for section in ("ssh", "hosts[].ssh") for name in JUMP}


def other(path: str, field: FieldInfo) -> Any:
    """A valid value for a setting that differs from its default."""
    if path in OTHERS:
        return OTHERS[path]
    annotation = field.annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        return next(choice for choice in typing.get_args(annotation) if choice != field.default)
    if annotation is bool:
        return not field.default
    if annotation is int:
        return (field.default or 50) + 1
    assert str(field.default).endswith("s"), f"add a value for {path} to OTHERS"
    return "3s"


def changed(tmp_path: Path, *paths: str) -> Settings:
    """The sample settings with a different value for each path; for `hosts[]`, of the first worker."""
    raw = raw_settings(tmp_path)
    for path in paths:
        place = raw
        *parents, last = path.replace("hosts[]", "hosts").split(".")
        for part in parents:
            place = place[part][1] if part == "hosts" else place.setdefault(part, {})
        place[last] = other(path, fields()[path])
    return load(raw, tmp_path)


def with_effect(*effects: Effect) -> list[str]:
    return [p for p, field in fields().items() if effect_of(field) in effects and p not in UNTESTED]


@functools.cache
def before(tmp_path: Path) -> graph.Recorder:
    return run(changed(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("effects")


def triggers(recorded: graph.Recorder) -> dict[str, Any]:
    return {name: inputs["triggers"] for name, inputs in recorded.inputs.items() if "triggers" in inputs}


def without_limits(text: str) -> str:
    """A step's text without its timeouts."""
    return re.sub(r"^\w+_SECONDS=.*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", with_effect(Effect.NEW_CLUSTER))
def test_new_cluster_settings_replace_init(folder: Path, path: str) -> None:
    after = run(changed(folder, path))
    assert triggers(after)["master-init"] != triggers(before(folder))["master-init"]


def test_version_change_is_refused(folder: Path) -> None:
    # test_changes.py tests hosts[].role.
    assert with_effect(Effect.REFUSED) == ["cluster.kubernetesVersion"]
    assert cluster_inputs(changed(folder, "cluster.kubernetesVersion")) != cluster_inputs(changed(folder))


@pytest.mark.parametrize("path", with_effect(Effect.NEW_HOST))
def test_new_host_settings_leave_the_cluster(folder: Path, path: str) -> None:
    after, now = run(changed(folder, path)), before(folder)
    assert triggers(after)["master-init"] == triggers(now)["master-init"]
    assert (
        set(after.requests) != set(now.requests)
        or triggers(after)["node1-claim"] != triggers(now)["node1-claim"]
    )


def test_other_settings_replace_nothing(folder: Path) -> None:
    rest = set(Effect) - {Effect.NEW_CLUSTER, Effect.NEW_HOST, Effect.REFUSED}
    after = run(changed(folder, *(path for path in with_effect(*rest) if path not in ALONE)))
    assert triggers(after) == triggers(before(folder))
    assert {name for name in after.requests if "test" not in name} == {
        name for name in before(folder).requests if "test" not in name
    }


def test_settings_without_effect_change_no_host_or_object(folder: Path) -> None:
    after = run(changed(folder, *with_effect(Effect.NOTHING)))
    for name, inputs in before(folder).inputs.items():
        step = name.rpartition("-")[2]
        if "/" in name:
            assert after.inputs[name] == inputs, name
        elif step in REPAIRING - {"init"}:
            assert without_limits(after.inputs[name]["stdin"]) == without_limits(inputs["stdin"]), name
    assert kubeadm.kubelet_config(changed(folder, *with_effect(Effect.NOTHING))) == kubeadm.kubelet_config(
        changed(folder)
    )


@pytest.mark.parametrize("path", with_effect(Effect.IN_PLACE, Effect.ROLLING))
def test_in_place_settings_change_a_step_or_object(folder: Path, path: str) -> None:
    after = run(changed(folder, path))
    now = before(folder)
    differing = [name for name in now.inputs if after.inputs[name] != now.inputs[name]]
    assert [name for name in differing if "/" in name or name.rpartition("-")[2] in {*REPAIRING, "nodes"}]


@pytest.mark.parametrize("path", with_effect(*(set(Effect) - {Effect.NEW_CLUSTER})))
def test_only_proxy_settings_change_kube_proxys_configuration(folder: Path, path: str) -> None:
    differs = kubeadm.proxy_config(changed(folder, path)) != kubeadm.proxy_config(changed(folder))
    # One setting only says how many nodes change at a time.
    assert differs == (path.startswith("proxy.") and path != "proxy.maxUnavailable")
    if differs:
        assert effect_of(fields()[path]) is Effect.ROLLING
