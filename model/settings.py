"""Everything a stack's configuration can say, as frozen types.

One place reads configuration: `load` turns the raw values of a
`Pulumi.<env>.yaml` into `Settings`, or raises `SettingsError` with every problem found,
each with its path, before anything is touched. Nothing else in the program reads
configuration, and nothing here touches Pulumi, the network or a host (`load` reads the files
that the configuration names, and only those). What environments share is in a file that a
stack file `extends`.

What a setting means and what a change of it does is said here, once: docs/settings.md and the
editors' schema are made from it (`make docs`).

Names are camelCase in the YAML and snake_case here. Durations are strings as
Kubernetes writes them (`5s`, `4m`), addresses and networks are checked strings.
What concerns one value is checked by its type (`model/field_types.py`); what concerns several, by `load`.
"""

from __future__ import annotations

import base64
import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from model import knownhosts
from model.field_types import (
    Address,
    CertificateName,
    Duration,
    Environment,
    FilePath,
    Flag,
    GracePeriod,
    HostKey,
    HostPort,
    Image,
    ImageRepository,
    ImageThreshold,
    KubernetesVersion,
    Labels,
    LogFiles,
    Mirrors,
    Name,
    Network4,
    NodePort,
    PackageKey,
    PackageRevision,
    PodSubnet,
    Port,
    Positive,
    PositiveDuration,
    PreflightChecks,
    Regex,
    RepositoryUrl,
    Reserved,
    ResyncSeconds,
    RolloutSeconds,
    ServiceSubnet,
    Size,
    SshHost,
    Subdomain,
    Taints,
    Text,
    Thresholds,
    TokenMinutes,
    UserName,
    is_url,
    seconds,
)

PREFIX = "kubeadm-ipvs:"
"""What each setting's name begins with in a stack file: Pulumi.yaml's name."""


class Effect(Enum):
    """What a change of a setting does to a cluster that lives: a marker in the setting's type.

    The value is the explanation for a person. What a marker promises of the resources is tested
    (tests/fast/test_effects.py), and what makes a new cluster is taken from here (components/changes.py).
    """

    NOTHING = "no host is changed; it is how this program works, from the next run on"
    LATER = "what is there stays as it is; what is made later has it"
    IN_PLACE = "changed on the hosts and in the cluster as they run"
    ROLLING = "one node or pod after the other, while the rest answers"
    NEW_HOST = "the host is given back and made anew; if it is the control plane, that is a new cluster"
    NEW_CLUSTER = "every host is reset and the cluster made anew: all that is in it is lost"
    REFUSED = "refused while the cluster lives"

    @property
    def label(self) -> str:
        """`in place` of `IN_PLACE`."""
        return self.name.lower().replace("_", " ")


class Section(BaseModel):
    """A part of the configuration: frozen, camelCase outside, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, strict=True
    )


class Ssh(Section):
    """How hosts are reached; a host may override some of it in its own `ssh`."""

    user: Annotated[UserName, Effect.NOTHING] = Field(
        "root", description="any other needs sudo without a password"
    )
    port: Annotated[Port, Effect.NOTHING] = Field(22, description="where the SSH servers listen")
    private_key_file: Annotated[FilePath | None, Effect.NOTHING] = Field(
        None, description="the login key; without it the agent of `SSH_AUTH_SOCK`"
    )
    known_hosts_file: Annotated[FilePath | None, Effect.NOTHING] = Field(
        None, description="OpenSSH's; a host whose key is neither there nor in its `ssh.hostKey` is refused"
    )
    wait_seconds: Annotated[Positive, Effect.NOTHING] = Field(
        180, description="so long may a host take until its SSH server answers at all, as while it boots"
    )
    dial_timeout_seconds: Annotated[Positive, Effect.NOTHING] = Field(
        5, description="seconds that one attempt of a step to connect may take"
    )
    dial_attempts: Annotated[Positive, Effect.NOTHING] = Field(
        12,
        description="after so many failed attempts a step gives the host up: by default after a minute and "
        "a half",
    )


class HostSsh(Section):
    """One host's own way in, where it differs from `ssh`."""

    host: Annotated[SshHost | None, Effect.NOTHING] = Field(
        None, description="where SSH goes, if not to `address`"
    )
    port: Annotated[Port | None, Effect.NOTHING] = Field(None, description="and its port, if not `ssh.port`")
    user: Annotated[UserName | None, Effect.NOTHING] = Field(None, description="likewise, if not `ssh.user`")
    host_key: Annotated[HostKey | None, Effect.NOTHING] = Field(
        None, description="the host's public key, `ssh-ed25519 AAAA...`; wins over the known_hosts file"
    )


class Preflight(Section):
    """Which of kubeadm's preflight checks a host may fail."""

    ignore: Annotated[PreflightChecks, Effect.LATER] = Field(
        (),
        description="kubeadm's preflight checks that a host may fail, such as `[NumCPU]`; this program's own "
        "checks for `NumCPU`, `Mem` and `Port-NUMBER` are skipped too. `NumCPU` also lowers the control "
        "plane's CPU requests, so that its pods fit on one CPU",
    )

    def ignores(self, check: str) -> bool:
        """Whether a host may fail that check; upper and lower case are the same, as in kubeadm."""
        return check.lower() in (name.lower() for name in self.ignore)


class Host(Section):
    """One machine of the cluster."""

    name: Annotated[Name, Effect.NEW_HOST] = Field(
        description="the node's name; the same machine under another name is refused: take the old name out, "
        "`pulumi up`, and add the new one, or `pulumi destroy` first for the control plane's"
    )
    role: Annotated[Literal["control-plane", "worker"], Effect.REFUSED] = Field(
        description="one of the hosts is the control plane"
    )
    address: Annotated[Address, Effect.NEW_HOST] = Field(
        description="on the network that the hosts share: kubelet's node-ip"
    )
    ssh: HostSsh = HostSsh()
    labels: Annotated[Labels, Effect.IN_PLACE] = Field({}, description="labels of the node")
    taints: Annotated[Taints, Effect.IN_PLACE] = Field(
        (), description="taints of the node, `key=value:NoSchedule`, besides Kubernetes' own"
    )
    repair: Annotated[Text | None, Effect.IN_PLACE] = Field(
        None,
        description="any text that wasn't there before, such as a date: every step on the host runs again "
        "and puts right what `make check` has found",
    )


class Timeouts(Section):
    """kubeadm's own limits (v1beta4 `timeouts`); a limit that is too short breaks a join."""

    control_plane_component_health_check: Annotated[PositiveDuration, Effect.LATER] = Field(
        "4m0s", description="kubeadm waits so long for a component of the control plane"
    )
    kubelet_health_check: Annotated[PositiveDuration, Effect.LATER] = Field(
        "4m0s", description="and for kubelet"
    )
    kubernetes_api_call: Annotated[PositiveDuration, Effect.LATER] = Field(
        "1m0s", description="for the API server's answer; the provider of the objects waits so long, too"
    )
    etcd_api_call: Annotated[PositiveDuration, Effect.LATER] = Field("2m0s", description="for etcd's answer")
    tls_bootstrap: Annotated[PositiveDuration, Effect.LATER] = Field(
        "5m0s", description="for kubelet's certificate at a join"
    )
    discovery: Annotated[PositiveDuration, Effect.LATER] = Field(
        "5m0s", description="for the cluster's data at a join"
    )


class StepTimeouts(Section):
    """How long each remote step may take, in seconds, before it is killed and reported."""

    inspect: Annotated[Positive, Effect.NOTHING] = Field(
        300, description="seconds that a step may take: looking at a host"
    )
    prepare: Annotated[Positive, Effect.NOTHING] = Field(1200, description="each step of its preparation")
    init: Annotated[Positive, Effect.NOTHING] = Field(1200, description="kubeadm init")
    join: Annotated[Positive, Effect.NOTHING] = Field(1200, description="kubeadm join")
    rollout: Annotated[RolloutSeconds, Effect.NOTHING] = Field(900, description="a node until it is Ready")
    verification: Annotated[Positive, Effect.NOTHING] = Field(
        600, description="the verification, besides its waiting"
    )
    reset: Annotated[Positive, Effect.NOTHING] = Field(900, description="giving a host back")
    drain: Annotated[Positive, Effect.NOTHING] = Field(300, description="draining a node")


class Kubelet(Section):
    """Fields of KubeletConfiguration, for every node; what isn't given keeps kubelet's own default.

    https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/
    """

    max_pods: Annotated[Positive | None, Effect.IN_PLACE] = Field(
        None, description="pods on a node; as all of `cluster.kubelet`, kubelet's own default without it"
    )
    pod_pids_limit: Annotated[Positive | None, Effect.IN_PLACE] = Field(
        None, description="processes in a pod"
    )
    system_reserved: Annotated[Reserved | None, Effect.IN_PLACE] = Field(
        None, description="kept from pods for the system: `{cpu: 200m, memory: 256Mi}`"
    )
    kube_reserved: Annotated[Reserved | None, Effect.IN_PLACE] = Field(
        None, description="likewise for kubelet and the container runtime"
    )
    eviction_hard: Annotated[Thresholds | None, Effect.IN_PLACE] = Field(
        None, description="with less left, pods are evicted: `{memory.available: 100Mi}`"
    )
    image_gc_high_threshold_percent: Annotated[ImageThreshold | None, Effect.IN_PLACE] = Field(
        None, description="of the disk in use, and unused images are deleted"
    )
    container_log_max_files: Annotated[LogFiles | None, Effect.IN_PLACE] = Field(
        None, description="log files kept of a container"
    )
    container_log_max_size: Annotated[Size | None, Effect.IN_PLACE] = Field(
        None, description="of each: `10Mi`"
    )
    serialize_image_pulls: Annotated[Flag | None, Effect.IN_PLACE] = Field(
        None, description="one image at a time"
    )
    shutdown_grace_period: Annotated[GracePeriod | None, Effect.IN_PLACE] = Field(
        None, description="for pods when the host is shut down"
    )


class Cluster(Section):
    """What kubeadm is told about the cluster as a whole."""

    name: Annotated[Name, Effect.LATER] = Field("kubernetes", description="in the kubeconfig")
    kubernetes_version: Annotated[KubernetesVersion, Effect.REFUSED] = Field(
        "1.37.2", description="1.34 to 1.39: there is no IPVS mode by default from 1.40 on"
    )
    api_server: Annotated[HostPort | None, Effect.IN_PLACE] = Field(
        None,
        description="where people and the provider reach the API; without it the control plane's address, "
        "port 6443",
    )
    cert_sans: Annotated[tuple[CertificateName, ...], Effect.IN_PLACE] = Field(
        (), alias="certSANs", description="more names of the API server's certificate"
    )
    encryption_algorithm: Annotated[
        Literal["RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384"], Effect.LATER
    ] = Field("ECDSA-P256", description="of the cluster's keys")
    slow_hosts: Annotated[Flag, Effect.LATER] = Field(
        default=False,
        description="for emulated or very slow hosts: components and CoreDNS get ten minutes to answer "
        "before they are restarted, and etcd 15 seconds for a request",
    )
    extra_envs: Annotated[Environment, Effect.LATER] = Field(
        {},
        description="variables of the API server's, the controller manager's, the scheduler's and etcd's "
        "processes, such as `NO_PROXY`; all of them get each",
    )
    leader_election: Annotated[Flag, Effect.LATER] = Field(
        default=True,
        description="`false` for one control plane on a slow machine, where a lost lease restarts the "
        "controllers",
    )
    join_token_minutes: Annotated[TokenMinutes, Effect.NOTHING] = Field(
        15, description="how long a token is valid; it is revoked when its join is done"
    )
    kubelet: Kubelet = Kubelet()
    timeouts: Timeouts = Timeouts()


class Drain(Section):
    """How a worker is drained before it leaves the cluster."""

    disable_eviction: Annotated[Flag, Effect.NOTHING] = Field(
        default=False,
        description="delete pods instead of evicting them, which bypasses disruption budgets",
    )


class Flannel(Section):
    """The pod network."""

    backend: Annotated[Literal["vxlan", "host-gw"], Effect.ROLLING] = Field(
        "vxlan",
        description="`host-gw` where all hosts share one layer 2; flannel's ConfigMap is made anew, which a "
        "pull request's check calls destructive",
    )
    interface_regex: Annotated[Regex | None, Effect.ROLLING] = Field(
        None,
        description="matched against interface addresses, then names; without it the networks of the hosts' "
        "addresses",
    )
    resync_seconds: Annotated[ResyncSeconds, Effect.ROLLING] = Field(
        5,
        description="how often flannel looks whether its iptables rules are there, a program for each; more "
        "for slow hosts",
    )
    image: Annotated[Image, Effect.ROLLING] = Field(
        "ghcr.io/flannel-io/flannel:v0.28.9", description="flannel's"
    )
    cni_plugin_image: Annotated[Image, Effect.ROLLING] = Field(
        "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel1", description="its CNI plugin's"
    )


class Network(Section):
    """Addresses inside the cluster."""

    pod_subnet: Annotated[PodSubnet, Effect.NEW_CLUSTER] = Field(
        "10.244.0.0/16", description="a /24 of it for each host"
    )
    service_subnet: Annotated[ServiceSubnet, Effect.NEW_CLUSTER] = Field(
        "10.96.0.0/12", description="its first address is the API's, its tenth the DNS service's"
    )
    dns_domain: Annotated[Subdomain, Effect.NEW_CLUSTER] = Field(
        "cluster.local", description="in every pod's resolv.conf"
    )
    flannel: Flannel = Flannel()


class Proxy(Section):
    """kube-proxy."""

    mode: Annotated[Literal["ipvs", "nftables", "iptables"], Effect.ROLLING] = Field(
        "ipvs", description="changed live, one node after the other; `nftables` needs a kernel 5.13 or later"
    )
    scheduler: Annotated[
        Literal["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "lblc", "lblcr", "mh"], Effect.ROLLING
    ] = Field("rr", description="of IPVS")
    sync_period: Annotated[PositiveDuration, Effect.ROLLING] = Field(
        "5s", description="all rules are looked over so often"
    )
    min_sync_period: Annotated[Duration, Effect.ROLLING] = Field("5s", description="at most `syncPeriod`")
    strict_arp: Annotated[Flag, Effect.ROLLING] = Field(
        default=False, description="`true` for MetalLB or kube-vip in ARP mode"
    )
    tcp_timeout: Annotated[Duration, Effect.ROLLING] = Field(
        "0s", description="IPVS's own timeouts; `0s` leaves the kernel's"
    )
    tcp_fin_timeout: Annotated[Duration, Effect.ROLLING] = Field("0s", description="likewise")
    udp_timeout: Annotated[Duration, Effect.ROLLING] = Field("0s", description="likewise")
    exclude_cidrs: Annotated[tuple[Network4, ...], Effect.ROLLING] = Field(
        (), description="virtual servers in these networks are none of kube-proxy's"
    )


class Packages(Section):
    """Where kubelet, kubeadm and kubectl come from."""

    repository: Annotated[RepositoryUrl, Effect.IN_PLACE] = Field(
        "https://pkgs.k8s.io/core:/stable:/v{minor}/{format}/",
        description="`{minor}`: `1.37`; `{format}`: `deb` or `rpm`",
    )
    key: Annotated[PackageKey | None, Effect.IN_PLACE] = Field(
        None, description="its armored signing key; without it the one in the repository"
    )
    revision: Annotated[PackageRevision, Effect.IN_PLACE] = Field(
        "*", description="of the package, after the version"
    )
    manage: Annotated[Flag, Effect.IN_PLACE] = Field(
        default=True,
        description="`false`: nothing is installed. kubelet (enabled), kubeadm and kubectl at that version, "
        "crictl, containerd and the tools (ipvsadm, ipset, conntrack, what kubeadm asks for) are there",
    )


class Registry(Section):
    """Where images come from."""

    image_repository: Annotated[ImageRepository, Effect.LATER] = Field(
        "registry.k8s.io", description="of Kubernetes' own images; a pod's sandbox image changes in place"
    )
    mirrors: Annotated[Mirrors, Effect.IN_PLACE] = Field(
        {}, description="upstream registry to a list of mirrors, tried in order"
    )


class Nginx(Section):
    """The application that the walk-through deploys."""

    image: Annotated[Image, Effect.ROLLING] = Field("docker.io/library/nginx:1.29", description="nginx's")
    replicas: Annotated[Positive, Effect.IN_PLACE] = Field(2, description="spread over the workers")
    node_port: Annotated[NodePort, Effect.IN_PLACE] = Field(
        30080, description="where every host answers, 30000 to 32767"
    )


class Verification(Section):
    """What is asked of the finished cluster."""

    requests: Annotated[Positive, Effect.NOTHING] = Field(
        10, description="to each of the ClusterIP and the NodePort, from every host"
    )
    wait_seconds: Annotated[Positive, Effect.NOTHING] = Field(300, description="for what converges")


class Settings(Section):
    """A whole environment."""

    extends: Annotated[FilePath | None, Effect.NOTHING] = Field(
        None,
        description="a file with what environments share, in the form of a stack file; what the stack file "
        "says wins, name by name, and a list takes the whole place of the other",
    )
    cluster: Cluster = Cluster()
    network: Network = Network()
    proxy: Proxy = Proxy()
    ssh: Ssh = Ssh()
    preflight: Preflight = Preflight()
    packages: Packages = Packages()
    registry: Registry = Registry()
    firewall: Annotated[Literal["open", "disable", "leave"], Effect.IN_PLACE] = Field(
        "open", description="`open` the ports that are needed, `disable` it, or `leave` it"
    )
    production: Annotated[Flag, Effect.NOTHING] = Field(
        default=False,
        description="protects the control plane: no run deletes or replaces it until this is `false` again "
        "and an `up` has said so",
    )
    hosts: tuple[Host, ...]
    nginx: Nginx = Nginx()
    drain: Drain = Drain()
    verification: Verification = Verification()
    step_timeouts: StepTimeouts = StepTimeouts()

    @property
    def control_plane(self) -> Host:
        """The first control plane: where init runs and whose address the nodes join."""
        return next(host for host in self.hosts if host.role == "control-plane")

    @property
    def workers(self) -> tuple[Host, ...]:
        """The workers, in the order of the configuration."""
        return tuple(host for host in self.hosts if host.role == "worker")

    @property
    def minor(self) -> str:
        """`1.37` of version `1.37.2`."""
        return self.cluster.kubernetes_version.rpartition(".")[0]

    @property
    def api_port(self) -> int:
        """The port on which the API server listens."""
        return 6443

    @property
    def control_plane_endpoint(self) -> str:
        """`address:6443` of the control plane on the hosts' own network: what nodes talk to."""
        return f"{self.control_plane.address}:{self.api_port}"

    @property
    def api_server(self) -> str:
        """`host:port` of the API as people and the provider reach it."""
        return self.cluster.api_server or self.control_plane_endpoint

    @property
    def cert_sans(self) -> tuple[str, ...]:
        """Extra names of the API server's certificate: those asked for, and the host of `api_server`."""
        names = (*self.cluster.cert_sans, self.api_server.rpartition(":")[0].lower())
        return tuple(dict.fromkeys(names))

    @property
    def service_address(self) -> str:
        """The API's service address, first of the service subnet: 10.96.0.1."""
        return str(IPv4Network(self.network.service_subnet)[1])

    @property
    def dns_address(self) -> str:
        """The DNS service's address, tenth of the service subnet: 10.96.0.10."""
        return str(IPv4Network(self.network.service_subnet)[10])

    @property
    def pause_image(self) -> str:
        """The sandbox image that kubeadm of this minor expects; containerd must name the same one."""
        # A minor that isn't out yet takes the newest known: kubeadm warns of another one, and works.
        version = _PAUSE.get(self.minor, _NEWEST_PAUSE)
        return f"{self.registry.image_repository}/pause:{version}"

    @property
    def kube_proxy_image(self) -> str:
        """kube-proxy's image; also what cleans up a host at reset."""
        return f"{self.registry.image_repository}/kube-proxy:v{self.cluster.kubernetes_version}"

    def node_images(self, host: Host) -> tuple[str, ...]:
        """What every node runs and kubeadm doesn't pull on a worker, to be pulled while others are busy."""
        flannel = self.network.flannel
        images = [self.pause_image, self.kube_proxy_image, flannel.image, flannel.cni_plugin_image]
        if host.role == "worker" or not self.workers:
            images.append(self.nginx.image)
        return tuple(images)

    @property
    def nginx_spread(self) -> int:
        """Over how many hosts nginx's pods must be spread: as many as there are to run them, at least one."""
        return max(1, min(self.nginx.replicas, len(self.nginx_hosts)))

    @property
    def nginx_hosts(self) -> tuple[Host, ...]:
        """The hosts whose taints let nginx's pods run there; with workers, the control plane isn't one."""
        return tuple(
            host
            for host in self.workers or self.hosts
            if not any(taint.endswith((":NoSchedule", ":NoExecute")) for taint in host.taints)
        )

    @property
    def flannel_interface_regex(self) -> str:
        """What flannel matches an interface's addresses, then names, against (Go's RE2).

        The setting; or, for the hosts' addresses, the /24 blocks that hold them, so that a host more
        in the same block changes nothing; or, where such a block also holds pods or services, whose
        addresses are on interfaces of a node too, the hosts' addresses themselves.
        """
        if self.network.flannel.interface_regex is not None:
            return self.network.flannel.interface_regex
        blocks = sorted({IPv4Network(f"{host.address}/24", strict=False) for host in self.hosts})
        inside = [IPv4Network(subnet) for subnet in (self.network.pod_subnet, self.network.service_subnet)]
        if any(block.overlaps(network) for block in blocks for network in inside):
            addresses = sorted(IPv4Address(host.address) for host in self.hosts)
            return _alternatives([re.escape(str(address)) for address in addresses], "")
        return _alternatives([re.escape(str(block[0]).rpartition(".")[0]) for block in blocks], r"\.[0-9]+")

    def package_repository(self, package_format: Literal["deb", "rpm"]) -> str:
        """The package repository's URL, filled in, with a slash at its end."""
        url = self.packages.repository.replace("{minor}", self.minor).replace("{format}", package_format)
        return url.rstrip("/") + "/"

    def ssh_endpoint(self, host: Host) -> tuple[str, int]:
        """Host and port where the host's SSH server answers."""
        return host.ssh.host or host.address, host.ssh.port or self.ssh.port

    def ssh_user(self, host: Host) -> str:
        """The user to log in as."""
        return host.ssh.user or self.ssh.user

    def host_key(self, host: Host) -> str:
        """`ssh-ed25519 AAAA...`: the only key that the host may show.

        `load` has filled it in from the known_hosts file where the host has none of its own.
        Raises `LookupError` on settings that didn't come from `load`.
        """
        if host.ssh.host_key is None:
            raise LookupError(f"{host.name} has no host key: these settings were not loaded")
        return host.ssh.host_key


def fields(model: type[Section] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its path (`proxy.mode`, `hosts[].name`), in the order of the types."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        path = prefix + str(field.alias or name)
        section, several = section_of(field.annotation)
        found |= (
            {path: field} if section is None else fields(section, f"{path}[]." if several else f"{path}.")
        )
    return found


def effect_of(field: FieldInfo) -> Effect:
    """What a change of the setting does."""
    return next(marker for marker in field.metadata if isinstance(marker, Effect))


def value_at(settings: Settings, path: str) -> Any:
    """The value of a setting that is in no list, by its path."""
    section: Any = settings
    for alias in path.split("."):
        names = {str(field.alias): name for name, field in type(section).model_fields.items()}
        section = getattr(section, names[alias])
    return section


# PauseVersion in kubeadm's constants (cmd/kubeadm/app/constants), read at v1.34.4, v1.35.1, v1.36.3, v1.37.2.
_PAUSE = {"1.34": "3.10.1", "1.35": "3.10.1", "1.36": "3.10.2", "1.37": "3.10.2"}
_NEWEST_PAUSE = "3.10.2"


def _alternatives(patterns: list[str], end: str) -> str:
    return f"^{patterns[0]}{end}$" if len(patterns) == 1 else f"^({'|'.join(patterns)}){end}$"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in the configuration.

    Attributes:
        path: Where: `hosts[1].address`.
        text: What, and what to write instead.
        file: `in environments/common.yaml` (or `partly in`) where it is not in the stack file alone.
    """

    path: str
    text: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.file})' if self.file else ''}: {self.text}"


class SettingsError(Exception):
    """A configuration that can't be used; `problems` holds all that is wrong with it, sorted by path."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (_natural(problem.path), problem.text))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"The configuration has {count}; nothing was touched.\n{lines}")


def load(raw: Mapping[str, object], base: Path) -> Settings:
    """The settings of a stack, or `SettingsError` with everything that is wrong with them.

    `raw` maps the configuration's names (`hosts`, `cluster`, ..., without the project's prefix) to
    their values, parsed or as the JSON text that Pulumi hands out. Relative paths in it, and in
    the file that it extends, start at `base`, the folder of the stack's file; `~` is the user's home.
    In the result every other path is absolute and every host has its host key.
    """
    findings: list[_Finding] = []
    own = {name: _parsed(name, value) for name, value in raw.items()}
    shared = _shared(own.get("extends"), base, findings)
    data: dict[str, Any] = _plain(_merged(shared, own))
    _drop_unknown(Settings, data, (), findings)
    _absolute_paths(data, base, findings)

    def refusal() -> SettingsError:
        extended = str(own.get("extends"))
        return SettingsError(
            [
                Problem(_path(location), text, f"{written} {extended}" if written else "")
                for location, text in findings
                for written in [_written(location, own, shared)]
            ]
        )

    settings, errors = _validate(data)
    broken: set[_Location] = set()
    if settings is None:
        findings += [_finding(error) for error in errors]
        # What concerns several values is still checked, on the values that are good in themselves.
        settings, errors = _validate(_without_broken(data, errors, broken))
        if settings is None:
            raise refusal()
    settings = _Checks(settings, broken, findings).run()
    if findings:
        raise refusal()
    return settings


_Location = tuple[str | int, ...]
_Finding = tuple[_Location, str]


def _shared(name: object, base: Path, findings: list[_Finding]) -> dict[str, Any]:
    """What the file called `name` says, without the prefixes; nothing where no file is extended."""
    if not isinstance(name, str) or not name:
        return {}
    problem = "is no stack file: write `config:`, and under it the settings as in a stack file"
    try:
        document = yaml.safe_load(_read(base / Path(name).expanduser()))
    except (_UnreadableError, RuntimeError) as error:
        document, problem = None, f"{error}{_where_it_comes_from(name)}"
    except yaml.YAMLError as error:
        document, problem = None, f"is no YAML: {' '.join(str(error).split())}"
    config = document.get("config") if isinstance(document, dict) and set(document) == {"config"} else None
    if not isinstance(config, dict):
        findings.append((("extends",), f"is {name}, which {problem}"))
        return {}
    strange = [str(key) for key in config if not str(key).startswith(PREFIX) or key == f"{PREFIX}extends"]
    if strange:
        text = f"has {', '.join(strange)}; only settings of {PREFIX} can be shared, and only one level deep"
        findings.append((("extends",), f"is {name}, which {text}"))
    return {str(key).removeprefix(PREFIX): value for key, value in config.items() if str(key) not in strange}


def _where_it_comes_from(file: str) -> str:
    """What to do about a file that isn't there."""
    return "; `python -m lab up` makes it" if "/kubeadm-ipvs/labs/" in file else "; write the path of a file"


def config_of(text: str) -> dict[str, Any]:
    """What stands under `config` in a stack file's text; nothing where there is none.

    :raises yaml.YAMLError: it is no YAML.
    """
    document = yaml.safe_load(text)
    config = document.get("config") if isinstance(document, dict) else None
    return config if isinstance(config, dict) else {}


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """This program's settings of a stack file's `config`, without prefixes."""
    return {name.removeprefix(PREFIX): value for name, value in config.items() if name.startswith(PREFIX)}


def written(config: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """What a stack file's `config` and the file that it extends say together: unchecked, without prefixes.

    `extends` itself is gone from it: what it adds is there. A file that can't be read adds nothing.
    """
    own = own_settings(config)
    return joined(_shared(own.get("extends"), base, []), own)


def joined(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a stack's `own` settings and those it extends are together; the name `extends` is dropped."""
    whole: dict[str, Any] = _merged(shared, own)
    return {name: value for name, value in whole.items() if name != "extends"}


def _merged(shared: Any, own: Any) -> Any:
    if isinstance(shared, Mapping) and isinstance(own, Mapping):
        return {**shared, **{key: _merged(shared.get(key), value) for key, value in own.items()}}
    return own


def _written(location: _Location, own: Any, shared: Any) -> Literal["", "in", "partly in"]:
    """Whether what counts at a place is the stack file's own, is in the shared file, or is made of both."""
    for part in location:
        if not isinstance(own, Mapping) or not isinstance(shared, Mapping) or part not in shared:
            return ""
        if part not in own:
            return "in"
        own, shared = own[part], shared[part]
    return "partly in" if isinstance(own, Mapping) and isinstance(shared, Mapping) else ""


class _UnreadableError(Exception):
    """A file without text; the message goes on from `which`."""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _UnreadableError("is not there") from None
    except IsADirectoryError:
        raise _UnreadableError("is a folder") from None
    except OSError as error:
        raise _UnreadableError(f"can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _UnreadableError("is no text file") from None


def _natural(path: str) -> list[tuple[int, str]]:
    """`hosts[2]` before `hosts[10]`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path)]


def _path(location: _Location) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text


def _parsed(name: str, value: object) -> object:
    """Objects and lists arrive from Pulumi as JSON text; a setting that is text by itself stays it."""
    field = Settings.model_fields.get(name)
    if not isinstance(value, str) or field is None or typing.get_origin(field.annotation) is Literal:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _plain(value: Any) -> Any:
    """A deep copy of plain JSON values; a name without a value (YAML's empty) counts as not written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # What YAML makes of `2026-01-01` is no setting of ours: as text it gets the error it deserves.
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if any, and whether it holds a list of them."""
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


# Settings that an earlier version of this program called otherwise.
_RENAMED = {
    "limits": "stepTimeouts",
    "proof": "verification",
    "stepTimeouts.proof": "stepTimeouts.verification",
    "cluster.certificateNames": "cluster.certSANs",
    "cluster.certificateAlgorithm": "cluster.encryptionAlgorithm",
    "cluster.componentEnvironment": "cluster.extraEnvs",
    "cluster.overrideDisruptionBudgets": "drain.disableEviction",
}


def _drop_unknown(model: type[Section], data: Any, location: _Location, findings: list[_Finding]) -> None:
    """Take the names out of `data` that `model` doesn't have, and report each."""
    if not isinstance(data, dict):
        return
    known = {str(field.alias or name): field for name, field in model.model_fields.items()}
    for name in [name for name in data if name not in known]:
        # Names are looked up as people mistype them: another case, snake_case, a letter off.
        folded = {setting.lower(): setting for setting in known}
        key = name.replace("_", "").replace("-", "").lower()
        near = difflib.get_close_matches(key, list(folded), n=1, cutoff=0.6)
        advice = f"write `{folded[near[0]]}`" if near else f"known here: {', '.join(sorted(known))}"
        renamed = _RENAMED.get(_path((*location, name)))
        if renamed:
            advice = f"it is called `{renamed}` now"
        findings.append(((*location, name), f"is not a setting; {advice}"))
        del data[name]
    for name, field in known.items():
        section, several = section_of(field.annotation)
        if section is None or name not in data:
            continue
        if not several:
            _drop_unknown(section, data[name], (*location, name), findings)
        elif isinstance(data[name], list):
            for index, item in enumerate(data[name]):
                _drop_unknown(section, item, (*location, name, index), findings)


_FILES = (("ssh", "privateKeyFile"), ("ssh", "knownHostsFile"), ("packages", "key"))


def _absolute_paths(data: dict[str, Any], base: Path, findings: list[_Finding]) -> None:
    for section, name in _FILES:
        values = data.get(section)
        if not isinstance(values, dict):
            continue
        value = values.get(name)
        if not isinstance(value, str) or not value or is_url(value):
            continue
        try:
            values[name] = str((base / Path(value).expanduser()).absolute())
        except RuntimeError:
            findings.append(((section, name), f"is {value!r}, and that user has no home here; write a path"))
            del values[name]


def _validate(data: dict[str, Any]) -> tuple[Settings | None, list[ErrorDetails]]:
    try:
        # By way of JSON, where a list is as good as a tuple.
        return Settings.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


_EXAMPLES = {
    "hosts": "list the machines, each with name, role and address",
    "name": "write the node's name: `name: node1`",
    "role": "write `role: control-plane` or `role: worker`",
    "address": "write the host's IPv4 address: `address: 192.168.166.101`",
}


def _finding(error: ErrorDetails) -> _Finding:
    location = error["loc"]
    return location, _text_of(error["type"], error.get("input"), location, error)


def _text_of(kind: str, value: Any, location: _Location, error: ErrorDetails) -> str:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    match kind:
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing":
            return f"is missing; {_EXAMPLES[str(location[-1])]}"
        case "literal_error":
            return f"is {shown}; write {str(error['ctx']['expected']).replace(chr(39), '`')}"
        case "string_type" if isinstance(value, (int, float)):
            return f'is {shown}, which YAML reads as no text; write it in quotes: "{shown}"'
        case "string_type":
            return f"is {shown}; write text"
        case "bool_type":
            return f"is {shown}; write true or false"
        case "int_type" | "int_from_float" | "int_parsing":
            return f"is {shown}; write a whole number"
        case "tuple_type":
            return f"is {shown}; write a list"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"is {shown}; write names and values"
    return f"is {shown}: {error['msg']}"


def _without_broken(
    data: dict[str, Any], errors: list[ErrorDetails], broken: set[_Location]
) -> dict[str, Any]:
    """`data` with defaults and harmless stand-ins for what `errors` complain of; `broken` gets their places.

    The result only serves to find more problems. No check may speak of a place in `broken`.
    """
    data = copy.deepcopy(data)
    for error in errors:
        location = error["loc"]
        if location[0] != "hosts":
            _forget(data, location[:2])
            broken.add(location[:2])
        elif len(location) > 1 and isinstance(data["hosts"][location[1]], dict):
            _forget(data, location[:3])
            broken.add(location[:3])
        else:
            if len(location) > 1:
                data["hosts"][location[1]] = {}
            broken.add(location[:2])
    if not isinstance(data.get("hosts"), list):
        data["hosts"] = [{}]
        broken.add(("hosts",))
    for index, host in enumerate(data["hosts"]):
        # TEST-NET addresses, which no real host has; checks skip them all the same.
        host.setdefault("name", f"unnamed-{index}")
        host.setdefault("role", "worker")
        host.setdefault("address", str(IPv4Address("198.18.0.0") + index))
    return data


def _forget(data: dict[str, Any], location: _Location) -> None:
    parent: Any = data
    for part in location[:-1]:
        if part not in parent and not isinstance(parent, list):
            return
        parent = parent[part]
    if isinstance(parent, dict):
        parent.pop(location[-1], None)


def _has_passphrase(key: str) -> bool:
    """Whether a private key's text is encrypted; what can't be read is for the SSH client to say."""
    if "ENCRYPTED" in key:  # PKCS #8 in its first line, OpenSSL's older form in a header
        return True
    body = "".join(line for line in key.splitlines() if not line.startswith("-"))
    try:
        blob = base64.b64decode(body)
    except ValueError:
        return False
    # The cipher's name, a length before it (openssh-portable, PROTOCOL.key).
    magic, none = b"openssh-key-v1\0", b"\0\0\0\4none"
    return blob.startswith(magic) and not blob.removeprefix(magic).startswith(none)


class _Checks:
    """What concerns more than one value, or a file: each check reports to `findings`."""

    def __init__(self, settings: Settings, broken: set[_Location], findings: list[_Finding]) -> None:
        self.settings = settings
        self.broken = broken
        self.findings = findings

    def run(self) -> Settings:
        """The settings with their host keys filled in; of use only where no problem was found."""
        self._roles()
        self._distinct("name", lambda host: host.name)
        self._distinct("address", lambda host: host.address)
        self._ssh_endpoints()
        self._networks()
        self._sync_periods()
        self._private_key()
        self._signing_key()
        self._taints()
        return self._host_keys()

    def _good(self, *location: str | int) -> bool:
        return all(location[:end] not in self.broken for end in range(1, len(location) + 1))

    def _add(self, location: _Location, text: str) -> None:
        self.findings.append((location, text))

    def _roles(self) -> None:
        hosts = self.settings.hosts
        if not self._good("hosts"):
            return
        if not hosts:
            self._add(("hosts",), "is empty; list at least the control plane")
            return
        planes = [index for index, host in enumerate(hosts) if host.role == "control-plane"]
        for index in planes[1:]:
            self._add(
                ("hosts", index, "role"),
                f"makes a second control plane besides hosts[{planes[0]}], and only one is supported yet; "
                "write `role: worker`",
            )
        if not planes and all(self._good("hosts", index, "role") for index in range(len(hosts))):
            self._add(("hosts",), "has no control plane; give one host `role: control-plane`")

    def _distinct(self, name: str, value: Callable[[Host], str]) -> None:
        seen: dict[str, int] = {}
        for index, host in enumerate(self.settings.hosts):
            if not self._good("hosts", index, name):
                continue
            first = seen.setdefault(value(host), index)
            if first != index:
                self._add(
                    ("hosts", index, name),
                    f"is {value(host)}, as is hosts[{first}].{name}; give each host its own",
                )

    def _ssh_endpoints(self) -> None:
        seen: dict[tuple[str, int], int] = {}
        for index, host in enumerate(self.settings.hosts):
            # Without an `ssh` host of its own, a host is reached at its address, and that was compared.
            if (
                host.ssh.host is None
                or not self._good("hosts", index, "ssh")
                or not self._good("ssh", "port")
            ):
                continue
            address, port = self.settings.ssh_endpoint(host)
            first = seen.setdefault((address, port), index)
            if first != index:
                self._add(
                    ("hosts", index, "ssh"),
                    f"is {address}:{port}, as is hosts[{first}].ssh; write each host's own host or port",
                )

    def _networks(self) -> None:
        network = self.settings.network
        pods, services = IPv4Network(network.pod_subnet), IPv4Network(network.service_subnet)
        pods_good, services_good = self._good("network", "podSubnet"), self._good("network", "serviceSubnet")
        if pods_good and services_good and pods.overlaps(services):
            self._add(
                ("network", "podSubnet"),
                f"is {pods}, which overlaps network.serviceSubnet {services}; write another",
            )
        for index, host in enumerate(self.settings.hosts):
            if not self._good("hosts", index, "address"):
                continue
            for subnet, name, good in (
                (pods, "podSubnet", pods_good),
                (services, "serviceSubnet", services_good),
            ):
                if good and IPv4Address(host.address) in subnet:
                    self._add(
                        ("network", name),
                        f"is {subnet}, which holds hosts[{index}].address {host.address}; "
                        "write a network that the hosts don't use",
                    )
        room = 2 ** (24 - pods.prefixlen) if pods.prefixlen <= 24 else 0
        if pods_good and self._good("hosts") and len(self.settings.hosts) > room:
            self._add(
                ("network", "podSubnet"),
                f"is {pods}, which has room for {room} nodes (a /24 each), and there are "
                f"{len(self.settings.hosts)} hosts; write a larger network",
            )

    def _sync_periods(self) -> None:
        proxy = self.settings.proxy
        if not self._good("proxy", "syncPeriod") or not self._good("proxy", "minSyncPeriod"):
            return
        if seconds(proxy.min_sync_period) > seconds(proxy.sync_period):
            self._add(
                ("proxy", "minSyncPeriod"),
                f"is {proxy.min_sync_period}, longer than proxy.syncPeriod {proxy.sync_period}; "
                "write at most as much, or kube-proxy refuses to start",
            )

    def _file(self, section: str, name: str, file: str | None) -> str | None:
        """The text of a file that the settings name; None where there is none, which is reported."""
        if file is None or is_url(file) or not self._good(section, name):
            return None
        try:
            return _read(Path(file))
        except _UnreadableError as error:
            reason = error
        self._add((section, name), f"is {file}, which {reason}{_where_it_comes_from(file)}")
        return None

    def _signing_key(self) -> None:
        file = self.settings.packages.key
        text = self._file("packages", "key", file)
        if text is not None and "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
            self._add(("packages", "key"), f"is {file}, which is no armored key (gpg --export --armor)")

    def _taints(self) -> None:
        if self.settings.hosts and not self.settings.nginx_hosts:
            self._add(
                ("hosts",),
                "have taints that keep nginx's pods from every one of them; leave one that can run pods "
                "without a taint of NoSchedule or NoExecute",
            )

    def _private_key(self) -> None:
        file = self.settings.ssh.private_key_file
        text = self._file("ssh", "privateKeyFile", file)
        if text is None:
            return
        if not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
            problem = "holds no private key; write the path of the key itself, not of its .pub"
        elif _has_passphrase(text):
            problem = "has a passphrase; give the key to an agent (ssh-add), and leave ssh.privateKeyFile out"
        else:
            return
        self._add(("ssh", "privateKeyFile"), f"is {file}, which {problem}")

    def _host_keys(self) -> Settings:
        file = self.settings.ssh.known_hosts_file
        known = self._file("ssh", "knownHostsFile", file)
        # A file that can't be read is one problem, not one for each host.
        hosts_may_lack = (file is not None and known is None) or not self._good("ssh", "knownHostsFile")
        hosts = []
        for index, host in enumerate(self.settings.hosts):
            location: _Location = ("hosts", index, "ssh")
            checkable = (
                self._good("hosts", index, "address") and self._good(*location) and self._good("ssh", "port")
            )
            if host.ssh.host_key is None:
                address, port = self.settings.ssh_endpoint(host)
                key = knownhosts.find(known, address, port) if known is not None else None
                if key is not None:
                    host = host.model_copy(update={"ssh": host.ssh.model_copy(update={"host_key": key})})
                elif checkable and not hosts_may_lack:
                    where = (
                        f"{file} has no ed25519 or ECDSA key for"
                        if file
                        else "there is no ssh.knownHostsFile with a key for"
                    )
                    self._add(
                        (*location, "hostKey"),
                        f"is missing, and {where} {address} port {port}; write the host's public key "
                        "(its /etc/ssh/ssh_host_ed25519_key.pub), or add it to a known_hosts file",
                    )
            hosts.append(host)
        return self.settings.model_copy(update={"hosts": tuple(hosts)})
