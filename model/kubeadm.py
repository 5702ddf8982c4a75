"""What kubeadm is told, rendered from the settings; and what is read out of its kubeconfig.

Pure functions from `Settings` to YAML text: equal settings give equal text, byte for byte, so
that a change of a file on a host is always a change of a setting. The API is kubeadm's v1beta4
(https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/), which every supported
minor reads. Nothing here is secret except the token that `join_config` is handed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from model.settings import Host, Kubelet, Proxy, Settings

API_VERSION = "kubeadm.k8s.io/v1beta4"
# Where init.sh puts `patches` before it runs kubeadm.
PATCHES_DIRECTORY = "/var/lib/kubeadm-ipvs/patches"
CRI_SOCKET = "unix:///run/containerd/containerd.sock"

# kubeadm always makes a bootstrap token at init, for 24 hours unless told otherwise. Workers join
# with tokens minted for their own join, so the one of init is only let live as long as it must.
INIT_TOKEN_LIFETIME = "1m0s"


class KubeconfigError(ValueError):
    """A kubeconfig that isn't one, or lacks what was looked for; the text says what."""


def init_config(settings: Settings) -> str:
    """The file for `kubeadm init --config`: four documents, in kubeadm's own order.

    InitConfiguration (this host), ClusterConfiguration (the cluster), KubeletConfiguration and
    KubeProxyConfiguration (defaults that kubeadm stores in the cluster for every node).
    """
    return _documents(_init(settings), _cluster(settings), _kubelet(settings), _proxy(settings))


def join_config(settings: Settings, host: Host, token: str, ca_hash: str) -> str:
    """The file for `kubeadm join --config` on a worker. It holds `token`: treat it as a secret.

    `ca_hash` is `sha256:...` as `ca_hash` returns it; kubeadm refuses an API server whose
    certificate authority has another key, so a stranger that answers at the address is found out.
    """
    return _documents(
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


def kubelet_config(settings: Settings) -> str:
    """The KubeletConfiguration of every node, as `init_config` has it."""
    return _documents(_kubelet(settings))


def proxy_config(settings: Settings) -> str:
    """The KubeProxyConfiguration of every node, as `init_config` has it."""
    return _documents(_proxy(settings))


def ca_hash(kubeconfig: str) -> str:
    """`sha256:` and the hex digest of the public key (DER SubjectPublicKeyInfo) of the cluster's CA.

    The form that kubeadm's `caCertHashes` takes. Raises `KubeconfigError`.
    """
    cluster = _current_cluster(kubeconfig)
    encoded = cluster.get("certificate-authority-data")
    if not isinstance(encoded, str):
        raise KubeconfigError("the kubeconfig's cluster has no certificate-authority-data")
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise KubeconfigError(
            f"the kubeconfig's certificate-authority-data is no certificate: {error}"
        ) from error
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(key).hexdigest()


def kubeconfig_for(kubeconfig: str, server: str) -> str:
    """The same kubeconfig with the cluster's address replaced; CA and credentials stay as they are.

    `server` is `host:port` or a whole `https://` URL. Raises `KubeconfigError`.
    """
    document = _kubeconfig(kubeconfig)
    _current_cluster(kubeconfig, document)["server"] = server if "://" in server else f"https://{server}"
    return _documents(document)


# With those of the other pods of a control plane they stay below the two CPUs that kubeadm asks for.
_SLOW_REQUESTS = {"etcd": "300m", "kube-apiserver": "500m"}
# Half a CPU: kube-proxy, flannel and two CoreDNS pods request 400m, nginx 20m a pod. kubeadm's own requests
# (650m) leave one of these pending; with the requests for slow hosts kubelet rejects a static pod (OutOfcpu).
_ONE_CPU_REQUESTS = {
    "etcd": "150m",
    "kube-apiserver": "200m",
    "kube-controller-manager": "100m",
    "kube-scheduler": "50m",
}


def patches(settings: Settings) -> dict[str, str]:
    """Patches of the control plane's static pods and of CoreDNS, JSON by file name.

    Only for slow hosts, and for a control plane that may have one CPU, whose patches are the requests alone.

    kubeadm lets kubelet restart a component that fails 8 probes, 10 s apart. On an emulated host a
    burst of work (nodes joining) lasts longer than that, a restart costs minutes more, and so on.
    Readiness is probed each second, with a TLS handshake each time. And where CPU is short, kubeadm's
    requests give etcd, on which everything waits, a tenth of it: the requests are the shares.
    CoreDNS stands on the same host and has one second to say that it is ready: where it misses that three
    times its endpoint goes, and with it the name service of the whole cluster.
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
    # Known to kubeadm since 1.32.
    files["corednsdeployment+strategic.json"] = json.dumps(
        {"spec": {"template": {"spec": {"containers": [dns]}}}}
    )
    return files


def _init(settings: Settings) -> dict[str, Any]:
    host = settings.control_plane
    registration = _node(settings, host)
    # Left out, kubeadm would give the control plane its own.
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
        # It would print a join command with a token in it.
        "skipPhases": ["show-join-command"],
        "timeouts": _timeouts(settings),
    }


def _cluster(settings: Settings) -> dict[str, Any]:
    document: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "ClusterConfiguration",
        "clusterName": settings.cluster.name,
        "kubernetesVersion": f"v{settings.cluster.kubernetes_version}",
        "imageRepository": settings.registry.image_repository,
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
        # etcd gives a request up after 5 s and twice this; it is made again by whoever wanted it, which on a
        # host that is too busy makes it busier. Nobody else is there to be elected. Each of the API
        # server's watches is told every 5 s, by kubeadm's default, that nothing has changed: on an emulated
        # host an eighth of a CPU. A list that has to be as new as its request asks for such a notice itself.
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
        "cgroupDriver": "systemd",  # as containerd is configured; a mismatch kills pods at random
        "clusterDNS": [settings.dns_address],
        "clusterDomain": settings.network.dns_domain,
        "failSwapOn": True,  # swap is off by preparation; if it comes back, say so at once
        "rotateCertificates": True,
        **_given(settings.cluster.kubelet),
    }


# Where Kubernetes' name isn't ours: it writes abbreviations in capitals.
_KUBELET_NAMES = {"imageGcHighThresholdPercent": "imageGCHighThresholdPercent"}


def _given(kubelet: Kubelet) -> dict[str, Any]:
    given = kubelet.model_dump(by_alias=True, exclude_none=True)
    return {_KUBELET_NAMES.get(name, name): value for name, value in given.items()}


def _proxy(settings: Settings) -> dict[str, Any]:
    proxy = settings.proxy
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clusterCIDR": settings.network.pod_subnet,
        # Always written: kube-proxy's own default is another one, and changes with the minor.
        "mode": proxy.mode,
        # Each mode reads its own.
        **({proxy.mode: _sync(proxy)} if proxy.mode != "ipvs" else {}),
        # By itself this mode answers on a node's primary address only, the others on all of its addresses.
        **({"nodePortAddresses": ["0.0.0.0/0"]} if proxy.mode == "nftables" else {}),
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
    """The taints that a node has: the host's, and Kubernetes' own on a control plane with workers.

    Without a worker nobody else could run pods.
    """
    role = [CONTROL_PLANE_TAINT] if host.role == "control-plane" and settings.workers else []
    return list(dict.fromkeys([*role, *host.taints]))


# Of labels of these names kubelet puts back, at each of its starts, what its flag says: whatever has been
# changed since would be lost (pkg/kubelet/kubelet_node_status.go, updateDefaultLabels, v1.37.2).
_KUBELETS_OWN_LABELS = ("topology.kubernetes.io/", "node.kubernetes.io/instance-type")


def _node(settings: Settings, host: Host) -> dict[str, Any]:
    # Without node-ip, kubelet registers the address of the default route: on a host with a NAT
    # or management interface, the wrong one.
    arguments = {"node-ip": host.address}
    if settings.cluster.slow_hosts:
        arguments["housekeeping-interval"] = "60s"
    # For what is scheduled by them from the start; all of them are the member's to set.
    first = [
        f"{key}={value}"
        for key, value in sorted(host.labels.items())
        if not key.startswith(_KUBELETS_OWN_LABELS)
    ]
    if first:
        arguments["node-labels"] = ",".join(first)
    taints = node_taints(settings, host)
    ignored = list(settings.preflight.ignore)
    return {
        "name": host.name,
        "criSocket": CRI_SOCKET,
        "kubeletExtraArgs": _arguments(arguments),
        # No step uses --ignore-preflight-errors; kubeadm would add its names to these.
        **({"ignorePreflightErrors": ignored} if ignored else {}),
        "imagePullPolicy": "IfNotPresent",
        # From the start, so that no pod slips in; later changes are the member's.
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


class _Dumper(yaml.SafeDumper):
    """Quotes also what Go's reader, which is kubeadm's, takes for a number or a truth value."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([yYnN]|[-+]?(\.?[0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?|0[xXoObB][0-9A-Fa-f_]+))$"),
    list("yYnN-+.0123456789"),
)


def _documents(*documents: Mapping[str, Any]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1000)


def _kubeconfig(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        # The error quotes the text, keys included, and a traceback would print it as the cause.
        raise KubeconfigError("the kubeconfig is no YAML") from None
    if not isinstance(document, dict) or document.get("kind") != "Config":
        raise KubeconfigError("the text is no kubeconfig (kind: Config)")
    return document


def _current_cluster(text: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `cluster` of the current context; inside `document`, where given, so that it can be changed."""
    if document is None:
        document = _kubeconfig(text)
    current = document.get("current-context")
    for context in document.get("contexts") or []:
        if context.get("name") == current:
            for cluster in document.get("clusters") or []:
                if cluster.get("name") == context["context"]["cluster"]:
                    found: dict[str, Any] = cluster["cluster"]
                    return found
    raise KubeconfigError(f"the kubeconfig's current context {current!r} names no cluster of it")
