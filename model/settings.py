"""The settings of a stack as frozen types.

Every setting's meaning, default and effect is defined here, once: docs/settings.md and the editors' schema
are generated from these types (`make docs`). The types in `model/field_types.py` check single values,
`model/settings_checks.py` checks settings against each other, and `model/settings_file.py` loads it all.

Names are camelCase in YAML and snake_case in Python. Durations are strings in Kubernetes' form (`5s`, `4m`);
addresses and networks are checked strings.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from model.field_types import (
    Address,
    CertificateName,
    Duration,
    Environment,
    FilePath,
    Flag,
    GracePeriod,
    HostKey,
    HostPath,
    HostPort,
    Image,
    ImageRepository,
    ImageThreshold,
    JumpHost,
    KubernetesVersion,
    Labels,
    LogFiles,
    MaxPods,
    Mirrors,
    Name,
    Network4,
    NodePort,
    NodePortAddresses,
    PackageKey,
    PackageRevision,
    PodSubnet,
    Port,
    Positive,
    PositiveDuration,
    PreflightChecks,
    Regex,
    RenewDays,
    RepositoryUrl,
    Reserved,
    ResyncSeconds,
    RolloutSeconds,
    ServiceSubnet,
    Share,
    Size,
    SshHost,
    Subdomain,
    Taints,
    Text,
    Thresholds,
    TokenMinutes,
    UserName,
    jump_host_parts,
    share_of,
)

PREFIX = "kubeadm-ipvs:"
"""Prefix of every setting in a stack file: the project's name in Pulumi.yaml."""

ANYWHERE = "0.0.0.0/0"
"""The network of all addresses. As a source for the firewall, it includes IPv6."""


class Effect(Enum):
    """The effect of changing a setting on an existing cluster. Each setting's type carries one.

    The value is the explanation that people read. tests/fast/test_effects.py checks each effect against the
    resources, and components/changes.py uses it to find the settings that need a new cluster.
    """

    NOTHING = "no host changes; the program uses the new value from the next run on"
    LATER = "existing hosts and objects stay as they are; anything created later uses the new value"
    IN_PLACE = "applied to the running hosts and the running cluster"
    ROLLING = "applied to one node or pod at a time, while the others keep serving"
    NEW_HOST = "the host is reset and set up again; for the control plane, that means a new cluster"
    NEW_CLUSTER = "every host is reset and the cluster is created again; everything in it is lost"
    REFUSED = "refused as long as the cluster exists"

    @property
    def label(self) -> str:
        """The name in lower case with spaces: `in place` for `IN_PLACE`."""
        return self.name.lower().replace("_", " ")


class Section(BaseModel):
    """A section of the configuration: frozen, camelCase in YAML, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, strict=True
    )


class Ssh(Section):
    """SSH access to the hosts. A host's own `ssh` section overrides some of it."""

    user: Annotated[UserName, Effect.LATER] = Field(
        "root",
        description="Login user, such as `root` or `ops@corp.example.com`. Any user other than root needs "
        "sudo without a password. Steps on existing hosts use the login in the state; "
        "`python -m tools credentials` replaces it.",
    )
    port: Annotated[Port, Effect.NOTHING] = Field(22, description="Port of the hosts' SSH servers.")
    private_key_file: Annotated[FilePath | None, Effect.LATER] = Field(
        None,
        description="Private key to log in with, without a passphrase. If unset, the SSH agent at "
        "`SSH_AUTH_SOCK` provides the keys. ssh's default keys, such as `~/.ssh/id_ed25519`, aren't used by "
        "themselves. Steps on existing hosts use the key in the state, as with `ssh.user`.",
    )
    known_hosts_file: Annotated[FilePath | None, Effect.NOTHING] = Field(
        None,
        description="OpenSSH known_hosts file. A host whose key is neither in this file nor in its own "
        "`ssh.hostKey` is refused, and so is one with two keys of the same type or a revoked key.",
    )
    proxy_jump: Annotated[JumpHost, Effect.NOTHING] = Field(
        "none",
        description="Jump host (bastion) through which all hosts are reached: `USER@HOST:PORT`, as in ssh's "
        "`ProxyJump`. User and port default to the host's login user and 22. The login keys are the same.",
    )
    proxy_jump_host_key: Annotated[HostKey | None, Effect.NOTHING] = Field(
        None, description="Public key of the jump host. Takes precedence over the known_hosts file."
    )
    wait_seconds: Annotated[Positive, Effect.NOTHING] = Field(
        180,
        description="How long to wait for a host's SSH server to come up, for example during boot, in "
        "seconds.",
    )
    dial_timeout_seconds: Annotated[Positive, Effect.NOTHING] = Field(
        5, description="How long a step waits for one connection attempt, in seconds."
    )
    dial_attempts: Annotated[Positive, Effect.NOTHING] = Field(
        12,
        description="Failed connection attempts before a step gives up. The default is reached after about "
        "90 seconds.",
    )


class HostSsh(Section):
    """SSH access to one host, where it differs from the `ssh` section."""

    host: Annotated[SshHost | None, Effect.NOTHING] = Field(
        None, description="Address or name to connect to, if not `address`."
    )
    port: Annotated[Port | None, Effect.NOTHING] = Field(
        None, description="Port of the SSH server, if not `ssh.port`."
    )
    user: Annotated[UserName | None, Effect.LATER] = Field(None, description="Login user, if not `ssh.user`.")
    host_key: Annotated[HostKey | None, Effect.NOTHING] = Field(
        None,
        description="Public key of the host, `ssh-ed25519 AAAA...`. Takes precedence over the known_hosts "
        "file.",
    )
    proxy_jump: Annotated[JumpHost | None, Effect.NOTHING] = Field(
        None, description="Jump host, if not `ssh.proxyJump`; `none` for a direct connection."
    )
    proxy_jump_host_key: Annotated[HostKey | None, Effect.NOTHING] = Field(
        None, description="Public key of the host's own jump host."
    )


@dataclass(frozen=True)
class JumpServer:
    """A jump host. Settings that come from `settings_file.load` always have its key."""

    user: str
    address: str
    port: int
    host_key: str


class Preflight(Section):
    """The checks before a host becomes a node: kubeadm's and the program's own."""

    ignore: Annotated[PreflightChecks, Effect.LATER] = Field(
        (),
        description="kubeadm preflight checks that a host may fail, such as `[NumCPU]`. The program's own "
        "checks for `NumCPU`, `Mem`, `Port-NUMBER` and `DirAvailable--var-lib-etcd` are skipped too. "
        "`NumCPU` also lowers the control plane's CPU requests, so that its pods fit on one CPU. `Routes`, "
        "which kubeadm doesn't have, accepts routes and DNS servers in the pod and service subnets.",
    )
    remove_leftovers: Annotated[Flag, Effect.LATER] = Field(
        default=False,
        description="Whether a previous cluster's leftovers are removed from a host before its state is "
        "recorded: network interfaces, IPVS virtual servers, iptables chains, nftables tables and IP sets of "
        "kube-proxy and flannel, and flannel's CNI files. If not, such a host is refused. Data, certificates "
        "and containers are never removed.",
    )

    def ignores(self, check: str) -> bool:
        """Whether a host may fail the check. Names are case-insensitive, as in kubeadm."""
        return check.lower() in (name.lower() for name in self.ignore)


class Host(Section):
    """One host of the cluster."""

    name: Annotated[Name, Effect.NEW_HOST] = Field(
        description="Name of the node. Renaming a host in one step is refused: remove the old name, run "
        "`pulumi up`, then add the new name. To rename the control plane, run `pulumi destroy` first."
    )
    role: Annotated[Literal["control-plane", "worker"], Effect.REFUSED] = Field(
        description="Role of the host. Exactly one host is the control plane."
    )
    address: Annotated[Address, Effect.NEW_HOST] = Field(
        description="Address on the network that the hosts share; kubelet's `node-ip`."
    )
    ssh: HostSsh = HostSsh()
    labels: Annotated[Labels, Effect.IN_PLACE] = Field({}, description="Labels of the node.")
    taints: Annotated[Taints, Effect.IN_PLACE] = Field(
        (),
        description="Taints of the node, such as `key=value:NoSchedule`, in addition to Kubernetes' own.",
    )
    repair: Annotated[Text | None, Effect.IN_PLACE] = Field(
        None,
        description="Any text that differs from the previous one, such as a date. Changing it runs every "
        "step on the host again, which fixes the differences that `make check` reports.",
    )


class Timeouts(Section):
    """kubeadm's own timeouts (`timeouts` in v1beta4). If one is too short, joins fail."""

    control_plane_component_health_check: Annotated[PositiveDuration, Effect.LATER] = Field(
        "4m0s", description="How long kubeadm waits for a control plane component to become healthy."
    )
    kubelet_health_check: Annotated[PositiveDuration, Effect.LATER] = Field(
        "4m0s", description="How long kubeadm waits for kubelet to become healthy."
    )
    kubernetes_api_call: Annotated[PositiveDuration, Effect.LATER] = Field(
        "1m0s",
        description="How long kubeadm, and the program's Kubernetes provider, wait for the API server's "
        "response.",
    )
    etcd_api_call: Annotated[PositiveDuration, Effect.LATER] = Field(
        "2m0s", description="How long kubeadm waits for etcd's response."
    )
    tls_bootstrap: Annotated[PositiveDuration, Effect.LATER] = Field(
        "5m0s", description="How long a join waits for kubelet's certificate."
    )
    discovery: Annotated[PositiveDuration, Effect.LATER] = Field(
        "5m0s", description="How long a join waits for the cluster's discovery data."
    )


class StepTimeouts(Section):
    """How long each step on a host may take, in seconds, before it is killed and fails."""

    inspect: Annotated[Positive, Effect.NOTHING] = Field(
        300, description="How long the `claim` step may take to inspect a host, in seconds."
    )
    prepare: Annotated[Positive, Effect.NOTHING] = Field(
        1200,
        description="How long each of the steps `kernel`, `firewall`, `packages` and `runtime` may take, in "
        "seconds.",
    )
    init: Annotated[Positive, Effect.NOTHING] = Field(
        1200, description="How long `kubeadm init` may take, in seconds."
    )
    join: Annotated[Positive, Effect.NOTHING] = Field(
        1200, description="How long `kubeadm join` may take, in seconds."
    )
    rollout: Annotated[RolloutSeconds, Effect.NOTHING] = Field(
        900,
        description="How long a node may take to become Ready, or to change its kube-proxy mode, in seconds.",
    )
    verification: Annotated[Positive, Effect.NOTHING] = Field(
        600,
        description="How long the verification may take in addition to `verification.waitSeconds`, in "
        "seconds.",
    )
    reset: Annotated[Positive, Effect.NOTHING] = Field(
        900, description="How long resetting and restoring a host may take, in seconds."
    )
    drain: Annotated[Positive, Effect.NOTHING] = Field(
        300, description="How long draining a node may take, in seconds."
    )


class Kubelet(Section):
    """KubeletConfiguration fields for every node. A field that isn't set keeps kubelet's default.

    https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/
    """

    max_pods: Annotated[MaxPods | None, Effect.IN_PLACE] = Field(
        None,
        description="Maximum number of pods per node, 6 to 255: a node's /24 has addresses for 253 pods, and "
        "kube-proxy and flannel need none. If unset, kubelet's default applies, as for every setting in "
        "`cluster.kubelet`.",
    )
    pod_pids_limit: Annotated[Positive | None, Effect.IN_PLACE] = Field(
        None, description="Maximum number of processes per pod."
    )
    system_reserved: Annotated[Reserved | None, Effect.IN_PLACE] = Field(
        None, description="Resources reserved for the system, such as `{cpu: 200m, memory: 256Mi}`."
    )
    kube_reserved: Annotated[Reserved | None, Effect.IN_PLACE] = Field(
        None, description="Resources reserved for kubelet and the container runtime."
    )
    eviction_hard: Annotated[Thresholds | None, Effect.IN_PLACE] = Field(
        None,
        description="Thresholds below which kubelet evicts pods, such as `{memory.available: 100Mi}`.",
    )
    image_gc_high_threshold_percent: Annotated[ImageThreshold | None, Effect.IN_PLACE] = Field(
        None, description="Disk usage at which kubelet deletes unused images, in percent."
    )
    container_log_max_files: Annotated[LogFiles | None, Effect.IN_PLACE] = Field(
        None, description="Maximum number of log files per container."
    )
    container_log_max_size: Annotated[Size | None, Effect.IN_PLACE] = Field(
        None, description="Maximum size of a container's log file, such as `10Mi`."
    )
    resolv_conf: Annotated[HostPath | None, Effect.IN_PLACE] = Field(
        None,
        description="File on every host with the DNS servers that CoreDNS asks. If unset, "
        "`/run/systemd/resolve/resolv.conf` where systemd-resolved is active, else `/etc/resolv.conf`. Pods "
        "that run already keep their servers.",
    )
    serialize_image_pulls: Annotated[Flag | None, Effect.IN_PLACE] = Field(
        None, description="Whether kubelet pulls one image at a time."
    )
    shutdown_grace_period: Annotated[GracePeriod | None, Effect.IN_PLACE] = Field(
        None,
        description="How long pods may take to terminate when the host shuts down. kubelet raises logind's "
        "`InhibitDelayMaxSec` to it. On hosts with the package `unattended-upgrades`, more than `30s` has no "
        "effect (docs/troubleshooting.md).",
    )


class Certificates(Section):
    """Renewal of kubeadm's certificates, which are valid for a year."""

    renew_days: Annotated[RenewDays, Effect.IN_PLACE] = Field(
        30,
        description="How many days before they expire `pulumi up` renews the cluster's certificates and "
        "`make check` reports them.",
    )
    renew_timer: Annotated[Flag, Effect.IN_PLACE] = Field(
        default=False,
        description="Whether a systemd timer on the control plane renews the certificates too, in case "
        "nobody runs `pulumi up` in those days. The control plane's components restart when it does.",
    )


class Cluster(Section):
    """The cluster as kubeadm creates it."""

    name: Annotated[Name, Effect.LATER] = Field(
        "kubernetes", description="Name of the cluster in the kubeconfig."
    )
    kubernetes_version: Annotated[KubernetesVersion, Effect.REFUSED] = Field(
        "1.37.2",
        description="Kubernetes version, 1.34 to 1.39. From 1.40 on, IPVS mode is off by default. If unset, "
        "an existing cluster keeps its version.",
    )
    manual_upgrades: Annotated[Flag, Effect.NOTHING] = Field(
        default=False,
        description="Whether you upgrade the cluster yourself, with `kubeadm upgrade`. Previews then accept "
        "another `kubernetesVersion`; hosts that don't have it yet refuse it.",
    )
    image_repository: Annotated[ImageRepository, Effect.LATER] = Field(
        "registry.k8s.io",
        description="Registry and path of Kubernetes' own images. For the pods' sandbox image, a change "
        "applies in place.",
    )
    api_server: Annotated[HostPort | None, Effect.IN_PLACE] = Field(
        None,
        description="Where people and the Kubernetes provider reach the API server. Defaults to the control "
        "plane's address and port 6443.",
    )
    cert_sans: Annotated[tuple[CertificateName, ...], Effect.IN_PLACE] = Field(
        (), alias="certSANs", description="Additional names in the API server's certificate."
    )
    encryption_algorithm: Annotated[
        Literal["RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384"], Effect.LATER
    ] = Field("ECDSA-P256", description="Algorithm of the cluster's keys.")
    slow_hosts: Annotated[Flag, Effect.LATER] = Field(
        default=False,
        description="Longer timeouts for emulated or very slow hosts: control plane components and CoreDNS "
        "may be unresponsive for ten minutes before they are restarted, and etcd may take 15 seconds per "
        "request.",
    )
    extra_envs: Annotated[Environment, Effect.LATER] = Field(
        {},
        description="Environment variables of the API server, the controller manager, the scheduler and "
        "etcd, such as `NO_PROXY`. Each component gets all of them. They can't contain secrets, because "
        "Pulumi's state and the cluster have them in plain text.",
    )
    leader_election: Annotated[Flag, Effect.LATER] = Field(
        default=True,
        description="Leader election of the controller manager and the scheduler. Use `false` for a single "
        "control plane on a slow host, where a lost lease restarts them.",
    )
    join_token_minutes: Annotated[TokenMinutes, Effect.NOTHING] = Field(
        15, description="How long a join token is valid, in minutes. It is revoked after the join."
    )
    certificates: Certificates = Certificates()
    kubelet: Kubelet = Kubelet()
    timeouts: Timeouts = Timeouts()


class Drain(Section):
    """How a worker is drained before it leaves the cluster."""

    disable_eviction: Annotated[Flag, Effect.NOTHING] = Field(
        default=False,
        description="Delete pods instead of evicting them, which bypasses PodDisruptionBudgets.",
    )


class Flannel(Section):
    """The pod network."""

    backend: Annotated[Literal["vxlan", "host-gw"], Effect.ROLLING] = Field(
        "vxlan",
        description="flannel's backend. `host-gw` requires all hosts to be on one layer 2 network. A change "
        "replaces flannel's ConfigMap, which the pull request check reports as destructive.",
    )
    interface_regex: Annotated[Regex | None, Effect.ROLLING] = Field(
        None,
        description="Regular expression that selects flannel's network interface, matched first against the "
        "interfaces' addresses, then against their names. By default, each host uses the interface with its "
        "`address`.",
    )
    resync_seconds: Annotated[ResyncSeconds, Effect.ROLLING] = Field(
        5,
        description="How often flannel checks its iptables rules, in seconds. Every check starts a process "
        "per rule, so use a longer interval on slow hosts.",
    )
    image: Annotated[Image, Effect.ROLLING] = Field(
        "ghcr.io/flannel-io/flannel:v0.28.9", description="Image of flannel."
    )
    cni_plugin_image: Annotated[Image, Effect.ROLLING] = Field(
        "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel1", description="Image of flannel's CNI plugin."
    )


class Network(Section):
    """Networks inside the cluster."""

    pod_subnet: Annotated[PodSubnet, Effect.NEW_CLUSTER] = Field(
        "10.244.0.0/16", description="Network of the pods. Every host gets a /24 of it."
    )
    service_subnet: Annotated[ServiceSubnet, Effect.NEW_CLUSTER] = Field(
        "10.96.0.0/12",
        description="Network of the services. The API server gets its first address, the DNS service its "
        "tenth.",
    )
    dns_domain: Annotated[Subdomain, Effect.NEW_CLUSTER] = Field(
        "cluster.local", description="DNS domain of the cluster, in every pod's resolv.conf."
    )
    flannel: Flannel = Flannel()


class Proxy(Section):
    """kube-proxy."""

    mode: Annotated[Literal["ipvs", "nftables", "iptables"], Effect.ROLLING] = Field(
        "ipvs",
        description="kube-proxy's mode, changed on a few running nodes at a time (`proxy.maxUnavailable`). "
        "`nftables` requires kernel 5.13 or later.",
    )
    scheduler: Annotated[
        Literal["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "lblc", "lblcr", "mh"], Effect.ROLLING
    ] = Field("rr", description="IPVS scheduler.")
    sync_period: Annotated[PositiveDuration, Effect.ROLLING] = Field(
        "5s", description="How often kube-proxy resyncs all rules."
    )
    min_sync_period: Annotated[Duration, Effect.ROLLING] = Field(
        "1s",
        description="Minimum time between two resyncs. At most `proxy.syncPeriod`. The kernels may send "
        "connections to a pod that has ended for that long.",
    )
    max_unavailable: Annotated[Share, Effect.NOTHING] = Field(
        "10%",
        description="How many workers may change kube-proxy and kubelet at a time: a number, or a percentage "
        "of the workers, rounded down, but at least one. The control plane always changes first and alone.",
    )
    strict_arp: Annotated[Flag, Effect.ROLLING] = Field(
        default=False, description="Strict ARP, which MetalLB and kube-vip require in ARP mode."
    )
    tcp_timeout: Annotated[Duration, Effect.ROLLING] = Field(
        "0s", description="IPVS timeout of idle TCP connections. `0s` keeps the kernel's value."
    )
    tcp_fin_timeout: Annotated[Duration, Effect.ROLLING] = Field(
        "0s", description="IPVS timeout of TCP connections after a FIN. `0s` keeps the kernel's value."
    )
    udp_timeout: Annotated[Duration, Effect.ROLLING] = Field(
        "0s", description="IPVS timeout of UDP packets. `0s` keeps the kernel's value."
    )
    exclude_cidrs: Annotated[tuple[Network4, ...], Effect.ROLLING] = Field(
        (), description="Networks in which kube-proxy in mode `ipvs` leaves virtual servers alone."
    )
    node_port_addresses: Annotated[NodePortAddresses, Effect.ROLLING] = Field(
        (),
        description="Networks of the host addresses that serve NodePorts, or `[primary]` for only each "
        "host's `address`. They must contain each host's `address`. If the list is empty, every address of a "
        "host serves them.",
    )


class FirewallSources(Section):
    """Addresses that the hosts' firewalls let in, if `firewall` is `open`."""

    api: Annotated[tuple[Network4, ...], Effect.IN_PLACE] = Field(
        (ANYWHERE,),
        description="Networks from which the API server can be reached (6443/tcp on the control plane), "
        "besides the hosts. Include the machine that runs Pulumi. With an empty list, only the hosts reach "
        "it.",
    )
    node_ports: Annotated[tuple[Network4, ...], Effect.IN_PLACE] = Field(
        (ANYWHERE,),
        description="Networks from which NodePorts can be reached (30000 to 32767), besides the hosts. Only "
        "`proxy.mode: ipvs` can restrict them. With an empty list, only the hosts reach them.",
    )
    hosts: Annotated[tuple[Network4, ...], Effect.IN_PLACE] = Field(
        (),
        description="Networks of the hosts' other addresses, if kubelet (10250/tcp) or flannel's VXLAN "
        "(8472/udp) get traffic from them. Each host's `address` is always let in. With a network that "
        "contains all of them, adding a host changes no other host.",
    )


class Packages(Section):
    """Packages of kubelet, kubeadm and kubectl."""

    repository: Annotated[RepositoryUrl, Effect.IN_PLACE] = Field(
        "https://pkgs.k8s.io/core:/stable:/v{minor}/{format}/",
        description="URL of the package repository. `{minor}` stands for the minor version, such as `1.37`, "
        "and `{format}` for `deb` or `rpm`.",
    )
    key: Annotated[PackageKey | None, Effect.IN_PLACE] = Field(
        None,
        description="The repository's armored signing key, a file or an https:// URL. Defaults to the key "
        "that is in the repository. Required if `packages.repository` is an http:// URL.",
    )
    revision: Annotated[PackageRevision, Effect.IN_PLACE] = Field(
        "*", description="Package revision, the part that follows the version. `*` accepts any."
    )
    manage: Annotated[Flag, Effect.IN_PLACE] = Field(
        default=True,
        description="Whether the program installs packages. With `false`, the hosts must already have "
        "kubelet (enabled), kubeadm and kubectl in the configured version, crictl, containerd, ipvsadm, "
        "ipset, conntrack, and the other tools that kubeadm requires.",
    )


class Runtime(Section):
    """The container runtime."""

    mirrors: Annotated[Mirrors, Effect.IN_PLACE] = Field(
        {},
        description="Mirrors of each upstream registry, tried in order. Each is a URL, or `{url: URL, "
        "overridePath: true, ca: FILE}`: containerd adds `/v2` to the URL's path unless `overridePath` is "
        "true, and trusts the CA certificates in `ca`, a PEM file, for this mirror. Logins belong on the "
        "hosts (docs/air-gap.md).",
    )


class Nginx(Section):
    """nginx, the application of the walk-through."""

    image: Annotated[Image, Effect.ROLLING] = Field(
        "docker.io/library/nginx:1.29", description="Image of nginx."
    )
    replicas: Annotated[Positive, Effect.IN_PLACE] = Field(
        2, description="Number of pods, spread over the workers."
    )
    node_port: Annotated[NodePort, Effect.IN_PLACE] = Field(
        30080, description="NodePort of nginx on every host, 30000 to 32767."
    )


class Verification(Section):
    """How the finished cluster is verified."""

    requests: Annotated[Positive, Effect.NOTHING] = Field(
        10, description="Number of requests that every host sends to the ClusterIP and to the NodePort."
    )
    wait_seconds: Annotated[Positive, Effect.NOTHING] = Field(
        300, description="How long to wait for the cluster to converge, in seconds."
    )
    peers: Annotated[Positive, Effect.NOTHING] = Field(
        9,
        description="Number of other hosts whose NodePort every host requests. With as many hosts or fewer, "
        "every host requests all others. Each host is requested by others in any case.",
    )


class Settings(Section):
    """All settings of a stack."""

    extends: Annotated[FilePath | None, Effect.NOTHING] = Field(
        None,
        description="File with settings that several environments share, in the form of a stack file. "
        "Settings in the stack file take precedence one by one; a list replaces the whole shared list.",
    )
    cluster: Cluster = Cluster()
    network: Network = Network()
    proxy: Proxy = Proxy()
    ssh: Ssh = Ssh()
    preflight: Preflight = Preflight()
    packages: Packages = Packages()
    runtime: Runtime = Runtime()
    firewall: Annotated[Literal["open", "disable", "leave"], Effect.IN_PLACE] = Field(
        "open",
        description="The hosts' firewalls: `open` the required ports, `disable` the firewall, or `leave` it "
        "as it is.",
    )
    firewall_sources: FirewallSources = FirewallSources()
    production: Annotated[Flag, Effect.NOTHING] = Field(
        default=False,
        description="Protects the control plane: no run deletes or replaces it until you set `false` and "
        "apply that with `pulumi up`.",
    )
    hosts: tuple[Host, ...]
    nginx: Nginx = Nginx()
    drain: Drain = Drain()
    verification: Verification = Verification()
    step_timeouts: StepTimeouts = StepTimeouts()

    @property
    def control_plane(self) -> Host:
        """The control plane: `kubeadm init` runs there, and the workers join its address."""
        return next(host for host in self.hosts if host.role == "control-plane")

    @property
    def workers(self) -> tuple[Host, ...]:
        """The workers, in the order of the configuration."""
        return tuple(host for host in self.hosts if host.role == "worker")

    @property
    def minor(self) -> str:
        """The minor version: `1.37` for version `1.37.2`."""
        return self.cluster.kubernetes_version.rpartition(".")[0]

    @property
    def version_is_written(self) -> bool:
        """Whether `cluster.kubernetesVersion` is in the stack's settings. If not, it is the default."""
        return "kubernetes_version" in self.cluster.model_fields_set

    @property
    def api_port(self) -> int:
        """The port on which the API server listens."""
        return 6443

    @property
    def control_plane_endpoint(self) -> str:
        """`address:6443` of the control plane on the hosts' own network, for the nodes."""
        return f"{self.control_plane.address}:{self.api_port}"

    @property
    def api_server(self) -> str:
        """`host:port` of the API server for people and the provider."""
        return self.cluster.api_server or self.control_plane_endpoint

    @property
    def cert_sans(self) -> tuple[str, ...]:
        """Additional names in the API server's certificate: `cluster.certSANs` and the API server's host."""
        names = (*self.cluster.cert_sans, self.api_server.rpartition(":")[0].lower())
        return tuple(dict.fromkeys(names))

    @property
    def service_address(self) -> str:
        """The API server's service address, the first of the service subnet: 10.96.0.1."""
        return str(IPv4Network(self.network.service_subnet)[1])

    @property
    def dns_address(self) -> str:
        """The DNS service's address, the tenth of the service subnet: 10.96.0.10."""
        return str(IPv4Network(self.network.service_subnet)[10])

    @property
    def pause_image(self) -> str:
        """The sandbox image that this minor version's kubeadm expects. containerd must use the same one."""
        # An unreleased minor gets the newest known image: kubeadm only warns if it expects another one.
        version = _PAUSE.get(self.minor, _NEWEST_PAUSE)
        return f"{self.cluster.image_repository}/pause:{version}"

    @property
    def kube_proxy_image(self) -> str:
        """kube-proxy's image, which a reset also uses to clean up a host."""
        return f"{self.cluster.image_repository}/kube-proxy:v{self.cluster.kubernetes_version}"

    @property
    def proxy_lanes(self) -> int:
        """How many workers may change kube-proxy and kubelet at a time."""
        return share_of(self.proxy.max_unavailable, len(self.workers))

    @property
    def nginx_spread(self) -> int:
        """Number of hosts over which nginx's pods must be spread: as many as can run them, at least one."""
        return max(1, min(self.nginx.replicas, len(self.nginx_hosts)))

    @property
    def nginx_hosts(self) -> tuple[Host, ...]:
        """The hosts whose taints admit nginx's pods. With workers, the control plane is not among them."""
        return tuple(
            host
            for host in self.workers or self.hosts
            if not any(taint.endswith((":NoSchedule", ":NoExecute")) for taint in host.taints)
        )

    def package_repository(self, package_format: Literal["deb", "rpm"]) -> str:
        """The package repository's URL with its placeholders filled in and a slash at the end."""
        url = self.packages.repository.replace("{minor}", self.minor).replace("{format}", package_format)
        return url.rstrip("/") + "/"

    def ssh_endpoint(self, host: Host) -> tuple[str, int]:
        """Address and port of the host's SSH server."""
        return host.ssh.host or host.address, host.ssh.port or self.ssh.port

    def ssh_user(self, host: Host) -> str:
        """The user to log in as."""
        return host.ssh.user or self.ssh.user

    def jump_host(self, host: Host) -> JumpServer | None:
        """The jump host through which a host is reached; None if it is reached directly."""
        text = host.ssh.proxy_jump or self.ssh.proxy_jump
        if text == "none":
            return None
        user, address, port = jump_host_parts(text)
        key = host.ssh.proxy_jump_host_key
        if key is None and text == self.ssh.proxy_jump:
            key = self.ssh.proxy_jump_host_key
        return JumpServer(user or self.ssh_user(host), address, port, key or "")

    def host_key(self, host: Host) -> str:
        """The only key that the host's SSH server may present: `ssh-ed25519 AAAA...`.

        `settings_file.load` fills it in from the known_hosts file if the host has none of its own.

        Raises:
            LookupError: These settings didn't come from `load`.
        """
        if host.ssh.host_key is None:
            raise LookupError(
                f"{host.name} has no host key: these settings were not loaded from a stack file"
            )
        return host.ssh.host_key


def fields(model: type[Section] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its path (`proxy.mode`, `hosts[].name`), in the order of the types."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        path = prefix + str(field.alias or name)
        section, is_list = section_of(field.annotation)
        found |= (
            {path: field} if section is None else fields(section, f"{path}[]." if is_list else f"{path}.")
        )
    return found


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if any, and whether the field is a list of sections."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        section, _ = section_of(typing.get_args(annotation)[0])
        return section, True
    if origin in (types.UnionType, typing.Union):
        for part in typing.get_args(annotation):
            found = section_of(part)
            if found[0] is not None:
                return found
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    return None, False


def effect_of(field: FieldInfo) -> Effect:
    """The effect of changing the setting."""
    return next(marker for marker in field.metadata if isinstance(marker, Effect))


def value_at(settings: Settings, path: str) -> Any:
    """The value of a setting by its path. Settings in lists have no such path."""
    section: Any = settings
    for alias in path.split("."):
        names = {str(field.alias): name for name, field in type(section).model_fields.items()}
        section = getattr(section, names[alias])
    return section


# PauseVersion in kubeadm's constants (cmd/kubeadm/app/constants) at v1.34.4, v1.35.1, v1.36.3 and v1.37.2.
_PAUSE = {"1.34": "3.10.1", "1.35": "3.10.1", "1.36": "3.10.2", "1.37": "3.10.2"}
_NEWEST_PAUSE = "3.10.2"
