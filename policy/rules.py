"""The rules: what is wrong with a resource, said in words; Pulumi isn't needed to read or test them.

Each rule sees one resource at a time, as plain values, and the facts of its environment. `__main__.py` hands
them over from the engine.
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
"""The annotation of a Service that says what its NodePorts are for."""
IPVS_ENDS = (1, 40)
"""The first minor of Kubernetes, as (major, minor), whose kube-proxy has no IPVS mode by default."""
NODE_PORTS = range(30000, 32768)
"""kube-apiserver's own range, which this program doesn't change."""
BY_HOST = frozenset({"virtualServers"})
"""The stack's outputs whose keys are the hosts' names."""

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
    """What a violation does: ends the run, is only told, or the rule doesn't apply."""

    MANDATORY = "mandatory"
    ADVISORY = "advisory"
    DISABLED = "disabled"


class Hidden(str):
    """A text that the engine keeps as a secret. Rules may look at it, and must not say it."""

    __slots__ = ()


class Unknown:
    """The place of a value that isn't known before the run."""


@dataclass(frozen=True)
class Environment:
    """The facts of a stack that the rules ask for.

    Attributes:
        stack: Its name.
        protected: What the setting `production` says.
        kubernetes: The version's (major, minor).
        proxy_mode: kube-proxy's: `ipvs`, `nftables` or `iptables`.
        control_planes: How many hosts are control planes.
    """

    stack: str
    protected: bool
    kubernetes: tuple[int, int]
    proxy_mode: str
    control_planes: int

    @property
    def production(self) -> bool:
        """Whether people depend on it: its settings say so, or its name does (`prod`, `prod-eu`, `live`)."""
        return self.protected or _PRODUCTION.fullmatch(self.stack) is not None


@dataclass(frozen=True)
class Resource:
    """A resource as the rules see it.

    Attributes:
        type: As Pulumi writes it (`kubernetes:core/v1:Service`).
        name: Pulumi's name of it.
        properties: Plain values; `Hidden` texts are secrets, an `Unknown` is known after the run only.
        protect: Whether no run may delete it.
    """

    type: str
    name: str
    properties: Mapping[str, Any]
    protect: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule and how much it weighs.

    Attributes:
        name: As the engine shows it.
        description: What is asked, in one sentence.
        violations: What is wrong with a resource, and the next move; nothing if it is right.
        production: Its level in production.
        elsewhere: Its level in every other environment.
        outputs: It looks at outputs, when all resources are there; the others look at inputs, before any of
            them is made.
    """

    name: str
    description: str
    violations: Callable[[Environment, Resource], Iterator[str]]
    production: Level
    elsewhere: Level
    outputs: bool = False

    def level(self, environment: Environment) -> Level:
        """The level in that environment."""
        return self.production if environment.production else self.elsewhere


def host_keys(_: Environment, resource: Resource) -> Iterator[str]:
    """A command on a host names the only key that the host may show."""
    if not resource.type.startswith("command:remote:"):
        return
    connection = _mapping(resource.properties.get("connection"))
    ways = {"connection": connection, "connection.proxy": _mapping(connection.get("proxy"))}
    for place, way in ways.items():
        if place != "connection" and not way:
            continue
        key = way.get("hostKey")
        if not isinstance(key, Unknown) and not _PUBLIC_KEY.fullmatch(_text(key)):
            yield (
                f"{place}.hostKey of {resource.name} is no public key, so any machine at that address "
                "would be believed -> set hosts[].ssh.hostKey or ssh.knownHostsFile, and connect by "
                "components/remote.py"
            )


def protected(environment: Environment, resource: Resource) -> Iterator[str]:
    """Production's control plane is protected, and production is called so in its settings."""
    if not environment.production:
        return
    if resource.type == CLUSTER and not environment.protected:
        yield (
            f"the stack {environment.stack} is production by its name, and its settings don't say so "
            "-> kubeadm-ipvs:production: true"
        )
    is_init = resource.type == "command:remote:Command" and _INIT.fullmatch(resource.name)
    if is_init and not resource.protect:
        yield f"{resource.name} may be deleted, and the cluster with it -> kubeadm-ipvs:production: true"


def images(_: Environment, resource: Resource) -> Iterator[str]:
    """Each container's image has a tag other than `latest`, or a digest."""
    if not resource.type.startswith("kubernetes:"):
        return
    for container in _containers(resource.properties.get("spec")):
        image = container.get("image")
        if isinstance(image, Unknown):
            continue
        problem = unpinned(_text(image))
        if problem:
            yield (
                f"the image {_shown(image)} of the container {_shown(container.get('name'))} in "
                f"{resource.name} {problem}, so that two nodes may run different ones "
                "-> give it a version's tag or a digest"
            )


def unpinned(image: str) -> str:
    """Why the image's name doesn't say which image it is; empty if it does."""
    if not image:
        return "is missing"
    if "@" in image:
        return "" if _DIGEST.search(image) else "has a digest that is none"
    tag = _TAG.search(image.rpartition("/")[2])
    if tag is None:
        return "has no tag"
    return "has the tag latest" if tag[1] == "latest" else ""


def node_ports(_: Environment, resource: Resource) -> Iterator[str]:
    """A Service's NodePorts are chosen, within the range, and said what they are for."""
    spec = _mapping(resource.properties.get("spec"))
    if resource.type != "kubernetes:core/v1:Service":
        return
    opened = list(_opened(spec))
    if not opened:
        return
    for what, number in opened:
        if isinstance(number, Unknown):
            continue
        # Numbers come from the engine as floating point.
        if not isinstance(number, (int, float)) or number not in NODE_PORTS:
            said = "is left to the cluster" if number is None else f"is {_shown(number)}"
            yield (
                f"a {what} of {resource.name} {said} -> write one from {NODE_PORTS[0]} to "
                f"{NODE_PORTS[-1]}, so that firewalls and people know it"
            )
    annotations = _mapping(_mapping(resource.properties.get("metadata")).get("annotations"))
    purpose = annotations.get(PURPOSE)
    if not isinstance(purpose, Unknown) and not _text(purpose).strip():
        yield (
            f"{resource.name} opens a port of every node and doesn't say what for "
            f"-> write the annotation {PURPOSE}"
        )


def _opened(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the ports that a Service opens on every node, and their numbers; None is any free one."""
    balanced = spec.get("type") == "LoadBalancer"
    if not balanced and spec.get("type") != "NodePort":
        return
    # Where this isn't known yet, nothing is said of ports that nobody has chosen.
    chooses = not balanced or spec.get("allocateLoadBalancerNodePorts") in (None, True)
    for port in _list(spec.get("ports")):
        number = _mapping(port).get("nodePort")
        if number is not None or chooses:
            yield "nodePort", number
    if balanced and spec.get("externalTrafficPolicy") == "Local":
        yield "healthCheckNodePort", spec.get("healthCheckNodePort")


def ipvs(environment: Environment, resource: Resource) -> Iterator[str]:
    """No IPVS mode from the release on that has none by default."""
    if resource.type == CLUSTER and environment.proxy_mode == "ipvs" and environment.kubernetes >= IPVS_ENDS:
        version, end = (".".join(map(str, pair)) for pair in (environment.kubernetes, IPVS_ENDS))
        yield (
            f"proxy.mode is ipvs with Kubernetes {version}, and it ends before {end} "
            "-> proxy.mode: nftables, or an older version"
        )


def secrets(_: Environment, resource: Resource) -> Iterator[str]:
    """What is secret, by its name or its look, is marked so: else it is in the state for all to read."""
    for path, name, value in _outputs(resource):
        if isinstance(value, (Hidden, Unknown)):
            continue
        look = next((what for what, pattern in _SECRET_TEXT.items() if pattern.search(_text(value))), "")
        if look or (value not in ("", None) and _SECRET_NAME.search(name)):
            why = f"holds {look}" if look else "is secret by its name"
            yield (
                f"the output {path} of {resource.name} {why} and is plain -> wrap it in pulumi.Output.secret"
            )


def single_control_plane(environment: Environment, resource: Resource) -> Iterator[str]:
    """Production doesn't hang on one machine."""
    if resource.type == CLUSTER and environment.production and environment.control_planes < 2:
        yield (
            "one host holds etcd and the API: while it is away nothing can be changed, and without a backup "
            "its loss is the cluster's -> this program has no second control plane yet; keep backups of etcd"
        )


RULES: Sequence[Rule] = (
    Rule(
        "ssh-host-keys-pinned",
        "Every command on a host names the host's key.",
        host_keys,
        Level.MANDATORY,
        Level.MANDATORY,
    ),
    Rule(
        "production-protected",
        "Production's control plane can't be deleted by mistake.",
        protected,
        Level.MANDATORY,
        Level.DISABLED,
    ),
    Rule(
        "images-pinned",
        "Every image has a version's tag or a digest.",
        images,
        Level.MANDATORY,
        Level.ADVISORY,
    ),
    Rule(
        "node-ports-documented",
        "Every NodePort is chosen, within the range, and says what it is for.",
        node_ports,
        Level.MANDATORY,
        Level.ADVISORY,
    ),
    Rule(
        "no-ipvs-past-its-end",
        "No kube-proxy in IPVS mode where Kubernetes has it no more.",
        ipvs,
        Level.MANDATORY,
        Level.MANDATORY,
    ),
    Rule(
        "no-plain-secrets",
        "No output holds a secret that isn't marked as one.",
        secrets,
        Level.MANDATORY,
        Level.MANDATORY,
        outputs=True,
    ),
    Rule(
        "single-control-plane",
        "Production has more than one control plane.",
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
    """The containers of a pod's specification, and of the templates in it, however deep (a CronJob's)."""
    found = _mapping(spec)
    for name in ("initContainers", "containers", "ephemeralContainers"):
        yield from (_mapping(container) for container in _list(found.get(name)))
    for inner in ("jobTemplate", "template", "spec"):
        if inner in found:
            yield from _containers(found[inner])


def _outputs(resource: Resource) -> Iterator[tuple[str, str, Any]]:
    """Each value's path, what of that was chosen to tell others what the value is, and the value."""
    for output, value in resource.properties.items():
        by_host = resource.type == STACK and output in BY_HOST and isinstance(value, Mapping)
        places = {f"{output}.{host}": inner for host, inner in value.items()} if by_host else {output: value}
        for place, inner in places.items():
            for path, leaf in _leaves(inner, place):
                # Only a stack's outputs are named for others to read; what a host is called says nothing.
                name = f"{output}{path.removeprefix(place)}" if resource.type == STACK else ""
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
