"""Reading manifests, and the project's own manifests."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from model.documents import Document, ManifestError, Parameter, load, parse
from tests.stacks import PROJECT

MANIFESTS = PROJECT / "manifests"
FLANNEL: dict[str, Parameter] = {
    "image": "registry.example/flannel:v1",
    "cni_plugin_image": "registry.example/flannel-cni-plugin:v1",
    "pod_subnet": "10.244.0.0/16",
    "backend": "vxlan",
    "interface": "--iface=$(HOST_IP)",
    "max_unavailable": 1,
    "resync_seconds": 60,
    "api_host": "192.168.166.101",
    "api_port": 6443,
}
NGINX: dict[str, Parameter] = {
    "image": "registry.example/nginx:1",
    "replicas": 2,
    "node_port": 30080,
    "spread": 2,
    "pause": 16,
    "grace": 46,
}

CONFIG = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: default}
data:
"""


def by_name(documents: tuple[Document, ...]) -> dict[str, Any]:
    return {document.name: document.body for document in documents}


def data(lines: str, **parameters: Parameter) -> Any:
    (document,) = parse(CONFIG + lines, parameters, "test")
    return document.body["data"]


def test_documents_have_stable_names_types_and_order() -> None:
    flannel = load(MANIFESTS / "flannel.yaml", FLANNEL)
    assert [(document.name, document.type) for document in flannel] == [
        ("Namespace/kube-flannel", "kubernetes:core/v1:Namespace"),
        ("ServiceAccount/kube-flannel/flannel", "kubernetes:core/v1:ServiceAccount"),
        ("ClusterRole/flannel", "kubernetes:rbac.authorization.k8s.io/v1:ClusterRole"),
        ("ClusterRoleBinding/flannel", "kubernetes:rbac.authorization.k8s.io/v1:ClusterRoleBinding"),
        ("ConfigMap/kube-flannel/flannel", "kubernetes:core/v1:ConfigMap"),
        ("DaemonSet/kube-flannel/flannel", "kubernetes:apps/v1:DaemonSet"),
    ]
    nginx = load(MANIFESTS / "nginx.yaml", NGINX)
    assert [document.name for document in nginx] == [
        "Service/default/nginx",
        "Service/default/nginx-nodeport",
        "Deployment/default/nginx",
    ]


def test_document_has_kind_version_and_namespace() -> None:
    document = load(MANIFESTS / "nginx.yaml", NGINX)[2]
    assert (document.kind, document.api_version) == ("Deployment", "apps/v1")
    assert document.namespace == "default"
    assert load(MANIFESTS / "flannel.yaml", FLANNEL)[0].namespace is None


def test_unquoted_parameter_keeps_its_type() -> None:
    assert data("  {a: 1}".replace("{a: 1}", "a: ${n}\n  b: '${n}'\n  c: x${n}"), n=5) == {
        "a": 5,
        "b": "5",
        "c": "x5",
    }
    assert data("  a: ${yes}\n  b: '${yes}'", yes=True) == {"a": True, "b": "true"}


def test_parameter_cant_change_the_structure() -> None:
    assert data("  a: ${x}", x="1\nb: {c: d}") == {"a": "1\nb: {c: d}"}
    assert data("  a: ${x}", x="${y}") == {"a": "${y}"}


@pytest.mark.parametrize(
    ("text", "parameters", "words"),
    [
        (CONFIG + "  a: ${x}", {}, r"\$\{x\} has no value"),
        (CONFIG + "  a: b", {"x": 1}, "x isn't used"),
        (CONFIG + "  a: ${X}", {}, r"not a valid parameter: \$\{X\}"),
        (CONFIG + "  a: '${x'", {"x": 1}, "not a valid parameter"),
        ("a: [", {}, "not valid YAML"),
        ("- a", {}, "document 1: not an object"),
        ("kind: Service", {}, "no apiVersion"),
        ("apiVersion: v1", {}, "no kind"),
        ("apiVersion: v1\nkind: Service", {}, "no metadata.name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}", {}, "no metadata.namespace"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}", {}, "can't have a namespace"),
        (CONFIG + "  a: b\n---\n" + CONFIG + "  a: c", {}, "more than once: ConfigMap/default/a"),
    ],
)
def test_unusable_manifest_is_named(text: str, parameters: dict[str, Parameter], words: str) -> None:
    with pytest.raises(ManifestError, match=rf"^some\.yaml.*{words}"):
        parse(text, parameters, "some.yaml")


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=re.escape(f"{tmp_path}/gone.yaml: can't be read")):
        load(tmp_path / "gone.yaml")


def test_empty_documents_are_skipped() -> None:
    assert len(parse(f"---\n---\n{CONFIG}  a: b\n---\n", {}, "test")) == 1


def test_documents_are_plain_json() -> None:
    for document in (*load(MANIFESTS / "flannel.yaml", FLANNEL), *load(MANIFESTS / "nginx.yaml", NGINX)):
        plain = json.loads(json.dumps(document.body))
        assert plain == document.body
        assert all(type(value) is not str or "${" not in value for value in leaves(plain))
        # Pulumi's serializer rejects subclasses of str.
        assert {type(value) for value in leaves(document.body)} <= {str, int, bool, float, type(None)}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def flannel_container() -> Any:
    daemon = by_name(load(MANIFESTS / "flannel.yaml", FLANNEL))["DaemonSet/kube-flannel/flannel"]
    return daemon["spec"]["template"]["spec"]["containers"][0]


def test_flannel_uses_the_control_planes_own_address() -> None:
    environment = {variable["name"]: variable.get("value") for variable in flannel_container()["env"]}
    assert environment["KUBERNETES_SERVICE_HOST"] == "192.168.166.101"
    assert environment["KUBERNETES_SERVICE_PORT"] == "6443"


def test_flannel_selects_its_interface_by_address() -> None:
    arguments, variables = flannel_container()["args"], flannel_container()["env"]
    assert "--iface=$(HOST_IP)" in arguments
    assert {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}} in variables
    assert not [argument for argument in arguments if "can-reach" in argument]


def test_flannels_configuration_has_network_and_backend() -> None:
    objects = by_name(load(MANIFESTS / "flannel.yaml", FLANNEL | {"backend": "host-gw"}))
    files = objects["ConfigMap/kube-flannel/flannel"]["data"]
    network = json.loads(files["net-conf.json"])
    assert (network["Network"], network["Backend"]) == ("10.244.0.0/16", {"Type": "host-gw"})
    plugins = [plugin["type"] for plugin in json.loads(files["cni-conf.json"])["plugins"]]
    assert plugins == ["flannel", "portmap"]


def test_changed_flannel_configuration_creates_new_pods() -> None:
    def template(**changes: Parameter) -> Any:
        objects = by_name(load(MANIFESTS / "flannel.yaml", FLANNEL | changes))
        return objects["DaemonSet/kube-flannel/flannel"]["spec"]["template"]

    assert template() != template(backend="host-gw")
    assert template() != template(pod_subnet="10.245.0.0/16")


def test_flannel_tolerates_all_taints() -> None:
    daemon = by_name(load(MANIFESTS / "flannel.yaml", FLANNEL))["DaemonSet/kube-flannel/flannel"]
    pod = daemon["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["hostNetwork"] is True


def test_nginx_is_spread_over_workers() -> None:
    deployment = by_name(load(MANIFESTS / "nginx.yaml", NGINX))["Deployment/default/nginx"]
    assert deployment["spec"]["replicas"] == 2
    (constraint,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["minDomains"] == 2
    # minDomains is only valid with this.
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    # Otherwise the tainted control plane would count as an empty domain, and a second pod on a worker would
    # never start.
    assert constraint["nodeTaintsPolicy"] == "Honor"


def test_nginx_serves_until_kernels_have_dropped_it() -> None:
    spec = by_name(load(MANIFESTS / "nginx.yaml", NGINX))["Deployment/default/nginx"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 16
    # The pause counts towards it.
    assert pod["terminationGracePeriodSeconds"] == 46


def test_nginx_has_clusterip_and_nodeport_services() -> None:
    objects = by_name(load(MANIFESTS / "nginx.yaml", NGINX))
    pod = objects["Deployment/default/nginx"]["spec"]["template"]
    names = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    for name, kind in (("nginx", "ClusterIP"), ("nginx-nodeport", "NodePort")):
        service = objects[f"Service/default/{name}"]["spec"]
        assert service["type"] == kind
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert {port["targetPort"] for port in service["ports"]} <= names
    assert objects["Service/default/nginx-nodeport"]["spec"]["ports"][0]["nodePort"] == 30080


def test_cni_configuration_waits_for_flannels_subnet(tmp_path: Path) -> None:
    hook = flannel_container()["lifecycle"]["postStart"]["exec"]["command"]
    for place in ("/run/flannel", "/etc/kube-flannel", "/etc/cni/net.d"):
        (tmp_path / place.lstrip("/")).mkdir(parents=True)
        hook = [word.replace(place, str(tmp_path / place.lstrip("/"))) for word in hook]
    (tmp_path / "etc/kube-flannel/cni-conf.json").write_text("{}\n")
    made = tmp_path / "etc/cni/net.d/10-flannel.conflist"
    with subprocess.Popen(hook) as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=1.5)
        assert not made.exists()
        (tmp_path / "run/flannel/subnet.env").write_text("FLANNEL_SUBNET=10.244.1.1/24\n")
        assert running.wait(timeout=20) == 0
    assert made.read_text() == "{}\n"
    mounts = {mount["mountPath"] for mount in flannel_container()["volumeMounts"]}
    assert {"/run/flannel", "/etc/kube-flannel", "/etc/cni/net.d"} <= mounts
