"""Behaviour of the Kubernetes provider itself that this project relies on; see conformance.py."""

from __future__ import annotations

from tests.engine.api_server import ApiServer
from tests.engine.conformance import objects
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack
from tests.local_ports import closed_port


def test_preview_plans_objects_with_unknown_kubeconfig(
    stack: Stack, cluster: ApiServer, namespace: str, host: SshServer
) -> None:
    text = """
    from pulumi_command import remote
    there = remote.ConnectionArgs(
        host="127.0.0.1", port=given["port"], host_key=given["host_key"], private_key=given["private_key"])
    secret = remote.Command("kubeconfig", connection=there, create="cat", stdin=given["kubeconfig"],
        logging=remote.Logging.NONE, add_previous_output_in_env=False,
        opts=pulumi.ResourceOptions(additional_secret_outputs=["stdout"]))
    config_map("c", options(kubeconfig=secret.stdout, cluster_identifier=secret.id), {"a": "1"})
    """
    about = {"port": host.port, "host_key": host.host_key, "private_key": host.private_key}
    objects(stack, cluster, namespace, text, **about)
    assert stack.preview().ops == ["create kubeconfig", "create c"]
    assert sorted(stack.up().ops) == ["create c", "create kubeconfig"]
    assert stack.up().ops == []


def test_new_kubeconfig_for_same_cluster_replaces_nothing(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(), {"a": "1"})\n'
    objects(stack, cluster, namespace, text).up()
    other = cluster.kubeconfig_for(cluster.url.replace("127.0.0.1", "localhost"), "renamed")
    objects(stack, cluster, namespace, text, kubeconfig=other)
    assert stack.preview().ops == []
    assert stack.up().ops == []


def test_new_cluster_identifier_replaces_objects(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = 'config_map("c", options(cluster_identifier="WHICH"), {"a": "1"})\n'
    objects(stack, cluster, namespace, text.replace("WHICH", "one")).up()
    objects(stack, cluster, namespace, text.replace("WHICH", "two"))
    assert "replace c" in stack.preview().ops


def test_new_kubeconfig_without_identifier_replaces_objects(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(cluster_identifier=None), {"a": "1"})\n'
    objects(stack, cluster, namespace, text).up()
    other = cluster.kubeconfig_for(cluster.url.replace("127.0.0.1", "localhost"))
    objects(stack, cluster, namespace, text, kubeconfig=other)
    assert "replace c" in stack.preview().ops


def test_objects_of_unreachable_cluster_need_delete_unreachable(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(delete_unreachable=FLAG), {"a": "1"})\n'
    gone = cluster.kubeconfig_for(f"https://127.0.0.1:{closed_port()}")
    objects(stack, cluster, namespace, text.replace("FLAG", "False")).up()
    # Only the provider changes: the cluster "moves" to a closed port.
    objects(stack, cluster, namespace, text.replace("FLAG", "False"), kubeconfig=gone).up(
        "--target", "**cluster"
    )
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    objects(stack, cluster, namespace, text.replace("FLAG", "True"), kubeconfig=gone).up(
        "--target", "**cluster"
    )
    stack.destroy()
    assert stack.state() == []


def test_secrets_are_encrypted_in_state(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        o = options(kubeconfig=pulumi.Output.secret(given["kubeconfig"]))
        k8s.core.v1.Secret("s", metadata={"name": "s", "namespace": namespace},
            string_data={"key": "hidden-treasure"}, opts=o)
        config_map("c", o, {"open": "visible", "closed": pulumi.Output.secret("hidden-map")})
        """,
    )
    run = stack.up()
    raw = stack.raw_state()
    assert "visible" in raw
    for text in (raw, run.text):
        assert "hidden-treasure" not in text
        assert "aGlkZGVuLXRyZWFzdXJl" not in text  # in base64, as the API stores it
        assert "hidden-map" not in text
        assert cluster.token not in text
    assert stack.up().ops == []


def test_refresh_finds_drift_and_next_run_corrects_it(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(enable_config_map_mutable=True), {"a": "1"})\n',
    ).up()
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    cluster.call(
        "PATCH",
        f"{path}?fieldManager=pulumi-kubernetes",
        {"data": {"a": "drifted"}},
        "application/merge-patch+json",
    )
    assert stack.up().ops == []
    stack.refresh()
    assert stack.up().ops == ["update c"]
    assert cluster.call("GET", path)["data"] == {"a": "1"}


def test_refresh_removes_missing_objects_from_state(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"a": "1"})\n',
    ).up()
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/configmaps/c")
    stack.refresh()
    assert stack.state() == []
    assert stack.up().ops == ["create c"]


def test_rejected_object_is_not_stored(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace},
            spec={"ports": [{"port": 99999}]},
            opts=options())
        """,
    )
    assert "99999" in "\n".join(stack.up(fails=True).messages)
    assert stack.state() == []


def test_preview_validates_objects_on_the_server(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    note = {"pulumi.com/skipAwait": "true"}
    k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace, "annotations": note},
        spec={"ports": [{"port": PORT}]}, opts=options())
    """
    objects(stack, cluster, namespace, text.replace("PORT", "99999"))
    assert "99999" in stack.preview(fails=True).text
    objects(stack, cluster, namespace, text.replace("PORT", "80")).up()
    objects(stack, cluster, namespace, text.replace("PORT", "99999"))
    assert "99999" in stack.preview(fails=True).text
    assert cluster.call("GET", f"/api/v1/namespaces/{namespace}/services/s")["spec"]["ports"][0]["port"] == 80
