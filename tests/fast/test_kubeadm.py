"""kubeadm's configuration files, and the values read from its kubeconfig."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import string
import subprocess
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from model import kubeadm
from model.field_types import NODE_PREFIX
from model.kubeconfig import Kubeconfig, KubeconfigError
from tests.fast.certificates import self_signed
from tests.fast.sample_settings import settings_with

TOKEN = "abcdef.0123456789abcdef"
CA_HASH = "sha256:" + "a1" * 32


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_every_control_plane_component_gets_the_environment() -> None:
    settings = settings_with(cluster={"extraEnvs": {"NO_PROXY": "10.0.0.0/8"}})
    cluster = documents(kubeadm.init_config(settings))["ClusterConfiguration"]
    components = (
        cluster["apiServer"],
        cluster["controllerManager"],
        cluster["scheduler"],
        cluster["etcd"]["local"],
    )
    for component in components:
        assert component["extraEnvs"] == [{"name": "NO_PROXY", "value": "10.0.0.0/8"}]


def test_components_have_both_arguments_and_environment() -> None:
    cluster = {"slowHosts": True, "leaderElection": False, "extraEnvs": {"GOMAXPROCS": "1"}}
    written = documents(kubeadm.init_config(settings_with(cluster=cluster)))["ClusterConfiguration"]
    wanted = [{"name": "GOMAXPROCS", "value": "1"}]
    assert written["scheduler"] == {
        "extraArgs": [{"name": "leader-elect", "value": "false"}],
        "extraEnvs": wanted,
    }
    assert written["etcd"]["local"] == {
        "extraArgs": [
            {"name": "heartbeat-interval", "value": "500"},
            {"name": "election-timeout", "value": "5000"},
            {"name": "watch-progress-notify-interval", "value": "60s"},
        ],
        "extraEnvs": wanted,
    }


def test_slow_hosts_get_generous_probe_limits() -> None:
    assert kubeadm.patches(settings_with()) == {}
    patches = {
        file.partition("+")[0]: json.loads(text)["spec"]
        for file, text in kubeadm.patches(settings_with(cluster={"slowHosts": True})).items()
    }
    dns = patches.pop("corednsdeployment")["template"]["spec"]["containers"]
    assert set(patches) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    for [container] in (dns, *(patch["containers"] for patch in patches.values())):
        assert container["livenessProbe"] == {"failureThreshold": 60, "timeoutSeconds": 60}
        # The controller manager has no readiness probe, so a patch would add an incomplete one.
        if container["name"] != "kube-controller-manager":
            assert container["readinessProbe"]["timeoutSeconds"] == 60
    assert dns[0]["name"] == "coredns"


def test_ignored_cpu_check_lowers_cpu_requests() -> None:
    for slow in (False, True):
        settings = settings_with(preflight={"ignore": ["numcpu"]}, cluster={"slowHosts": slow})
        patches = kubeadm.patches(settings)
        assert ("corednsdeployment+strategic.json" in patches) == slow
        containers = [
            json.loads(text)["spec"]["containers"][0]
            for file, text in patches.items()
            if not file.startswith("coredns")
        ]
        requests = {container["name"]: container["resources"]["requests"]["cpu"] for container in containers}
        assert set(requests) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
        # kube-proxy, flannel and two CoreDNS pods request 400m.
        assert sum(int(request.removesuffix("m")) for request in requests.values()) <= 1000 - 400 - 3 * 20
        assert all(("livenessProbe" in container) == slow for container in containers)
        init = documents(kubeadm.init_config(settings))["InitConfiguration"]
        assert init["patches"] == {"directory": kubeadm.PATCHES_DIRECTORY}
    assert kubeadm.patches(settings_with(preflight={"ignore": ["Mem"]})) == {}


def test_ignored_preflight_checks_affect_only_kubeadm() -> None:
    ignored = ["Mem", "Swap"]
    settings, plain = settings_with(preflight={"ignore": ignored}), settings_with()
    written = documents(kubeadm.init_config(settings))
    joining = documents(kubeadm.join_config(settings, settings.workers[0], TOKEN, CA_HASH))
    for document in (written["InitConfiguration"], joining["JoinConfiguration"]):
        assert document["nodeRegistration"].pop("ignorePreflightErrors") == ignored
    assert written == documents(kubeadm.init_config(plain))
    assert joining == documents(kubeadm.join_config(plain, plain.workers[0], TOKEN, CA_HASH))


def test_join_tokens_have_kubeadms_form() -> None:
    keys = [secrets.token_hex(32) for _ in range(20)]
    tokens = [kubeadm.join_token(key, f"node{number}") for key in keys for number in range(50)]
    # kubeadm's pattern (cmd/kubeadm/app/apis/bootstraptoken).
    assert all(re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", token) for token in tokens)
    # Each has its own ID, which names the Secret of a valid token.
    assert len({token.partition(".")[0] for token in tokens}) == len(set(tokens)) == len(tokens)
    assert {character for token in tokens for character in token} == {
        *string.digits,
        *string.ascii_lowercase,
        ".",
    }


def test_join_token_stays_the_same() -> None:
    """Another one would change the join of every worker."""
    token = kubeadm.join_token("5eed" * 16, "node1")
    assert token == kubeadm.join_token("5eed" * 16, "node1") == "gkbyle.dhz164t25g99k2b8"
    assert token != kubeadm.join_token("5eed" * 16, "node2")
    assert token != kubeadm.join_token("5eee" * 16, "node1")


def test_init_config_has_four_documents() -> None:
    assert (
        kubeadm.init_config(settings_with())
        == """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens:
- ttl: 1m0s
  usages:
  - signing
  - authentication
  groups:
  - system:bootstrappers:kubeadm:default-node-token
localAPIEndpoint:
  advertiseAddress: 192.168.166.101
  bindPort: 6443
nodeRegistration:
  name: master
  criSocket: unix:///run/containerd/containerd.sock
  kubeletExtraArgs:
  - name: node-ip
    value: 192.168.166.101
  imagePullPolicy: IfNotPresent
  taints:
  - key: node-role.kubernetes.io/control-plane
    effect: NoSchedule
skipPhases:
- show-join-command
timeouts:
  controlPlaneComponentHealthCheck: 4m0s
  kubeletHealthCheck: 4m0s
  kubernetesAPICall: 1m0s
  etcdAPICall: 2m0s
  tlsBootstrap: 5m0s
  discovery: 5m0s
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: kubernetes
kubernetesVersion: v1.37.2
imageRepository: registry.k8s.io
encryptionAlgorithm: ECDSA-P256
networking:
  podSubnet: 10.244.0.0/16
  serviceSubnet: 10.96.0.0/12
  dnsDomain: cluster.local
apiServer:
  certSANs:
  - 192.168.166.101
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
failSwapOn: true
rotateCertificates: true
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
mode: ipvs
ipvs:
  scheduler: rr
  syncPeriod: 5s
  minSyncPeriod: 1s
  strictARP: false
  tcpTimeout: 0s
  tcpFinTimeout: 0s
  udpTimeout: 0s
  excludeCIDRs: []
"""
    )


def test_join_config_names_host_endpoint_and_ca() -> None:
    settings = settings_with(cluster={"timeouts": {"discovery": "15m0s"}})
    assert (
        kubeadm.join_config(settings, settings.workers[1], TOKEN, CA_HASH)
        == f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
nodeRegistration:
  name: node2
  criSocket: unix:///run/containerd/containerd.sock
  kubeletExtraArgs:
  - name: node-ip
    value: 192.168.166.103
  imagePullPolicy: IfNotPresent
discovery:
  bootstrapToken:
    token: {TOKEN}
    apiServerEndpoint: 192.168.166.101:6443
    caCertHashes:
    - {CA_HASH}
  tlsBootstrapToken: {TOKEN}
timeouts:
  controlPlaneComponentHealthCheck: 4m0s
  kubeletHealthCheck: 4m0s
  kubernetesAPICall: 1m0s
  etcdAPICall: 2m0s
  tlsBootstrap: 5m0s
  discovery: 15m0s
"""
    )


def test_every_setting_of_the_cluster_reaches_kubeadm() -> None:
    settings = settings_with(
        cluster={
            "name": "prod",
            "kubernetesVersion": "1.36.3",
            "apiServer": "api.example:443",
            "certSANs": ["other.example", "api.example"],
            "encryptionAlgorithm": "RSA-4096",
            "imageRepository": "mirror.example/k8s",
            "leaderElection": False,
        },
        network={"podSubnet": "10.0.0.0/16", "serviceSubnet": "10.1.0.0/20", "dnsDomain": "k.example"},
    )
    found = documents(kubeadm.init_config(settings))
    cluster = found["ClusterConfiguration"]
    assert cluster["clusterName"] == "prod"
    assert cluster["kubernetesVersion"] == "v1.36.3"
    assert cluster["apiServer"]["certSANs"] == ["other.example", "api.example"]
    assert cluster["encryptionAlgorithm"] == "RSA-4096"
    assert cluster["networking"] == {
        "podSubnet": "10.0.0.0/16",
        "serviceSubnet": "10.1.0.0/20",
        "dnsDomain": "k.example",
    }
    assert cluster["imageRepository"] == "mirror.example/k8s"
    unelected = {"extraArgs": [{"name": "leader-elect", "value": "false"}]}
    assert cluster["controllerManager"] == cluster["scheduler"] == unelected
    assert found["KubeletConfiguration"]["clusterDNS"] == ["10.1.0.10"]
    assert found["KubeletConfiguration"]["clusterDomain"] == "k.example"


def test_every_setting_of_the_proxy_reaches_kube_proxy() -> None:
    proxy = {
        "scheduler": "wlc",
        "syncPeriod": "30s",
        "minSyncPeriod": "2s",
        "strictArp": True,
        "tcpTimeout": "15m",
        "tcpFinTimeout": "2m",
        "udpTimeout": "5m",
        "excludeCidrs": ["10.9.0.0/24"],
    }
    found = documents(kubeadm.init_config(settings_with(proxy=proxy)))["KubeProxyConfiguration"]
    assert found["mode"] == "ipvs"
    assert found["ipvs"] == {
        "scheduler": "wlc",
        "syncPeriod": "30s",
        "minSyncPeriod": "2s",
        "strictARP": True,
        "tcpTimeout": "15m",
        "tcpFinTimeout": "2m",
        "udpTimeout": "5m",
        "excludeCIDRs": ["10.9.0.0/24"],
    }


def test_every_mode_serves_node_ports_on_all_addresses() -> None:
    for mode, addresses in {"ipvs": None, "iptables": None, "nftables": ["0.0.0.0/0"]}.items():
        rendered = yaml.safe_load(kubeadm.proxy_config(settings_with(proxy={"mode": mode})))
        assert (rendered["mode"], rendered.get("nodePortAddresses")) == (mode, addresses)


def test_only_a_single_host_has_no_taint() -> None:
    alone = documents(kubeadm.init_config(settings_with(1)))["InitConfiguration"]
    assert alone["nodeRegistration"]["taints"] == []
    with_workers = documents(kubeadm.init_config(settings_with(2)))["InitConfiguration"]
    own = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    assert with_workers["nodeRegistration"]["taints"] == [own]


def test_configured_control_plane_taint_isnt_duplicated() -> None:
    settings = settings_with(2)
    tainted = settings.control_plane.model_copy(
        update={"taints": ("node-role.kubernetes.io/control-plane:NoSchedule", "a:NoExecute")}
    )
    assert kubeadm.node_taints(settings, tainted) == list(tainted.taints)


def test_last_node_loses_its_control_plane_taint() -> None:
    several, alone = settings_with(2), settings_with(1)
    assert kubeadm.node_taints(several, several.control_plane) == [kubeadm.CONTROL_PLANE_TAINT]
    assert kubeadm.node_taints(several, several.workers[0]) == []
    assert kubeadm.node_taints(alone, alone.control_plane) == []


def test_labels_that_kubelet_resets_arent_passed_to_it() -> None:
    settings = settings_with()
    labels = {
        "a": "1",
        "topology.kubernetes.io/zone": "a",
        "topology.kubernetes.io/region": "r",
        "node.kubernetes.io/instance-type": "big",
        "node.kubernetes.io/other": "2",
    }
    host = settings.workers[0].model_copy(update={"labels": labels})
    joining = yaml.safe_load(kubeadm.join_config(settings, host, TOKEN, CA_HASH))
    arguments = {item["name"]: item["value"] for item in joining["nodeRegistration"]["kubeletExtraArgs"]}
    assert arguments["node-labels"] == "a=1,node.kubernetes.io/other=2"


# kubeadm's parser, go.yaml.in/yaml/v2 (resolve.go), reads these as numbers or booleans; PyYAML reads text.
@pytest.mark.parametrize("text", ["y", "N", "1e3", "0o17", "12e4", "1_000", "+.5", "0b11", "7."])
def test_text_that_go_reads_differently_is_quoted(text: str) -> None:
    settings = settings_with()
    host = settings.workers[0].model_copy(update={"taints": (f"dedicated={text}:NoSchedule",)})
    written = kubeadm.join_config(settings, host, TOKEN, CA_HASH)
    assert f"value: '{text}'\n" in written


@pytest.mark.parametrize("text", ["1m0s", "192.168.166.101", "10.244.0.0/16", "yes-1", "node1"])
def test_other_text_isnt_quoted(text: str) -> None:
    settings = settings_with()
    settings = settings.model_copy(
        update={"cluster": settings.cluster.model_copy(update={"extra_envs": {"A": text}})}
    )
    assert f"value: {text}\n" in kubeadm.init_config(settings)


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_other_modes_get_the_sync_periods_too(mode: str) -> None:
    settings = settings_with()
    proxy = settings.proxy.model_copy(update={"mode": mode, "sync_period": "9s", "min_sync_period": "3s"})
    written = documents(kubeadm.init_config(settings.model_copy(update={"proxy": proxy})))
    assert written["KubeProxyConfiguration"][mode] == {"syncPeriod": "9s", "minSyncPeriod": "3s"}


def test_labels_are_passed_to_kubelet_in_order() -> None:
    def arguments(labels: dict[str, str]) -> Any:
        settings = settings_with()
        host = settings.workers[0].model_copy(update={"labels": labels})
        return yaml.safe_load(kubeadm.join_config(settings, host, TOKEN, CA_HASH))["nodeRegistration"][
            "kubeletExtraArgs"
        ]

    wanted = {"name": "node-labels", "value": "a=1,z=2"}
    assert arguments({"z": "2", "a": "1"})[1] == arguments({"a": "1", "z": "2"})[1] == wanted
    assert [argument["name"] for argument in arguments({})] == ["node-ip"]


def test_nodes_register_with_their_taints() -> None:
    taints = ["dedicated=web:NoSchedule", "flaky:PreferNoSchedule"]
    given = [
        {"key": "dedicated", "value": "web", "effect": "NoSchedule"},
        {"key": "flaky", "effect": "PreferNoSchedule"},
    ]
    settings = settings_with()
    settings = settings.model_copy(
        update={"hosts": tuple(host.model_copy(update={"taints": tuple(taints)}) for host in settings.hosts)}
    )
    worker = documents(kubeadm.join_config(settings, settings.workers[0], TOKEN, CA_HASH))[
        "JoinConfiguration"
    ]
    assert worker["nodeRegistration"]["taints"] == given
    first = documents(kubeadm.init_config(settings))["InitConfiguration"]
    own = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    assert first["nodeRegistration"]["taints"] == [own, *given]


def test_kubelet_settings_have_kubernetes_names() -> None:
    given = settings_with(
        cluster={
            "kubelet": {
                "maxPods": 50,
                "systemReserved": {"cpu": "200m"},
                "imageGcHighThresholdPercent": 85,
                "resolvConf": "/etc/resolv.pods.conf",
                "serializeImagePulls": False,
            }
        }
    )
    rendered = documents(kubeadm.kubelet_config(given))["KubeletConfiguration"]
    own = documents(kubeadm.kubelet_config(settings_with()))["KubeletConfiguration"]
    assert rendered == {
        **own,
        "maxPods": 50,
        "systemReserved": {"cpu": "200m"},
        "imageGCHighThresholdPercent": 85,
        "resolvConf": "/etc/resolv.pods.conf",
        "serializeImagePulls": False,
    }
    assert documents(kubeadm.init_config(given))["KubeletConfiguration"] == rendered


def test_only_join_config_has_a_token() -> None:
    assert "token:" not in kubeadm.init_config(settings_with())


@pytest.fixture(scope="module")
def ca() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    return self_signed("kubernetes")


def kubeconfig(certificate: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "other", "cluster": {"server": "https://other:6443"}},
            {
                "name": "dev",
                "cluster": {
                    "certificate-authority-data": base64.b64encode(certificate).decode(),
                    "server": "https://192.168.166.101:6443",
                },
            },
        ],
        "contexts": [{"name": "admin@dev", "context": {"cluster": "dev", "user": "admin"}}],
        "current-context": "admin@dev",
        "users": [{"name": "admin", "user": {"client-key-data": "c2VjcmV0LWtleQ=="}}],
    }


def test_ca_hash_is_of_its_public_key(
    ca: tuple[ec.EllipticCurvePrivateKey, bytes],
) -> None:
    key, certificate = ca
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    wanted = "sha256:" + hashlib.sha256(public).hexdigest()
    assert kubeadm.ca_hash(yaml.safe_dump(kubeconfig(certificate))) == wanted


@pytest.mark.parametrize("server", ["127.0.0.1:22643", "https://127.0.0.1:22643"])
def test_only_the_current_clusters_server_is_replaced(
    ca: tuple[ec.EllipticCurvePrivateKey, bytes], server: str
) -> None:
    before = kubeconfig(ca[1])
    after = yaml.safe_load(kubeadm.kubeconfig_for(yaml.safe_dump(before), server))
    before["clusters"][1]["cluster"]["server"] = "https://127.0.0.1:22643"
    assert after == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "Secret"}, "isn't a kubeconfig"),
        ({"current-context": "gone"}, "'gone'"),
        ({"contexts": None}, "admin@dev"),
        ({"clusters": []}, "selects no cluster"),
        ({"clusters": [{"name": "dev", "cluster": {"server": "x"}}]}, "no certificate-authority-data"),
        (
            {"clusters": [{"name": "dev", "cluster": {"server": "x", "certificate-authority-data": "AAAA"}}]},
            "isn't a certificate",
        ),
    ],
)
def test_kubeconfig_errors_contain_no_secret(
    ca: tuple[ec.EllipticCurvePrivateKey, bytes], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(KubeconfigError) as caught:
        kubeadm.ca_hash(yaml.safe_dump(kubeconfig(ca[1]) | change))
    assert words in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_yaml_errors_contain_no_secret() -> None:
    with pytest.raises(KubeconfigError) as caught:
        kubeadm.ca_hash("client-key-data: [c2VjcmV0")
    assert "c2VjcmV0" not in str(caught.value)
    # Pulumi prints an exception with its causes.
    assert "c2VjcmV0\n" not in "".join(traceback.format_exception(caught.value))


def test_kubeconfig_selects_server_and_credentials(ca: tuple[ec.EllipticCurvePrivateKey, bytes]) -> None:
    text = yaml.safe_dump(kubeconfig(ca[1]))
    found = Kubeconfig.parse(text)
    assert (found.server, found.ca) == ("https://192.168.166.101:6443", ca[1].decode())
    assert (found.client_key, found.token, found.namespace) == ("secret-key", None, "default")
    assert "secret-key" not in repr(found)
    other = Kubeconfig.parse(text, cluster="other")
    assert (other.server, other.ca) == ("https://other:6443", None)


def test_kubeconfig_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "token").write_text("abc\n")
    document = {
        "clusters": [
            {"name": "a", "cluster": {"server": "https://a", "certificate-authority": f"{tmp_path}/ca"}}
        ],
        "contexts": [{"name": "x", "context": {"cluster": "a", "user": "u", "namespace": "web"}}],
        "users": [{"name": "u", "user": {"tokenFile": f"{tmp_path}/token"}}],
    }
    found = Kubeconfig.parse(yaml.safe_dump(document), context="x")
    assert (found.ca, found.token, found.namespace) == ("-----BEGIN CERTIFICATE-----\n", "abc", "web")
    document["users"] = [{"name": "u", "user": {"tokenFile": f"{tmp_path}/gone"}}]
    with pytest.raises(KubeconfigError, match=r"tokenFile .*/gone can't be read"):
        Kubeconfig.parse(yaml.safe_dump(document), context="x")


@pytest.mark.parametrize("method", ["exec", "auth-provider", "username"])
def test_unsupported_login_methods_are_refused(method: str) -> None:
    document = {
        "clusters": [{"name": "a", "cluster": {"server": "https://a"}}],
        "contexts": [{"name": "x", "context": {"cluster": "a", "user": "u"}}],
        "current-context": "x",
        "users": [{"name": "u", "user": {method: "something"}}],
    }
    with pytest.raises(KubeconfigError, match=f"logs in with {method}"):
        Kubeconfig.parse(yaml.safe_dump(document))


@pytest.fixture
def real_kubeadm() -> str:
    path = shutil.which("kubeadm")
    if path is None:
        pytest.skip("no kubeadm on PATH")
    return path


def test_real_kubeadm_accepts_the_files(real_kubeadm: str, tmp_path: Path) -> None:
    settings = settings_with(
        cluster={
            "leaderElection": False,
            "certSANs": ["*.example.org", "10.0.0.1"],
            "slowHosts": True,
            "extraEnvs": {"NO_PROXY": "10.0.0.0/8"},
        },
        proxy={"excludeCidrs": ["10.9.0.0/24"], "tcpTimeout": "15m"},
        preflight={"ignore": ["NumCPU", "FileContent--proc-sys-net-bridge-bridge-nf-call-iptables"]},
    )
    texts = {
        "init": kubeadm.init_config(settings),
        "init-alone": kubeadm.init_config(settings_with(1)),
        "join": kubeadm.join_config(settings, settings.workers[0], TOKEN, CA_HASH),
    }
    for name, text in texts.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        result = subprocess.run(
            [real_kubeadm, "config", "validate", "--config", str(file)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        # kubeadm only warns about unknown fields and ignores them.
        assert "unknown field" not in result.stderr


def test_nodes_get_the_subnet_that_the_settings_assume() -> None:
    """The controller manager's default is a /24 per node, which limits hosts and `maxPods`."""
    cluster = {"slowHosts": True, "leaderElection": False, "extraEnvs": {"GOMAXPROCS": "1"}}
    assert NODE_PREFIX == 24
    assert "node-cidr-mask-size" not in kubeadm.init_config(settings_with(cluster=cluster))
