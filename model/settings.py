"""Everything a stack's configuration can say, as frozen types.

One place reads configuration: `load` turns the raw values of a
`Pulumi.<env>.yaml` into `Settings`, or raises `SettingsError` with every problem found,
each with its path, before anything is touched. Nothing else in the program reads
configuration, and nothing here touches Pulumi, the network or a host (`load` reads the files
that the configuration names, and only those).

Names are camelCase in the YAML and snake_case here. Durations are strings as
Kubernetes writes them (`5s`, `4m`), addresses and networks are checked strings.
What concerns one value is checked by its type (`model/values.py`); what concerns several, by `load`.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from model import knownhosts
from model.values import (
    Address,
    CertificateName,
    Duration,
    Flag,
    HostKey,
    HostPort,
    Image,
    ImageRepository,
    KubernetesVersion,
    Labels,
    Mirrors,
    Name,
    Network4,
    NodePort,
    PackageKey,
    PackageRevision,
    Percent,
    PodSubnet,
    Port,
    Positive,
    PositiveDuration,
    Quantities,
    Regex,
    RepositoryUrl,
    ServiceSubnet,
    SshHost,
    Subdomain,
    Taints,
    Text,
    TokenMinutes,
    UserName,
    is_url,
    seconds,
)


class Section(BaseModel):
    """A part of the configuration: frozen, camelCase outside, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, strict=True
    )


class Ssh(Section):
    """How hosts are reached; a host may override `user`, `port` and the rest in its own `ssh`."""

    user: UserName = "root"
    port: Port = 22
    private_key_file: Text | None = None  # None: the agent named by SSH_AUTH_SOCK
    known_hosts_file: Text | None = None  # OpenSSH known_hosts; `[host]:port` entries understood
    # How long a host may take until its SSH server answers at all, as while it boots.
    wait_seconds: Positive = 180
    # Of each step's connection. Together they bound how long a dead host is tried: a minute and a half.
    dial_timeout_seconds: Positive = 5
    dial_attempts: Positive = 12


class HostSsh(Section):
    """One host's own way in, where it differs from `ssh`."""

    host: SshHost | None = None  # default: the host's `address`
    port: Port | None = None
    user: UserName | None = None
    host_key: HostKey | None = None  # `ssh-ed25519 AAAA…`; wins over known_hosts_file


class Host(Section):
    """One machine of the cluster."""

    name: Name  # node name and host name in the cluster, RFC 1123
    role: Literal["control-plane", "worker"]
    address: Address  # IPv4 on the network that the hosts share: kubelet's node-ip
    ssh: HostSsh = HostSsh()
    labels: Labels = {}
    taints: Taints = ()  # `key=value:NoSchedule`, besides those that Kubernetes itself sets
    # Any text that wasn't here before: every step on the host runs again and puts right what differs.
    repair: Text | None = None


class Timeouts(Section):
    """kubeadm's own limits (v1beta4 `timeouts`); generous, since a limit that is too short breaks a join."""

    control_plane_component_health_check: PositiveDuration = "4m0s"
    kubelet_health_check: PositiveDuration = "4m0s"
    kubernetes_api_call: PositiveDuration = "1m0s"
    etcd_api_call: PositiveDuration = "2m0s"
    tls_bootstrap: PositiveDuration = "5m0s"
    discovery: PositiveDuration = "5m0s"


class Limits(Section):
    """How long each remote step may take, in seconds, before it is killed and reported."""

    inspect: Positive = 300
    prepare: Positive = 1200
    init: Positive = 1200
    join: Positive = 1200
    rollout: Positive = 900
    proof: Positive = 600
    reset: Positive = 900
    drain: Positive = 300


class Kubelet(Section):
    """Fields of KubeletConfiguration, for every node; what isn't given keeps kubelet's own default.

    https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/
    """

    max_pods: Positive | None = None
    pod_pids_limit: Positive | None = None
    system_reserved: Quantities | None = None
    kube_reserved: Quantities | None = None
    eviction_hard: Quantities | None = None
    image_gc_high_threshold_percent: Percent | None = None
    container_log_max_files: Positive | None = None
    container_log_max_size: Text | None = None
    serialize_image_pulls: Flag | None = None
    shutdown_grace_period: PositiveDuration | None = None


class Cluster(Section):
    """What kubeadm is told about the cluster as a whole."""

    name: Name = "kubernetes"
    kubernetes_version: KubernetesVersion = "1.37.2"
    # `host:port` that people and the provider use; default the control plane's address:6443
    api_server: HostPort | None = None
    certificate_names: tuple[CertificateName, ...] = ()  # extra SANs of the API server's certificate
    certificate_algorithm: Literal["RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384"] = (
        "ECDSA-P256"
    )
    # Emulated or very slow hosts: control plane components get ten minutes, not one, before they are
    # restarted for not answering, and kubelet looks after its containers less often.
    slow_hosts: Flag = False
    leader_election: Flag = True  # False on one slow control plane: lost leases restart the controllers
    join_token_minutes: TokenMinutes = 15
    # A worker that leaves is drained by eviction, which a disruption budget may forbid for ever. True:
    # its pods are deleted instead.
    override_disruption_budgets: Flag = False
    kubelet: Kubelet = Kubelet()
    timeouts: Timeouts = Timeouts()


class Flannel(Section):
    """The pod network."""

    backend: Literal["vxlan", "host-gw"] = "vxlan"
    # Matched against interface addresses, then names; default: the networks of the hosts' addresses.
    interface_regex: Regex | None = None
    image: Image = "ghcr.io/flannel-io/flannel:v0.28.9"
    cni_plugin_image: Image = "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel1"


class Network(Section):
    """Addresses inside the cluster."""

    pod_subnet: PodSubnet = "10.244.0.0/16"
    service_subnet: ServiceSubnet = "10.96.0.0/12"
    dns_domain: Subdomain = "cluster.local"
    flannel: Flannel = Flannel()


class Proxy(Section):
    """kube-proxy."""

    mode: Literal["ipvs", "nftables", "iptables"] = "ipvs"
    scheduler: Literal["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "lblc", "lblcr", "mh"] = "rr"
    sync_period: PositiveDuration = "5s"
    min_sync_period: Duration = "5s"
    strict_arp: Flag = False
    # `0s` leaves what the kernel has.
    tcp_timeout: Duration = "0s"
    tcp_fin_timeout: Duration = "0s"
    udp_timeout: Duration = "0s"
    exclude_cidrs: tuple[Network4, ...] = ()


class Packages(Section):
    """Where kubelet, kubeadm and kubectl come from."""

    # `{minor}` stands for the version's minor (`1.37`), `{format}` for deb or rpm.
    repository: RepositoryUrl = "https://pkgs.k8s.io/core:/stable:/v{minor}/{format}/"
    # URL or file of the repository's signing key (armored); default: the one beside the repository.
    key: PackageKey | None = None
    revision: PackageRevision = "*"  # package revision after the version: `1.37.2-*`
    manage: Flag = True  # False: packages are already there, at that version


class Registry(Section):
    """Where images come from."""

    image_repository: ImageRepository = "registry.k8s.io"
    mirrors: Mirrors = {}  # upstream registry -> mirror URLs, tried in order


class Nginx(Section):
    """The application that the walk-through deploys."""

    image: Image = "docker.io/library/nginx:1.29"
    replicas: Positive = 2
    node_port: NodePort = 30080


class Proof(Section):
    """What is asked of the finished cluster."""

    requests: Positive = 10
    wait_seconds: Positive = 300


class Settings(Section):
    """A whole environment."""

    cluster: Cluster = Cluster()
    network: Network = Network()
    proxy: Proxy = Proxy()
    ssh: Ssh = Ssh()
    packages: Packages = Packages()
    registry: Registry = Registry()
    firewall: Literal["open", "disable", "leave"] = "open"
    production: Flag = False  # what can't be had back is protected from deletion and replacement
    hosts: tuple[Host, ...]
    nginx: Nginx = Nginx()
    proof: Proof = Proof()
    limits: Limits = Limits()

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
    def certificate_names(self) -> tuple[str, ...]:
        """Extra names of the API server's certificate: those asked for, and the host of `api_server`."""
        names = (*self.cluster.certificate_names, self.api_server.rpartition(":")[0].lower())
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
        return max(1, min(self.nginx.replicas, len(self.workers)))

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

    def package_key(self, package_format: Literal["deb", "rpm"]) -> str:
        """URL or absolute file (`model.values.is_url` tells) of the repository's armored signing key."""
        if self.packages.key is not None:
            return self.packages.key
        beside = "Release.key" if package_format == "deb" else "repodata/repomd.xml.key"
        return self.package_repository(package_format) + beside

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


# PauseVersion in kubeadm's constants (cmd/kubeadm/app/constants), read at v1.34.4, v1.35.1, v1.36.3, v1.37.2.
_PAUSE = {"1.34": "3.10.1", "1.35": "3.10.1", "1.36": "3.10.2", "1.37": "3.10.2"}
_NEWEST_PAUSE = "3.10.2"


def _alternatives(patterns: list[str], end: str) -> str:
    return f"^{patterns[0]}{end}$" if len(patterns) == 1 else f"^({'|'.join(patterns)}){end}$"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in the configuration: where (`hosts[1].address`), what, and what to write instead."""

    path: str
    text: str


class SettingsError(Exception):
    """A configuration that can't be used; `problems` holds all that is wrong with it, sorted by path."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (_natural(problem.path), problem.text))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem.path}: {problem.text}" for problem in self.problems)
        super().__init__(f"The configuration has {count}; nothing was touched.\n{lines}")


def load(raw: Mapping[str, object], base: Path) -> Settings:
    """The settings of a stack, or `SettingsError` with everything that is wrong with them.

    `raw` maps the configuration's names (`hosts`, `cluster`, ..., without the project's prefix) to
    their values, parsed or as the JSON text that Pulumi hands out. Relative paths in it start at
    `base`, the folder of the stack's file; `~` is the user's home. In the result every path is
    absolute and every host has its host key.
    """
    problems: list[Problem] = []
    data: dict[str, Any] = _plain({name: _parsed(name, value) for name, value in raw.items()})
    _drop_unknown(Settings, data, (), problems)
    _absolute_paths(data, base, problems)

    settings, errors = _validate(data)
    broken: set[_Location] = set()
    if settings is None:
        problems += [_problem(error) for error in errors]
        # What concerns several values is still checked, on the values that are good in themselves.
        settings, errors = _validate(_without_broken(data, errors, broken))
        if settings is None:
            raise SettingsError(problems)
    checks = _Checks(settings, broken, problems, base)
    settings = checks.run()
    if problems:
        raise SettingsError(problems)
    return settings


_Location = tuple[str | int, ...]


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


def _section(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if any, and whether it holds a list of them."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        section, _ = _section(typing.get_args(annotation)[0])
        return section, True
    if origin in (types.UnionType, typing.Union):
        for part in typing.get_args(annotation):
            found = _section(part)
            if found[0] is not None:
                return found
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    return None, False


def _drop_unknown(model: type[Section], data: Any, location: _Location, problems: list[Problem]) -> None:
    """Take the names out of `data` that `model` doesn't have, and report each."""
    if not isinstance(data, dict):
        return
    fields = {str(field.alias or name): field for name, field in model.model_fields.items()}
    for name in [name for name in data if name not in fields]:
        # Names are looked up as people mistype them: another case, snake_case, a letter off.
        folded = {known.lower(): known for known in fields}
        key = name.replace("_", "").replace("-", "").lower()
        near = difflib.get_close_matches(key, list(folded), n=1, cutoff=0.6)
        advice = f"write `{folded[near[0]]}`" if near else f"known here: {', '.join(sorted(fields))}"
        problems.append(Problem(_path((*location, name)), f"is not a setting; {advice}"))
        del data[name]
    for name, field in fields.items():
        section, several = _section(field.annotation)
        if section is None or name not in data:
            continue
        if not several:
            _drop_unknown(section, data[name], (*location, name), problems)
        elif isinstance(data[name], list):
            for index, item in enumerate(data[name]):
                _drop_unknown(section, item, (*location, name, index), problems)


_FILES = (("ssh", "privateKeyFile"), ("ssh", "knownHostsFile"), ("packages", "key"))


def _absolute_paths(data: dict[str, Any], base: Path, problems: list[Problem]) -> None:
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
            problems.append(
                Problem(f"{section}.{name}", f"is {value!r}, and that user has no home here; write a path")
            )
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


def _problem(error: ErrorDetails) -> Problem:
    location = error["loc"]
    return Problem(_path(location), _text_of(error["type"], error.get("input"), location, error))


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


class _Checks:
    """What concerns more than one value, or a file: each check reports to `problems`."""

    def __init__(
        self, settings: Settings, broken: set[_Location], problems: list[Problem], base: Path
    ) -> None:
        self.settings = settings
        self.broken = broken
        self.problems = problems
        self.base = base

    def run(self) -> Settings:
        """The settings with their host keys filled in; of use only where no problem was found."""
        self._roles()
        self._distinct("name", lambda host: host.name)
        self._distinct("address", lambda host: host.address)
        self._ssh_endpoints()
        self._networks()
        self._sync_periods()
        self._private_key()
        self._file("packages", "key", self.settings.packages.key)
        return self._host_keys()

    def _good(self, *location: str | int) -> bool:
        return all(location[:end] not in self.broken for end in range(1, len(location) + 1))

    def _add(self, location: _Location, text: str) -> None:
        self.problems.append(Problem(_path(location), text))

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
            return Path(file).read_text(encoding="utf-8")
        except OSError as error:
            reason = {FileNotFoundError: "is not there", IsADirectoryError: "is a folder"}.get(
                type(error), f"can't be read ({error.strerror})"
            )
        except UnicodeDecodeError:
            reason = "is no text file"
        lab = (
            "; `python -m lab up` makes it" if "/kubeadm-ipvs/labs/" in file else "; write the path of a file"
        )
        self._add((section, name), f"is {file}, which {reason}{lab}")
        return None

    def _private_key(self) -> None:
        text = self._file("ssh", "privateKeyFile", self.settings.ssh.private_key_file)
        if text is not None and not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
            self._add(
                ("ssh", "privateKeyFile"),
                f"is {self.settings.ssh.private_key_file}, which holds no private key; "
                "write the path of the key itself, not of its .pub",
            )

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
                        f"{file} has no key for" if file else "there is no ssh.knownHostsFile with a key for"
                    )
                    self._add(
                        (*location, "hostKey"),
                        f"is missing, and {where} {address} port {port}; write the host's public key "
                        "(its /etc/ssh/ssh_host_ed25519_key.pub), or add it to a known_hosts file",
                    )
            hosts.append(host)
        return self.settings.model_copy(update={"hosts": tuple(hosts)})
