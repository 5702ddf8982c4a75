"""The rules of the policy pack. They need no Pulumi, so they are easy to read and to test.

Each rule sees one resource at a time, as plain values, and the facts of its environment. `__main__.py`
connects them to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

CLUSTER = "kubeadm-ipvs:index:Cluster"
STACK = "pulumi:pulumi:Stack"
PURPOSE = "kubeadm-ipvs/node-port"
"""The annotation that documents what a Service's NodePorts are for."""
IPVS_ENDS = (1, 40)
"""The first Kubernetes release, as (major, minor), whose kube-proxy has no IPVS mode by default."""
NODE_PORTS = range(30000, 32768)
"""kube-apiserver's default range, which this program doesn't change."""
BY_HOST = frozenset({"virtualServers"})
"""The stack's outputs that are keyed by host name."""

_PRODUCTION = re.compile(r"(prod|production|live)([-_.].*)?", re.IGNORECASE)
_PUBLIC_KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?")
_INIT = re.compile(r".+-init")
_TAG = re.compile(r":([\w][\w.-]{0,127})$", re.ASCII)
_DIGEST = re.compile(r"@sha(256|512):[0-9a-f]{64,128}$")
_SECRET_NAME = re.compile(r"kubeconfig|password|passphrase|private_?key|secret|token", re.IGNORECASE)
_SECRET_TEXT = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}"),
    "a kubeconfig's credentials": re.compile(
        r"\b(client-key-data|token)[\"']?: *[\"']?[A-Za-z0-9+/=._-]{16}"
    ),
    "a bootstrap token": re.compile(r"(?<![\w.])[a-z0-9]{6}\.[a-z0-9]{16}(?![\w.])"),
}


class Level(Enum):
    """What a violation does: it fails the run, it is a warning, or the rule is off."""

    MANDATORY = "mandatory"
    ADVISORY = "advisory"
    DISABLED = "disabled"


class Hidden(str):
    """A string that the engine keeps secret. Rules may read it but must not print it."""

    __slots__ = ()


class Unknown:
    """A placeholder for a value that isn't known before the run."""


@dataclass(frozen=True)
class Environment:
    """The facts about a stack that the rules use.

    Attributes:
        stack: The stack's name.
        protected: The setting `production`.
        kubernetes: The version as (major, minor).
        proxy_mode: kube-proxy's mode: `ipvs`, `nftables` or `iptables`.
        control_planes: The number of control-plane hosts.
    """

    stack: str
    protected: bool
    kubernetes: tuple[int, int]
    proxy_mode: str
    control_planes: int

    @property
    def production(self) -> bool:
        """Whether it is production, by its settings or by its name (`prod`, `prod-eu`, `live`)."""
        return self.protected or _PRODUCTION.fullmatch(self.stack) is not None


@dataclass(frozen=True)
class Resource:
    """A resource as the rules see it.

    Attributes:
        type: The Pulumi type (`kubernetes:core/v1:Service`).
        name: The Pulumi name.
        properties: Plain values, with `Hidden` for secret strings and `Unknown` for values not known yet.
        protect: Whether the engine refuses to delete it.
    """

    type: str
    name: str
    properties: Mapping[str, Any]
    protect: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule and its levels.

    Attributes:
        name: The name that the engine shows.
        description: The requirement in one sentence.
        violations: Yields `problem -> fix` for each violation by a resource.
        production: The level in production.
        elsewhere: The level in all other environments.
        outputs: Whether it checks outputs, once all resources exist. Otherwise it checks inputs, before any
            resource is created.
    """

    name: str
    description: str
    violations: Callable[[Environment, Resource], Iterator[str]]
    production: Level
    elsewhere: Level
    outputs: bool = False

    def level(self, environment: Environment) -> Level:
        """The level in an environment."""
        return self.production if environment.production else self.elsewhere


def host_keys(_: Environment, resource: Resource) -> Iterator[str]:
    """Every command on a host pins the host's key."""
    if not resource.type.startswith("command:remote:"):
        return
    connection = _mapping(resource.properties.get("connection"))
    servers = {"connection": connection, "connection.proxy": _mapping(connection.get("proxy"))}
    for path, server in servers.items():
        if path != "connection" and not server:
            continue
        key = server.get("hostKey")
        if not isinstance(key, Unknown) and not _PUBLIC_KEY.fullmatch(_text(key)):
            yield (
                f"{path}.hostKey of {resource.name} isn't a public key, so any machine at that address would "
                "be trusted -> set hosts[].ssh.hostKey or ssh.knownHostsFile, and connect through "
                "components/remote.py"
            )


def protected(environment: Environment, resource: Resource) -> Iterator[str]:
    """A production control plane is protected, and the settings mark the stack as production."""
    if not environment.production:
        return
    if resource.type == CLUSTER and not environment.protected:
        yield (
            f"the stack {environment.stack} is production by its name but not by its settings "
            "-> set kubeadm-ipvs:production: true"
        )
    is_init = resource.type == "command:remote:Command" and _INIT.fullmatch(resource.name)
    if is_init and not resource.protect:
        yield (
            f"{resource.name} isn't protected, and deleting it deletes the cluster "
            "-> set kubeadm-ipvs:production: true"
        )


def images(_: Environment, resource: Resource) -> Iterator[str]:
    """Every container image has a digest, or a tag other than `latest`."""
    if not resource.type.startswith("kubernetes:"):
        return
    for container in _containers(resource.properties.get("spec")):
        image = container.get("image")
        if isinstance(image, Unknown):
            continue
        problem = unpinned(_text(image))
        if problem:
            yield (
                f"image {_shown(image)} of container {_shown(container.get('name'))} in {resource.name} "
                f"{problem}, so nodes may run different versions -> use a version tag or a digest"
            )


def unpinned(image: str) -> str:
    """Explain why an image name doesn't identify one image; empty if it does."""
    if not image:
        return "is missing"
    if "@" in image:
        return "" if _DIGEST.search(image) else "has an invalid digest"
    tag = _TAG.search(image.rpartition("/")[2])
    if tag is None:
        return "has no tag"
    return "has the tag latest" if tag[1] == "latest" else ""


def node_ports(_: Environment, resource: Resource) -> Iterator[str]:
    """A Service's NodePorts are explicit, in the range, and documented."""
    spec = _mapping(resource.properties.get("spec"))
    if resource.type != "kubernetes:core/v1:Service":
        return
    opened = list(_opened(spec))
    if not opened:
        return
    for field, number in opened:
        if isinstance(number, Unknown):
            continue
        # The engine passes numbers as floating point.
        if not isinstance(number, (int, float)) or number not in NODE_PORTS:
            state = "isn't set" if number is None else f"is {_shown(number)}"
            yield (
                f"a {field} of {resource.name} {state} -> choose one from {NODE_PORTS[0]} to "
                f"{NODE_PORTS[-1]}, so that firewalls and people can rely on it"
            )
    annotations = _mapping(_mapping(resource.properties.get("metadata")).get("annotations"))
    purpose = annotations.get(PURPOSE)
    if not isinstance(purpose, Unknown) and not _text(purpose).strip():
        yield (
            f"{resource.name} opens a port on every node without documenting it "
            f"-> describe its purpose in the annotation {PURPOSE}"
        )


def _opened(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the ports that a Service opens on every node, with their numbers; None means any port."""
    balanced = spec.get("type") == "LoadBalancer"
    if not balanced and spec.get("type") != "NodePort":
        return
    # If this isn't known yet, ports that nobody chose are ignored.
    allocates = not balanced or spec.get("allocateLoadBalancerNodePorts") in (None, True)
    for port in _list(spec.get("ports")):
        number = _mapping(port).get("nodePort")
        if number is not None or allocates:
            yield "nodePort", number
    if balanced and spec.get("externalTrafficPolicy") == "Local":
        yield "healthCheckNodePort", spec.get("healthCheckNodePort")


def ipvs(environment: Environment, resource: Resource) -> Iterator[str]:
    """kube-proxy doesn't use IPVS mode once Kubernetes no longer has it by default."""
    if resource.type == CLUSTER and environment.proxy_mode == "ipvs" and environment.kubernetes >= IPVS_ENDS:
        version, end = (".".join(map(str, pair)) for pair in (environment.kubernetes, IPVS_ENDS))
        yield (
            f"proxy.mode is ipvs with Kubernetes {version}, but IPVS mode is no longer available by default "
            f"from {end} on -> set proxy.mode: nftables, or use an older version"
        )


def secrets(_: Environment, resource: Resource) -> Iterator[str]:
    """Outputs that look like secrets are marked as secret; otherwise the state stores them in plain text."""
    for path, name, value in _outputs(resource):
        if isinstance(value, (Hidden, Unknown)):
            continue
        kind = next((kind for kind, pattern in _SECRET_TEXT.items() if pattern.search(_text(value))), "")
        if kind or (value not in ("", None) and _SECRET_NAME.search(name)):
            why = f"contains {kind}" if kind else "is named like a secret"
            yield (
                f"output {path} of {resource.name} {why} but isn't marked as one "
                "-> wrap it in pulumi.Output.secret"
            )


def single_control_plane(environment: Environment, resource: Resource) -> Iterator[str]:
    """Production doesn't depend on a single host."""
    if resource.type == CLUSTER and environment.production and environment.control_planes < 2:
        yield (
            "one host runs etcd and the API server: while it is down, nothing can be changed, and losing it "
            "without a backup means losing the cluster -> back up etcd; this program can't create a second "
            "control plane yet"
        )


RULES: Sequence[Rule] = (
    Rule(
        "ssh-host-keys-pinned",
        "Every command on a host must pin the host's key.",
        host_keys,
        Level.MANDATORY,
        Level.MANDATORY,
    ),
    Rule(
        "production-protected",
        "A production control plane must be protected from deletion.",
        protected,
        Level.MANDATORY,
        Level.DISABLED,
    ),
    Rule(
        "images-pinned",
        "Every image must have a version tag or a digest.",
        images,
        Level.MANDATORY,
        Level.ADVISORY,
    ),
    Rule(
        "node-ports-documented",
        "Every NodePort must be explicit, in the range, and documented.",
        node_ports,
        Level.MANDATORY,
        Level.ADVISORY,
    ),
    Rule(
        "no-ipvs-past-its-end",
        "kube-proxy must not use IPVS mode once Kubernetes has dropped it.",
        ipvs,
        Level.MANDATORY,
        Level.MANDATORY,
    ),
    Rule(
        "no-plain-secrets",
        "Every output that contains a secret must be marked as secret.",
        secrets,
        Level.MANDATORY,
        Level.MANDATORY,
        outputs=True,
    ),
    Rule(
        "single-control-plane",
        "Production should have more than one control plane.",
        single_control_plane,
        Level.ADVISORY,
        Level.DISABLED,
    ),
)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    return "(secret)" if isinstance(value, Hidden) else str(value)


def _containers(spec: Any) -> Iterator[Mapping[str, Any]]:
    """The containers of a pod spec and of any templates nested in it, as in a CronJob."""
    found = _mapping(spec)
    for name in ("initContainers", "containers", "ephemeralContainers"):
        yield from (_mapping(container) for container in _list(found.get(name)))
    for inner in ("jobTemplate", "template", "spec"):
        if inner in found:
            yield from _containers(found[inner])


def _outputs(resource: Resource) -> Iterator[tuple[str, str, Any]]:
    """Each output value: its path, the part of the path that describes its content, and the value."""
    for output, value in resource.properties.items():
        by_host = resource.type == STACK and output in BY_HOST and isinstance(value, Mapping)
        parts = {f"{output}.{host}": inner for host, inner in value.items()} if by_host else {output: value}
        for prefix, inner in parts.items():
            for path, leaf in _leaves(inner, prefix):
                # Only a stack's output names describe their content; a host's name doesn't.
                name = f"{output}{path.removeprefix(prefix)}" if resource.type == STACK else ""
                yield path, name, leaf


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
