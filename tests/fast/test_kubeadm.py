from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import shutil
import subprocess
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from model import kubeadm
from model.settings import Settings

TOKEN = "abcdef.0123456789abcdef"
CA_HASH = "sha256:" + "a1" * 32


def settings_with(count: int = 3, **sections: Any) -> Settings:
    hosts = [
        {
            "name": name,
            "role": "worker" if number else "control-plane",
            "address": f"192.168.166.{101 + number}",
        }
        for number, name in enumerate(("master", "node1", "node2")[:count])
    ]
    return Settings.model_validate_json(json.dumps({"hosts": hosts, **sections}))


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_every_component_of_the_control_plane_gets_the_environment() -> None:
    told = documents(kubeadm.init_config(settings_with(cluster={"extraEnvs": {"NO_PROXY": "10.0.0.0/8"}})))[
        "ClusterConfiguration"
    ]
    wanted = [{"name": "NO_PROXY", "value": "10.0.0.0/8"}]
    for component in (told["apiServer"], told["controllerManager"], told["scheduler"], told["etcd"]["local"]):
        assert component["extraEnvs"] == wanted


def test_arguments_and_environment_of_a_component_stand_side_by_side() -> None:
    cluster = {"slowHosts": True, "leaderElection": False, "extraEnvs": {"GOMAXPROCS": "1"}}
    told = documents(kubeadm.init_config(settings_with(cluster=cluster)))["ClusterConfiguration"]
    wanted = [{"name": "GOMAXPROCS", "value": "1"}]
    assert told["scheduler"] == {
        "extraArgs": [{"name": "leader-elect", "value": "false"}],
        "extraEnvs": wanted,
    }
    assert told["etcd"]["local"] == {
        "extraArgs": [
            {"name": "heartbeat-interval", "value": "500"},
            {"name": "election-timeout", "value": "5000"},
            {"name": "watch-progress-notify-interval", "value": "60s"},
        ],
        "extraEnvs": wanted,
    }


def test_what_answers_slowly_on_slow_hosts_is_neither_restarted_nor_taken_for_unready() -> None:
    assert kubeadm.patches(settings_with()) == {}
    patches = {
        file.partition("+")[0]: json.loads(text)["spec"]
        for file, text in kubeadm.patches(settings_with(cluster={"slowHosts": True})).items()
    }
    dns = patches.pop("corednsdeployment")["template"]["spec"]["containers"]
    assert set(patches) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    for [container] in (dns, *(patch["containers"] for patch in patches.values())):
        assert container["livenessProbe"] == {"failureThreshold": 60, "timeoutSeconds": 60}
        # The controller manager has no readiness probe, and must not get half of one.
        if container["name"] != "kube-controller-manager":
            assert container["readinessProbe"]["timeoutSeconds"] == 60
    assert dns[0]["name"] == "coredns"


def test_an_ignored_cpu_check_makes_the_control_plane_fit_on_one_cpu() -> None:
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


def test_ignored_preflight_checks_reach_init_and_join_alone() -> None:
    ignored = ["Mem", "Swap"]
    settings, plain = settings_with(preflight={"ignore": ignored}), settings_with()
    told = documents(kubeadm.init_config(settings))
    joining = documents(kubeadm.join_config(settings, settings.workers[0], TOKEN, CA_HASH))
    for document in (told["InitConfiguration"], joining["JoinConfiguration"]):
        assert document["nodeRegistration"].pop("ignorePreflightErrors") == ignored
    assert told == documents(kubeadm.init_config(plain))
    assert joining == documents(kubeadm.join_config(plain, plain.workers[0], TOKEN, CA_HASH))


def test_init_is_told_everything_in_four_documents() -> None:
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
  minSyncPeriod: 5s
  strictARP: false
  tcpTimeout: 0s
  tcpFinTimeout: 0s
  udpTimeout: 0s
  excludeCIDRs: []
"""
    )


def test_join_names_the_host_the_control_plane_and_the_authority() -> None:
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
            "leaderElection": False,
        },
        network={"podSubnet": "10.0.0.0/16", "serviceSubnet": "10.1.0.0/20", "dnsDomain": "k.example"},
        registry={"imageRepository": "mirror.example/k8s"},
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
        "minSyncPeriod": "1s",
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
        "minSyncPeriod": "1s",
        "strictARP": True,
        "tcpTimeout": "15m",
        "tcpFinTimeout": "2m",
        "udpTimeout": "5m",
        "excludeCIDRs": ["10.9.0.0/24"],
    }


def test_node_ports_are_on_the_same_addresses_in_every_mode() -> None:
    for mode, addresses in {"ipvs": None, "iptables": None, "nftables": ["0.0.0.0/0"]}.items():
        rendered = yaml.safe_load(kubeadm.proxy_config(settings_with(proxy={"mode": mode})))
        assert (rendered["mode"], rendered.get("nodePortAddresses")) == (mode, addresses)


def test_a_host_alone_takes_pods_and_one_with_workers_keeps_its_taint() -> None:
    alone = documents(kubeadm.init_config(settings_with(1)))["InitConfiguration"]
    assert alone["nodeRegistration"]["taints"] == []
    with_workers = documents(kubeadm.init_config(settings_with(2)))["InitConfiguration"]
    own = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    assert with_workers["nodeRegistration"]["taints"] == [own]


def test_kubernetes_own_taint_that_the_settings_name_too_is_there_once() -> None:
    settings = settings_with(2)
    asked = settings.control_plane.model_copy(
        update={"taints": ("node-role.kubernetes.io/control-plane:NoSchedule", "a:NoExecute")}
    )
    assert kubeadm.node_taints(settings, asked) == list(asked.taints)


def test_a_node_that_is_the_last_is_no_longer_kept_from_pods() -> None:
    several, alone = settings_with(2), settings_with(1)
    assert kubeadm.node_taints(several, several.control_plane) == [kubeadm.CONTROL_PLANE_TAINT]
    assert kubeadm.node_taints(several, several.workers[0]) == []
    assert kubeadm.node_taints(alone, alone.control_plane) == []


def test_labels_that_kubelet_would_put_back_at_each_start_are_left_to_the_member() -> None:
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


# Numbers and truth values for go.yaml.in/yaml/v2 (resolve.go), by which kubeadm reads, and text for PyYAML.
@pytest.mark.parametrize("text", ["y", "N", "1e3", "0o17", "12e4", "1_000", "+.5", "0b11", "7."])
def test_a_text_that_looks_like_a_number_or_a_truth_value_to_go_is_in_quotes(text: str) -> None:
    settings = settings_with()
    host = settings.workers[0].model_copy(update={"taints": (f"dedicated={text}:NoSchedule",)})
    written = kubeadm.join_config(settings, host, TOKEN, CA_HASH)
    assert f"value: '{text}'\n" in written


@pytest.mark.parametrize("text", ["1m0s", "192.168.166.101", "10.244.0.0/16", "yes-1", "node1"])
def test_other_texts_are_as_plain_as_ever(text: str) -> None:
    settings = settings_with()
    settings = settings.model_copy(
        update={"cluster": settings.cluster.model_copy(update={"extra_envs": {"A": text}})}
    )
    assert f"value: {text}\n" in kubeadm.init_config(settings)


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_the_other_modes_are_told_their_sync_periods_too(mode: str) -> None:
    settings = settings_with()
    proxy = settings.proxy.model_copy(update={"mode": mode, "sync_period": "9s", "min_sync_period": "3s"})
    written = documents(kubeadm.init_config(settings.model_copy(update={"proxy": proxy})))
    assert written["KubeProxyConfiguration"][mode] == {"syncPeriod": "9s", "minSyncPeriod": "3s"}


def test_labels_are_handed_to_kubelet_in_one_order() -> None:
    def arguments(labels: dict[str, str]) -> Any:
        settings = settings_with()
        host = settings.workers[0].model_copy(update={"labels": labels})
        return yaml.safe_load(kubeadm.join_config(settings, host, TOKEN, CA_HASH))["nodeRegistration"][
            "kubeletExtraArgs"
        ]

    wanted = {"name": "node-labels", "value": "a=1,z=2"}
    assert arguments({"z": "2", "a": "1"})[1] == arguments({"a": "1", "z": "2"})[1] == wanted
    assert [argument["name"] for argument in arguments({})] == ["node-ip"]


def test_taints_are_there_from_the_start_beside_the_control_planes_own() -> None:
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


def test_kubelets_settings_are_those_given_under_kubernetes_names() -> None:
    given = settings_with(
        cluster={
            "kubelet": {
                "maxPods": 50,
                "systemReserved": {"cpu": "200m"},
                "imageGcHighThresholdPercent": 85,
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
        "serializeImagePulls": False,
    }
    assert documents(kubeadm.init_config(given))["KubeletConfiguration"] == rendered


def test_a_token_is_in_no_file_but_a_workers() -> None:
    assert "token:" not in kubeadm.init_config(settings_with())


@pytest.fixture(scope="module")
def authority() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = dt.datetime.now(dt.UTC)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    return key, certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


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


def test_the_authoritys_hash_is_of_its_public_key_as_kubeadm_pins_it(
    authority: tuple[ec.EllipticCurvePrivateKey, bytes],
) -> None:
    key, certificate = authority
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    wanted = "sha256:" + hashlib.sha256(public).hexdigest()
    assert kubeadm.ca_hash(yaml.safe_dump(kubeconfig(certificate))) == wanted


@pytest.mark.parametrize("server", ["127.0.0.1:22643", "https://127.0.0.1:22643"])
def test_only_the_current_clusters_address_is_replaced(
    authority: tuple[ec.EllipticCurvePrivateKey, bytes], server: str
) -> None:
    before = kubeconfig(authority[1])
    after = yaml.safe_load(kubeadm.kubeconfig_for(yaml.safe_dump(before), server))
    before["clusters"][1]["cluster"]["server"] = "https://127.0.0.1:22643"
    assert after == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "Secret"}, "no kubeconfig"),
        ({"current-context": "gone"}, "'gone'"),
        ({"contexts": None}, "admin@dev"),
        ({"clusters": []}, "names no cluster"),
        ({"clusters": [{"name": "dev", "cluster": {"server": "x"}}]}, "no certificate-authority-data"),
        (
            {"clusters": [{"name": "dev", "cluster": {"certificate-authority-data": "AAAA"}}]},
            "no certificate",
        ),
    ],
)
def test_a_kubeconfig_that_lacks_what_is_needed_is_told_without_its_secrets(
    authority: tuple[ec.EllipticCurvePrivateKey, bytes], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(kubeadm.KubeconfigError) as caught:
        kubeadm.ca_hash(yaml.safe_dump(kubeconfig(authority[1]) | change))
    assert words in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_broken_yaml_is_not_quoted_in_the_error() -> None:
    with pytest.raises(kubeadm.KubeconfigError) as caught:
        kubeadm.ca_hash("client-key-data: [c2VjcmV0")
    assert "c2VjcmV0" not in str(caught.value)
    # As Pulumi prints what a program has raised: with whatever that was raised from.
    assert "c2VjcmV0\n" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def real_kubeadm() -> str:
    path = shutil.which("kubeadm")
    if path is None:
        pytest.skip("no kubeadm on PATH: the golden texts above stand alone")
    return path


def test_the_real_kubeadm_accepts_what_is_rendered(real_kubeadm: str, tmp_path: Path) -> None:
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
        # kubeadm only warns of a field it doesn't know, and leaves it out.
        assert "unknown field" not in result.stderr
