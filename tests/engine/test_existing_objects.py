"""The program takes over existing objects of its manifests, and fields that others have set."""

from __future__ import annotations

import json

from common.paths import project_dir
from tests.engine.api_server import ApiServer
from tests.engine.stack import Stack

# As in flannel's DaemonSet, the API server adds a default to one of the fields, which then conflicts with
# another field manager. A PodTemplate runs nothing, so there is nothing to wait for.
PROGRAM = """
import json, os, sys
sys.path.insert(0, {project!r})
import pulumi, pulumi_kubernetes
from components.manifests import Object
from model.documents import Document

given = json.loads(os.environ["GIVEN"])
provider = pulumi_kubernetes.Provider("p", kubeconfig=given["kubeconfig"], upsert_existing_objects=True)
name = {{"name": "NODE_NAME", "valueFrom": {{"fieldRef": {{"fieldPath": "spec.nodeName"}}}}}}
body = {{
    "apiVersion": "v1", "kind": "PodTemplate", "metadata": {{"name": "t", "namespace": given["namespace"]}},
    "template": {{"metadata": {{"labels": {{"a": "b"}}}},
                  "spec": {{"containers": [{{"name": "c", "image": given["image"], "env": [name]}}]}}}},
}}
Object("t", Document("t", "kubernetes:core/v1:PodTemplate", body), pulumi.ResourceOptions(provider=provider))
"""


def program(stack: Stack, cluster: ApiServer, namespace: str, image: str) -> Stack:
    stack.extra["GIVEN"] = json.dumps(
        {"kubeconfig": cluster.kubeconfig, "namespace": namespace, "image": image}
    )
    return stack.program(PROGRAM.format(project=str(project_dir())))


def test_object_left_by_an_interrupted_run_is_adopted(stack: Stack, cluster: ApiServer) -> None:
    namespace = cluster.namespace()
    program(stack, cluster, namespace, "one").up()
    [template] = [entry for entry in stack.state() if entry["type"].endswith(":PodTemplate")]
    stack.forget(template["urn"])
    run = program(stack, cluster, namespace, "two").up()
    assert run.ops == ["create t"]
    live = cluster.call("GET", f"/api/v1/namespaces/{namespace}/podtemplates/t")
    assert live["template"]["spec"]["containers"][0]["image"] == "two"
    assert stack.up().ops == []


def test_next_change_overrides_fields_set_by_others(stack: Stack, cluster: ApiServer) -> None:
    namespace = cluster.namespace()
    program(stack, cluster, namespace, "one").up()
    path = f"/api/v1/namespaces/{namespace}/podtemplates/t"
    theirs = cluster.call("GET", path)
    theirs["template"]["spec"]["containers"][0]["image"] = "theirs"
    theirs["metadata"] = {"name": "t"}
    theirs |= {"apiVersion": "v1", "kind": "PodTemplate"}
    cluster.call("PATCH", f"{path}?fieldManager=someone&force=true", theirs, "application/apply-patch+yaml")
    program(stack, cluster, namespace, "two").up()
    assert cluster.call("GET", path)["template"]["spec"]["containers"][0]["image"] == "two"
