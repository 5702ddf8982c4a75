"""The objects of the manifests are the program's own, whoever else has set what it says of them."""

from __future__ import annotations

import json

from common.paths import project_dir
from tests.engine.api_server import ApiServer
from tests.engine.stack import Stack

# Its pods get a field that the API server fills up with a default, as those of flannel's DaemonSet do: for
# another field manager that is a conflict. Nothing runs, so nothing is waited for.
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


def test_an_object_that_a_cut_off_run_has_left_is_taken_on_and_changed(
    stack: Stack, cluster: ApiServer
) -> None:
    namespace = cluster.namespace()
    program(stack, cluster, namespace, "one").up()
    [template] = [entry for entry in stack.state() if entry["type"].endswith(":PodTemplate")]
    stack.forget(template["urn"])
    run = program(stack, cluster, namespace, "two").up()
    assert run.ops == ["create t"]
    live = cluster.call("GET", f"/api/v1/namespaces/{namespace}/podtemplates/t")
    assert live["template"]["spec"]["containers"][0]["image"] == "two"
    assert stack.up().ops == []


def test_what_somebody_else_has_set_gives_way_to_the_next_change(stack: Stack, cluster: ApiServer) -> None:
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
