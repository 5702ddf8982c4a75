"""Behaviour of the Kubernetes provider's objects that this project relies on; see conformance.py."""

from __future__ import annotations

import time

import pytest

from tests.engine.api_server import ApiServer
from tests.engine.conformance import objects
from tests.engine.stack import Stack

# -- create, update, replace, delete


def test_object_is_created_updated_in_place_and_deleted(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    o = options(enable_config_map_mutable=True)
    c = config_map("c", o, {"a": "1", LINE}, labels={"x": "y"})
    pulumi.export("uid", c.metadata.uid)
    pulumi.export("id", c.id)
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("LINE", '"b": "2"'))
    assert stack.up().ops == ["create c"]
    first = cluster.call("GET", path)
    assert first["data"] == {"a": "1", "b": "2"}
    assert (stack.output("id"), stack.output("uid")) == (f"{namespace}/c", first["metadata"]["uid"])
    assert stack.up().ops == []
    # A field that the program set and no longer sets is removed.
    objects(stack, cluster, namespace, text.replace("LINE", '"d": "4"'))
    assert stack.preview().ops == ["update c"]
    assert stack.up().ops == ["update c"]
    second = cluster.call("GET", path)
    assert second["data"] == {"a": "1", "d": "4"}
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    stack.destroy()
    assert cluster.call("GET", path) == {}


def test_fields_of_other_managers_stay(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = 'config_map("c", options(enable_config_map_mutable=True), {"a": "VALUE"})\n'
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    cluster.call("PATCH", path, {"data": {"theirs": "x"}}, "application/merge-patch+json")
    objects(stack, cluster, namespace, text.replace("VALUE", "2")).up()
    assert cluster.call("GET", path)["data"] == {"a": "2", "theirs": "x"}


def test_conflict_names_the_other_manager_and_is_retried(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(enable_config_map_mutable=True), {"a": "VALUE"})\n'
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "theirs"}}
    cluster.call("PATCH", f"{path}?fieldManager=someone&force=true", theirs, "application/apply-patch+yaml")
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    messages = "\n".join(stack.up(fails=True).messages)
    assert "Server-Side Apply field conflict" in messages
    assert "someone" in messages
    assert cluster.call("GET", path)["data"] == {"a": "theirs"}
    # Once they release the field, the next run succeeds without a change to the program.
    del theirs["data"]
    cluster.call("PATCH", f"{path}?fieldManager=someone&force=true", theirs, "application/apply-patch+yaml")
    stack.up()
    assert cluster.call("GET", path)["data"] == {"a": "2"}


def test_existing_object_is_not_taken_over(
    stack: Stack, cluster: ApiServer, namespace: str, stand_ins: set[str]
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.call("POST", path, {"metadata": {"name": "c"}, "data": {"a": "theirs"}})
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"b": "ours"})\n',
    )
    run = stack._run("up", "--yes", "--skip-preview", "--json")
    if run.status == 0 and "kubernetes" not in stand_ins:
        pytest.skip("Pulumi's plugin before 4.29 takes over existing objects")
    assert "already exists" in "\n".join(run.messages)
    assert cluster.call("GET", f"{path}/c")["data"] == {"a": "theirs"}
    assert stack.state() == []


def test_upsert_takes_over_an_existing_object(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.call("POST", path, {"metadata": {"name": "c"}, "data": {"a": "theirs"}})
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(upsert_existing_objects=True), {"b": "ours"})\n',
    ).up()
    assert cluster.call("GET", f"{path}/c")["data"] == {"a": "theirs", "b": "ours"}


def test_new_name_replaces(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    k8s.core.v1.ConfigMap("c", metadata={"name": "NAME", "namespace": namespace}, data={"a": "1"},
        opts=options())
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    objects(stack, cluster, namespace, text.replace("NAME", "one")).up()
    objects(stack, cluster, namespace, text.replace("NAME", "two"))
    ops = stack.up().ops
    assert ops.index("create-replacement c") < ops.index("delete-replaced c")
    assert cluster.call("GET", f"{path}/one") == {}
    assert cluster.call("GET", f"{path}/two")["data"] == {"a": "1"}


def test_immutable_config_map_is_deleted_before_replacement(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(), {"a": "VALUE"})\n'
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    ops = stack.up().ops
    assert ops.index("delete-replaced c") < ops.index("create-replacement c")
    assert cluster.call("GET", f"/api/v1/namespaces/{namespace}/configmaps/c")["data"] == {"a": "2"}


def test_changed_selector_deletes_deployment_before_replacement(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'deployment("d", options(), labels={"app": "LABEL"})\n'
    with cluster.pods_ready(namespace):
        objects(stack, cluster, namespace, text.replace("LABEL", "one")).up()
        objects(stack, cluster, namespace, text.replace("LABEL", "two"))
        assert "replace d" in stack.preview().ops
        ops = stack.up().ops
    assert ops.index("delete-replaced d") < ops.index("create-replacement d")
    live = cluster.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/d")
    assert live["spec"]["selector"]["matchLabels"] == {"app": "two"}


def test_autonamed_object_keeps_its_name(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    c = k8s.core.v1.ConfigMap("auto", metadata={"namespace": namespace}, data={"a": "VALUE"},
        opts=options(enable_config_map_mutable=True))
    pulumi.export("name", c.metadata.name)
    """
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    name = stack.output("name")
    assert name.startswith("auto-")
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    assert stack.up().ops == ["update auto"]
    assert stack.output("name") == name


def test_only_namespaced_objects_get_the_default_namespace(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    o = options()
    c = k8s.core.v1.ConfigMap("c", metadata={"name": namespace}, data={"a": "1"}, opts=o)
    r = k8s.rbac.v1.ClusterRole("r", metadata={"name": namespace},
        rules=[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}], opts=o)
    pulumi.export("ids", pulumi.Output.all(c.id, r.id))
    """
    objects(stack, cluster, namespace, text).up()
    assert stack.output("ids") == [f"default/{namespace}", namespace]
    assert stack.up().ops == []
    stack.destroy()


def test_delete_succeeds_if_the_object_is_gone(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"a": "1"})\n',
    ).up()
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/configmaps/c")
    stack.destroy()
    assert stack.state() == []


def test_deletion_waits_for_finalizers_until_timeout(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    config_map("c", options(timeouts(delete="3s")), {"a": "1"})
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text).up()
    cluster.call(
        "PATCH", path, {"metadata": {"finalizers": ["example.org/hold"]}}, "application/merge-patch+json"
    )
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
    stack.destroy()
    assert stack.state() == []


# -- waiting


def test_create_waits_for_a_deployment(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        d = deployment("d", options(), replicas=2)
        pulumi.export("available", d.status.available_replicas)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("available") == 2


def test_unready_deployment_fails_and_is_kept(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    deployment("d", options(timeouts(create="4s", update="60s")))
    """
    objects(stack, cluster, namespace, text)
    run = stack.up(fails=True)
    assert "failed to fully initialize or become live" in "\n".join(run.messages)
    assert "timed out waiting to be Ready" in "\n".join(run.messages)
    assert [entry["id"] for entry in stack.state()] == [f"{namespace}/d"]
    # The next run waits again, in an update.
    with cluster.pods_ready(namespace):
        assert stack.up().ops == ["update d"]
    assert stack.up().ops == []


def test_timeout_annotation_limits_the_wait(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'deployment("d", options(), metadata={"annotations": {"pulumi.com/timeoutSeconds": "3"}})\n',
    )
    begun = time.monotonic()
    stack.up(fails=True)
    assert time.monotonic() - begun < 90


def test_skip_await_skips_readiness_and_workload_deletion(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        note = {"annotations": {"pulumi.com/skipAwait": "true"}}
        o = options(timeouts(create="60s"))
        deployment("d", o, metadata=note)
        k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace, **note},
            spec={"selector": {"app": "none"}, "ports": [{"port": 80}]}, opts=o)
        """,
    )
    assert len(stack.up().ops) == 2
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/d"
    cluster.call(
        "PATCH", path, {"metadata": {"finalizers": ["example.org/hold"]}}, "application/merge-patch+json"
    )
    stack.destroy()
    assert cluster.call("GET", path)["metadata"]["deletionTimestamp"]
    cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")


def test_create_waits_for_a_services_pods(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        o = options()
        d = deployment("d", o)
        s = k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace},
            spec={"selector": {"app": "d"}, "ports": [{"port": 80}]},
            opts=pulumi.ResourceOptions(provider=o.provider, depends_on=[d]))
        pulumi.export("ip", s.spec.cluster_ip)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("ip").startswith("10.0.")
    assert stack.up().ops == []


def test_create_waits_for_a_daemon_set(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
        s = k8s.apps.v1.DaemonSet("s", metadata={"name": "s", "namespace": namespace},
            spec={"selector": {"matchLabels": {"a": "b"}}, "template": pod},
            opts=options())
        pulumi.export("ready", s.status.number_ready)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("ready") == 1
