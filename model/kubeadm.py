"""kubeadm's configuration files, rendered from the settings, and the values taken from its kubeconfig.

Pure functions from `Settings` to YAML text. Equal settings give identical text, so a file on a host changes
only if a setting does. The API is kubeadm's v1beta4
(https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/), which every supported minor version
reads. Only the token in `join_config` is secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import string
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from model import go_yaml
from model.kubeconfig import Kubeconfig, KubeconfigError, with_server
from model.settings import ANYWHERE, Host, Kubelet, Proxy, Settings

API_VERSION = "kubeadm.k8s.io/v1beta4"
# init.sh writes `patches` there before it runs kubeadm.
PATCHES_DIRECTORY = "/var/lib/kubeadm-ipvs/patches"
CRI_SOCKET = "unix:///run/containerd/containerd.sock"

# `kubeadm init` always creates a bootstrap token, by default for 24 hours. Workers join with tokens of their
# own, so this one expires as soon as possible.
INIT_TOKEN_LIFETIME = "1m0s"


def init_config(settings: Settings) -> str:
    """The file for `kubeadm init --config`: four documents in kubeadm's order.

    InitConfiguration configures the host and ClusterConfiguration the cluster. KubeletConfiguration and
    KubeProxyConfiguration are stored in the cluster for every node.
    """
    return go_yaml.dump(_init(settings), _cluster(settings), _kubelet(settings), _proxy(settings))


def join_config(settings: Settings, host: Host, token: str, ca_hash: str) -> str:
    """The file for `kubeadm join --config` on a worker.

    Args:
        settings: The cluster's settings.
        host: The worker.
        token: Bootstrap token, which makes the file a secret.
        ca_hash: `sha256:...` from `ca_hash`. kubeadm rejects an API server whose certificate authority has
            another key, so an impostor at the address is detected.
    """
    return go_yaml.dump(
        {
            "apiVersion": API_VERSION,
            "kind": "JoinConfiguration",
            "nodeRegistration": _node(settings, host),
            "discovery": {
                "bootstrapToken": {
                    "token": token,
                    "apiServerEndpoint": settings.control_plane_endpoint,
                    "caCertHashes": [ca_hash],
                },
                "tlsBootstrapToken": token,
            },
            "timeouts": _timeouts(settings),
        }
    )


def join_token(key: str, worker: str) -> str:
    """A worker's bootstrap token, in kubeadm's form `[a-z0-9]{6}.[a-z0-9]{16}`.

    Args:
        key: The stack's secret, 256 random bits.
        worker: The host's name.
    """
    number = int.from_bytes(hmac.digest(key.encode(), f"join token of {worker}".encode(), "sha256"))
    characters = []
    for _ in range(22):
        number, digit = divmod(number, len(_TOKEN_CHARACTERS))
        characters.append(_TOKEN_CHARACTERS[digit])
    text = "".join(characters)
    return f"{text[:6]}.{text[6:]}"


_TOKEN_CHARACTERS = string.digits + string.ascii_lowercase


def kubelet_config(settings: Settings) -> str:
    """The KubeletConfiguration of every node, the same as in `init_config`."""
    return go_yaml.dump(_kubelet(settings))


def proxy_config(settings: Settings) -> str:
    """The KubeProxyConfiguration of every node, the same as in `init_config`."""
    return go_yaml.dump(_proxy(settings))


def ca_hash(kubeconfig: str) -> str:
    """The hash of the cluster's certificate authority in the form of kubeadm's `caCertHashes`.

    `sha256:` and the hex digest of the public key (DER SubjectPublicKeyInfo).

    Raises:
        KubeconfigError: The kubeconfig can't be used, or contains no CA certificate.
    """
    ca = Kubeconfig.parse(kubeconfig).ca
    if ca is None:
        raise KubeconfigError("the kubeconfig's cluster has no certificate-authority-data")
    try:
        certificate = x509.load_pem_x509_certificate(ca.encode())
    except ValueError as error:
        raise KubeconfigError(
            f"the kubeconfig's certificate-authority-data isn't a certificate: {error}"
        ) from error
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(key).hexdigest()


def kubeconfig_for(kubeconfig: str, server: str) -> str:
    """The same kubeconfig with another address for the cluster; CA and credentials stay.

    Args:
        kubeconfig: The administrator's kubeconfig.
        server: `host:port` or an `https://` URL.

    Raises:
        KubeconfigError: The kubeconfig can't be used.
    """
    return with_server(kubeconfig, server if "://" in server else f"https://{server}")


# Together with the control plane's other pods, these stay below the two CPUs that kubeadm requires.
_SLOW_REQUESTS = {"etcd": "300m", "kube-apiserver": "500m"}
# Half a CPU in total: kube-proxy, flannel and two CoreDNS pods request 400m, and each nginx pod 20m. With
# kubeadm's own requests (650m) one of these pods would stay pending; with _SLOW_REQUESTS kubelet would reject
# a static pod (OutOfcpu).
_ONE_CPU_REQUESTS = {
    "etcd": "150m",
    "kube-apiserver": "200m",
    "kube-controller-manager": "100m",
    "kube-scheduler": "50m",
}


def patches(settings: Settings) -> dict[str, str]:
    """Patches for the control plane's static pods and for CoreDNS: JSON by file name.

    Only slow hosts need them, and control planes that may have a single CPU. For the latter, the patches
    contain only CPU requests.

    By default, kubelet restarts a component after 8 failed liveness probes, 10 seconds apart. On an emulated
    host, a burst of work such as a joining node lasts longer, and each restart adds minutes of work.
    Readiness probes run every second, each with a TLS handshake. Requests are also CPU shares: when CPU is
    scarce, kubeadm's give only a tenth to etcd, on which everything else waits. CoreDNS runs on the same host
    and must respond to readiness probes within one second; after three misses its endpoint is removed, and
    the cluster has no name service.
    https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/control-plane-flags/#patches
    """
    slow, one_cpu = settings.cluster.slow_hosts, settings.preflight.ignores("NumCPU")
    if not slow and not one_cpu:
        return {}
    requests = _ONE_CPU_REQUESTS if one_cpu else _SLOW_REQUESTS
    files = {}
    patient = {"failureThreshold": 60, "timeoutSeconds": 60}
    for component in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        container: dict[str, Any] = {"name": component}
        if slow:
            container["livenessProbe"] = patient
        if component in requests:
            container["resources"] = {"requests": {"cpu": requests[component]}}
        if slow and component != "kube-controller-manager":  # it has no readiness probe
            container["readinessProbe"] = {"periodSeconds": 10, "timeoutSeconds": 60}
        files[f"{component}+strategic.json"] = json.dumps({"spec": {"containers": [container]}})
    if not slow:
        return files
    dns = {
        "name": "coredns",
        "livenessProbe": patient,
        "readinessProbe": {"timeoutSeconds": 60},
    }
    # kubeadm has had this patch target since 1.32.
    files["corednsdeployment+strategic.json"] = json.dumps(
        {"spec": {"template": {"spec": {"containers": [dns]}}}}
    )
    return files


def _init(settings: Settings) -> dict[str, Any]:
    host = settings.control_plane
    registration = _node(settings, host)
    # Without the field, kubeadm would add the control plane taint.
    registration.setdefault("taints", [])
    return {
        "apiVersion": API_VERSION,
        "kind": "InitConfiguration",
        "bootstrapTokens": [
            {
                "ttl": INIT_TOKEN_LIFETIME,
                "usages": ["signing", "authentication"],
                "groups": ["system:bootstrappers:kubeadm:default-node-token"],
            }
        ],
        "localAPIEndpoint": {"advertiseAddress": host.address, "bindPort": settings.api_port},
        "nodeRegistration": registration,
        **({"patches": {"directory": PATCHES_DIRECTORY}} if patches(settings) else {}),
        # It prints a join command that contains a token.
        "skipPhases": ["show-join-command"],
        "timeouts": _timeouts(settings),
    }


def _cluster(settings: Settings) -> dict[str, Any]:
    document: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "ClusterConfiguration",
        "clusterName": settings.cluster.name,
        "kubernetesVersion": f"v{settings.cluster.kubernetes_version}",
        "imageRepository": settings.cluster.image_repository,
        "encryptionAlgorithm": settings.cluster.encryption_algorithm,
        "networking": {
            "podSubnet": settings.network.pod_subnet,
            "serviceSubnet": settings.network.service_subnet,
            "dnsDomain": settings.network.dns_domain,
        },
        "apiServer": {"certSANs": list(settings.cert_sans)},
    }
    etcd: dict[str, Any] = {}
    if settings.cluster.slow_hosts:
        # etcd abandons a request after 5 s plus twice the election timeout. Clients then repeat it, which
        # makes a busy host busier. A long election timeout does no harm, as there is no other member to
        # elect. kubeadm's default sends every watch of the API server a progress notification every 5 s,
        # which costs an eighth of a CPU on an emulated host. Consistent lists request such notifications
        # themselves.
        etcd["extraArgs"] = _arguments(
            {
                "heartbeat-interval": "500",
                "election-timeout": "5000",
                "watch-progress-notify-interval": "60s",
            }
        )
    if not settings.cluster.leader_election:
        for component in ("controllerManager", "scheduler"):
            document[component] = {"extraArgs": _arguments({"leader-elect": "false"})}
    if settings.cluster.extra_envs:
        variables = _arguments(settings.cluster.extra_envs)
        etcd["extraEnvs"] = variables
        for component in ("apiServer", "controllerManager", "scheduler"):
            document.setdefault(component, {})["extraEnvs"] = variables
    if etcd:
        document["etcd"] = {"local": etcd}
    return document


def _kubelet(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "systemd",  # must match containerd's; a mismatch kills pods at random
        "clusterDNS": [settings.dns_address],
        "clusterDomain": settings.network.dns_domain,
        "failSwapOn": True,  # a preparation step turns swap off; fail at once if it comes back
        "rotateCertificates": True,
        **_given(settings.cluster.kubelet),
    }


# Kubernetes capitalizes abbreviations.
_KUBELET_NAMES = {"imageGcHighThresholdPercent": "imageGCHighThresholdPercent"}


def _given(kubelet: Kubelet) -> dict[str, Any]:
    given = kubelet.model_dump(by_alias=True, exclude_none=True)
    return {_KUBELET_NAMES.get(name, name): value for name, value in given.items()}


def _proxy(settings: Settings) -> dict[str, Any]:
    proxy = settings.proxy
    node_ports = list(proxy.node_port_addresses)
    # By default, this mode serves node ports only on the primary address, the other modes on all addresses.
    if not node_ports and proxy.mode == "nftables":
        node_ports = [ANYWHERE]
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clusterCIDR": settings.network.pod_subnet,
        # Always set, because kube-proxy's default is another mode and depends on the minor version.
        "mode": proxy.mode,
        # Each mode reads its own section.
        **({proxy.mode: _sync(proxy)} if proxy.mode != "ipvs" else {}),
        **({"nodePortAddresses": node_ports} if node_ports else {}),
        "ipvs": {
            "scheduler": proxy.scheduler,
            **_sync(proxy),
            "strictARP": proxy.strict_arp,
            "tcpTimeout": proxy.tcp_timeout,
            "tcpFinTimeout": proxy.tcp_fin_timeout,
            "udpTimeout": proxy.udp_timeout,
            "excludeCIDRs": list(proxy.exclude_cidrs),
        },
    }


def _sync(proxy: Proxy) -> dict[str, str]:
    return {"syncPeriod": proxy.sync_period, "minSyncPeriod": proxy.min_sync_period}


CONTROL_PLANE_TAINT = "node-role.kubernetes.io/control-plane:NoSchedule"


def node_taints(settings: Settings, host: Host) -> list[str]:
    """The node's taints: the host's own, and the control plane taint if there are workers.

    Without workers, the control plane has to run the pods.
    """
    role = [CONTROL_PLANE_TAINT] if host.role == "control-plane" and settings.workers else []
    return list(dict.fromkeys([*role, *host.taints]))


# kubelet resets these labels to its flag's values at every start, so later changes would be lost
# (pkg/kubelet/kubelet_node_status.go, updateDefaultLabels, v1.37.2).
_KUBELET_DEFAULT_LABELS = ("topology.kubernetes.io/", "node.kubernetes.io/instance-type")


def _node(settings: Settings, host: Host) -> dict[str, Any]:
    # Without node-ip, kubelet registers the address of the default route. On a host with a NAT or management
    # interface, that is the wrong one.
    arguments = {"node-ip": host.address}
    if settings.cluster.slow_hosts:
        arguments["housekeeping-interval"] = "60s"
    # For pods that select nodes by label from the start. The `node` step sets all labels later.
    initial_labels = [
        f"{key}={value}"
        for key, value in sorted(host.labels.items())
        if not key.startswith(_KUBELET_DEFAULT_LABELS)
    ]
    if initial_labels:
        arguments["node-labels"] = ",".join(initial_labels)
    taints = node_taints(settings, host)
    ignored = list(settings.preflight.ignore)
    return {
        "name": host.name,
        "criSocket": CRI_SOCKET,
        "kubeletExtraArgs": _arguments(arguments),
        # No step passes --ignore-preflight-errors, whose names kubeadm would add to these.
        **({"ignorePreflightErrors": ignored} if ignored else {}),
        "imagePullPolicy": "IfNotPresent",
        # Set at registration, so that no pod is scheduled before they apply. The `node` step makes later
        # changes.
        **({"taints": [_taint(taint) for taint in taints]} if taints else {}),
    }


def _taint(text: str) -> dict[str, str]:
    place, _, effect = text.rpartition(":")
    key, _, value = place.partition("=")
    return {"key": key, **({"value": value} if value else {}), "effect": effect}


def _timeouts(settings: Settings) -> dict[str, str]:
    timeouts = settings.cluster.timeouts
    return {
        "controlPlaneComponentHealthCheck": timeouts.control_plane_component_health_check,
        "kubeletHealthCheck": timeouts.kubelet_health_check,
        "kubernetesAPICall": timeouts.kubernetes_api_call,
        "etcdAPICall": timeouts.etcd_api_call,
        "tlsBootstrap": timeouts.tls_bootstrap,
        "discovery": timeouts.discovery,
    }


def _arguments(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
