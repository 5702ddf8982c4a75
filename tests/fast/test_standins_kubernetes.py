"""The stand-in for the Kubernetes plugin, without an API server."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from model.kubeconfig import KubeconfigError
from standins import kube_api, kube_ready, kubernetes
from standins.kube_api import Api, Object
from standins.kubernetes import KubernetesPlugin
from standins.server import Failure, Urn
from standins.values import UNKNOWN, Secret
from tests.fast.api_stub import NAME, stub_api, stub_proxy
from tests.fast.certificates import self_signed


def urn(kind: str = "apps/v1:Deployment") -> Urn:
    return Urn(f"urn:pulumi:dev::p::kubernetes:{kind}::web")


def kubeconfig(server: str = "http://127.0.0.1:1", user: str = "{token: t}") -> str:
    return (
        "current-context: c\n"
        "contexts: [{name: c, context: {cluster: k, user: u}}]\n"
        f"clusters: [{{name: k, cluster: {{server: '{server}'}}}}]\n"
        f"users: [{{name: u, user: {user}}}]\n"
    )


def config_diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return dict(asyncio.run(KubernetesPlugin("").diff_config(old, new)).paths)


def diff(old: dict[str, Any], new: dict[str, Any], **options: Any) -> tuple[dict[str, str], bool]:
    plugin = KubernetesPlugin("")
    plugin._options = kubernetes._Options(**options)
    changes = asyncio.run(plugin.diff(urn(), "ns/web", {**old, "__inputs": old}, old, new))
    return dict(changes.paths), changes.delete_first


def thing(kind: str, **more: Any) -> dict[str, Any]:
    version = "apps/v1" if kind in ("Deployment", "DaemonSet") else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "web", "namespace": "ns"}, **more}


# -- the provider


def test_same_cluster_identifier_keeps_objects() -> None:
    old = {"kubeconfig": kubeconfig(), "clusterIdentifier": "one"}
    assert config_diff(old, {**old, "kubeconfig": kubeconfig("http://elsewhere:1")}) == {
        "kubeconfig": "update"
    }
    assert config_diff(old, {**old, "kubeconfig": UNKNOWN}) == {"kubeconfig": "update"}
    assert config_diff(old, dict(old)) == {}


@pytest.mark.parametrize("identifier", ["two", UNKNOWN])
def test_new_cluster_identifier_replaces(identifier: Any) -> None:
    old = {"kubeconfig": kubeconfig(), "clusterIdentifier": "one"}
    assert config_diff(old, {**old, "clusterIdentifier": identifier}) == {
        "clusterIdentifier": "update-replace"
    }


def test_active_cluster_decides_without_identifier() -> None:
    old = {"kubeconfig": Secret(kubeconfig())}
    assert config_diff(old, {"kubeconfig": kubeconfig(user="{token: new}")}) == {"kubeconfig": "update"}
    assert config_diff(old, {"kubeconfig": kubeconfig("http://other:1")}) == {"kubeconfig": "update-replace"}
    assert config_diff(old, {"kubeconfig": UNKNOWN}) == {"kubeconfig": "update-replace"}


def test_adding_an_identifier_replaces_nothing() -> None:
    old = {"kubeconfig": kubeconfig()}
    assert config_diff(old, {**old, "clusterIdentifier": "one"}) == {"clusterIdentifier": "update"}


def test_unsupported_options_are_rejected() -> None:
    with pytest.raises(Failure, match="renderYamlToDirectory"):
        asyncio.run(KubernetesPlugin("").configure({"renderYamlToDirectory": "here"}))
    with pytest.raises(Failure, match="server-side apply"):
        asyncio.run(KubernetesPlugin("").configure({"enableServerSideApply": "false"}))


def test_unreachable_cluster_fails_only_later_operations() -> None:
    async def scenario() -> None:
        plugin = KubernetesPlugin("")
        await plugin.configure({"kubeconfig": kubeconfig()})
        with pytest.raises(Failure, match="unreachable"):
            await plugin.create(urn(), thing("ConfigMap"), 0, preview=False)
        with pytest.raises(Failure, match="DELETE_UNREACHABLE"):
            await plugin.delete(urn(), "ns/web", thing("ConfigMap"), 0)
        await plugin.configure({"kubeconfig": kubeconfig(), "deleteUnreachable": "true"})
        await plugin.delete(urn(), "ns/web", thing("ConfigMap"), 0)
        assert (await plugin.read(urn(), "ns/web", thing("ConfigMap"), {}))[0] == ""

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not: [closed", "YAML"),
        ("just text", "isn't a kubeconfig"),
        ("clusters: []", "no context"),
        (kubeconfig("ftp://x"), "URL"),
        (kubeconfig(user="{exec: {command: aws}}"), "exec"),
        (kubeconfig("https://x", "{client-certificate-data: '!', client-key-data: '!'}"), "base64"),
    ],
)
def test_unusable_kubeconfig_is_explained(text: str, reason: str) -> None:
    with pytest.raises(KubeconfigError, match=reason):
        Api(kube_api.load(text))


# -- objects


def test_check_adds_name_and_drops_server_fields() -> None:
    given = {"metadata": {"uid": "x", "creationTimestamp": None}, "spec": {"replicas": 1.0, "paused": None}}
    inputs, failures = asyncio.run(KubernetesPlugin("").check(urn(), {}, given))
    assert failures == []
    assert (inputs["apiVersion"], inputs["kind"]) == ("apps/v1", "Deployment")
    assert inputs["metadata"]["name"].startswith("web-")
    assert inputs["metadata"]["annotations"] == {"pulumi.com/autonamed": "true"}
    assert "uid" not in inputs["metadata"]
    assert inputs["spec"] == {"replicas": 1.0}
    again, _ = asyncio.run(KubernetesPlugin("").check(urn(), inputs, given))
    assert again["metadata"]["name"] == inputs["metadata"]["name"]


def test_object_of_an_unreachable_cluster_keeps_its_namespace() -> None:
    given = {"metadata": {"name": "web"}}
    inputs, _ = asyncio.run(KubernetesPlugin("").check(urn(), thing("Deployment"), given))
    assert inputs["metadata"]["namespace"] == "ns"


def test_secrets_data_becomes_secret_if_given_openly() -> None:
    inputs, _ = asyncio.run(KubernetesPlugin("").check(urn("core/v1:Secret"), {}, {"stringData": {"a": "b"}}))
    assert inputs["stringData"] == Secret({"a": "b"})


@pytest.mark.parametrize("kind", ["yaml/v2:ConfigGroup", "apps/v1:DeploymentPatch", "core/v1:ConfigMapList"])
def test_unsupported_kinds_are_rejected(kind: str) -> None:
    with pytest.raises(Failure, match="doesn't support"):
        asyncio.run(KubernetesPlugin("").check(urn(kind), {}, {}))


def test_kind_without_readiness_check_needs_skip_await() -> None:
    given: dict[str, Any] = {"spec": {"serviceName": "x"}}
    _, failures = asyncio.run(KubernetesPlugin("").check(urn("apps/v1:StatefulSet"), {}, given))
    assert "skipAwait" in failures[0][0]
    given["metadata"] = {"annotations": {"pulumi.com/skipAwait": "true"}}
    assert asyncio.run(KubernetesPlugin("").check(urn("apps/v1:StatefulSet"), {}, given))[1] == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            thing("Deployment", spec={"replicas": 1.0}),
            thing("Deployment", spec={"replicas": 2.0}),
            {"spec.replicas": "update"},
        ),
        (
            thing("Deployment", spec={"selector": {"matchLabels": {"a": "1"}}}),
            thing("Deployment", spec={"selector": {"matchLabels": {"a": "2"}}}),
            {"spec.selector.matchLabels.a": "update-replace"},
        ),
        (
            thing("ConfigMap", data={"a": "1"}),
            thing("ConfigMap", data={"a": "2"}),
            {"data.a": "update-replace"},
        ),
        (thing("ConfigMap", data={"a": "1"}), thing("ConfigMap"), {"data": "delete-replace"}),
        (
            thing("Service", spec={"clusterIP": "a"}),
            thing("Service", spec={"clusterIP": "b"}),
            {"spec.clusterIP": "update-replace"},
        ),
        (thing("ConfigMap", data=Secret({"a": "1"})), thing("ConfigMap", data={"a": "1"}), {}),
    ],
)
def test_change_updates_or_replaces(
    old: dict[str, Any], new: dict[str, Any], expected: dict[str, str]
) -> None:
    assert diff(old, new)[0] == expected


def test_mutable_config_maps_and_secrets_update_in_place() -> None:
    for kind, option in (("ConfigMap", "mutable_config_maps"), ("Secret", "mutable_secrets")):
        old, new = thing(kind, data={"a": "1"}), thing(kind, data={"a": "2"})
        assert diff(old, new, **{option: True})[0] == {"data.a": "update"}
        frozen = {**new, "immutable": True}
        assert diff({**old, "immutable": True}, frozen, **{option: True})[0] == {"data.a": "update-replace"}


def test_replacement_with_same_name_deletes_first() -> None:
    old = thing("ConfigMap", data={"a": "1"})
    assert diff(old, thing("ConfigMap", data={"a": "2"}))[1]
    renamed = thing("ConfigMap", data={"a": "1"})
    renamed["metadata"] = {"name": "other", "namespace": "ns"}
    assert diff(old, renamed) == ({"metadata.name": "update-replace"}, False)


def test_autonamed_object_is_not_deleted_first() -> None:
    old, new = thing("ConfigMap", data={"a": "1"}), thing("ConfigMap", data={"a": "2"})
    for each in (old, new):
        each["metadata"]["annotations"] = {"pulumi.com/autonamed": "true"}
    assert not diff(old, new)[1]


def test_created_fields_move_to_the_apply_manager() -> None:
    sent: list[Any] = []

    class Fake:
        def request(self, method: str, path: str, body: Any, *, content_type: str) -> Object:
            sent.append((method, path, body, content_type))
            return {"patched": True}

    live = {
        "metadata": {
            "resourceVersion": "7",
            "managedFields": [
                {"manager": "pulumi-kubernetes", "operation": "Update", "fieldsV1": {"f:data": {"f:a": {}}}},
                {"manager": "ours", "operation": "Apply", "fieldsV1": {"f:data": {"f:b": {}}}},
                {"manager": "kubelet", "operation": "Update", "subresource": "status", "fieldsV1": {}},
            ],
        }
    }
    assert kubernetes._take_over_fields(Fake(), "/path", live, "ours") == {"patched": True}  # type: ignore[arg-type]
    ((_, _, patch, kind),) = sent
    assert kind == "application/json-patch+json"
    managers = [(entry["manager"], entry["operation"]) for entry in patch[0]["value"]]
    assert managers == [("ours", "Apply"), ("kubelet", "Update")]
    assert patch[0]["value"][0]["fieldsV1"] == {"f:data": {"f:a": {}, "f:b": {}}}
    assert patch[1]["value"] == "7"


def test_refresh_keeps_only_declared_fields() -> None:
    live = {
        "a": {"set": 2, "defaulted": 3},
        "list": [{"name": "y", "v": 2, "x": 0}, {"name": "x", "v": 1}, {"name": "injected"}],
    }
    shape = {"a": {"set": 1}, "list": [{"name": "x", "v": 0}, {"name": "y", "v": 0}], "gone": 1}
    assert kubernetes._pruned(live, shape) == {
        "a": {"set": 2},
        "list": [{"name": "y", "v": 2}, {"name": "x", "v": 1}],
    }


# -- readiness


class EmptyApi:
    """An API without any objects."""

    def request(self, *_: Any, **__: Any) -> Object:
        return {"items": []}


def missing(live: Object) -> str | None:
    return kube_ready.unready(EmptyApi(), live)  # type: ignore[arg-type]


def rollout(**status: Any) -> Object:
    live = thing("Deployment", spec={"replicas": 2, "selector": {"matchLabels": {"a": "b"}}})
    live["metadata"]["generation"] = 3
    live["status"] = {
        "observedGeneration": 3,
        "replicas": 2,
        "updatedReplicas": 2,
        "availableReplicas": 2,
        "conditions": [{"type": "Available", "status": "True"}, {"type": "Progressing", "status": "True"}],
        **status,
    }
    return live


def test_finished_rollout_is_ready() -> None:
    assert missing(rollout()) is None


@pytest.mark.parametrize(
    "status",
    [
        {"observedGeneration": 2},
        {"availableReplicas": 1},
        {"updatedReplicas": 1},
        {"replicas": 3},
        {"conditions": [{"type": "Progressing", "status": "False", "reason": "Deadline", "message": "late"}]},
    ],
)
def test_unfinished_rollout_is_explained(status: dict[str, Any]) -> None:
    assert missing(rollout(**status))


def test_daemon_set_needs_every_node() -> None:
    live = thing("DaemonSet", spec={})
    live["metadata"]["generation"] = 1
    names = ("currentNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady")
    live["status"] = {"observedGeneration": 1, "desiredNumberScheduled": 2, **dict.fromkeys(names, 2)}
    assert missing(live) is None
    live["status"]["numberReady"] = 1
    assert "numberReady 1/2" in str(missing(live))
    assert missing({**live, "status": {}})


def test_other_kinds_are_ready_once_they_exist() -> None:
    assert missing(thing("ConfigMap")) is None


def test_client_key_is_not_left_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key, pem = self_signed("admin")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    data = [base64.b64encode(part).decode() for part in (pem, secret)]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Api(
        kube_api.load(
            kubeconfig("https://x", f"{{client-certificate-data: {data[0]}, client-key-data: {data[1]}}}")
        )
    )
    assert list(tmp_path.iterdir()) == []


def test_requests_use_the_proxy_as_the_plugin_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_api(tmp_path) as server, stub_proxy(server.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        Api(kube_api.load(server.kubeconfig(NAME))).request("POST", "/api", {})
        assert proxy.tunnels == [f"{NAME}:{server.port}"]
        assert server.requests == ["POST /api"]
