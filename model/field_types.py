"""Types of single settings, each with its check.

To the program, every type is a plain `str`, `int`, `dict` or `tuple`. Its check runs when settings are loaded
and raises `ValueError` with the text that follows the setting's path in the error message.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from model import knownhosts

# Minor versions that the program can install. Older kubeadm versions have other defaults, and newer
# kube-proxy versions have no IPVS mode by default.
OLDEST_MINOR = 34
NEWEST_MINOR = 39

# kubeadm leaves --node-cidr-mask-size unset, so the controller manager assigns its default to each node
# (cmd/kube-controller-manager/app/core.go, defaultNodeMaskCIDRIPv4, v1.37.2).
NODE_PREFIX = 24
# Without the network's address, the bridge's address (the gateway) and the broadcast address.
_POD_ADDRESSES = 2 ** (32 - NODE_PREFIX) - 3
# kube-proxy and flannel run on every node and use the host's address.
_MOST_PODS = _POD_ADDRESSES + 2
# These two, etcd, the API server, the controller manager and the scheduler.
_FEWEST_PODS = 6

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
# Go's time.Duration counts nanoseconds in 63 bits.
_LONGEST_SECONDS = Decimal(2**63 - 1) / 10**9
# What RFC 3986 allows, without `?` and `#`.
_URL_PART = re.compile(r"[A-Za-z0-9._~:/@!$&'()*+,;=\[\]-]+|%[0-9A-Fa-f]{2}")
_LOGIN = re.compile(r"://\S*@")
_QUALIFIED = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)")
_IMAGE = re.compile(
    r"(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(:\d+(?=/))?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)


def seconds(duration: str) -> Decimal:
    """A valid duration (`1m30s`) in seconds."""
    return sum((Decimal(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration)), Decimal(0))


def is_url(text: str) -> bool:
    """Whether a setting that can be a URL or a file is a URL."""
    return "://" in text


def without_logins(text: str) -> str:
    """The text with `...` for everything before the `@` in a URL, which may be a password."""
    return _LOGIN.sub("://...@", text)


def _integer(value: Any) -> Any:
    """Accept whole numbers as text, because `pulumi config set` quotes them."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    return value


def _boolean(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _text(value: str) -> str:
    if not value.strip() or value != value.strip() or any(ord(character) < 32 for character in value):
        raise ValueError(
            f"is {value!r}; write text without leading or trailing blanks, or remove the setting"
        )
    return value


def _name(value: str) -> str:
    # Linux limits host names to 64 characters, and kubelet uses the name as a label value of at most 63.
    if len(value) > 63 or not _SUBDOMAIN.fullmatch(value):
        raise ValueError(
            f"is {value!r}, which isn't a valid node name (RFC 1123); write at most 63 lower-case letters, "
            "digits and dashes, beginning and ending with a letter or digit: `node1`"
        )
    return value


def _subdomain(value: str) -> str:
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise ValueError(f"is {value!r}, which isn't a DNS name; write lower-case labels: `cluster.local`")
    return value


def _address(value: str) -> str:
    try:
        address = IPv4Address(value)
    except AddressValueError:
        if ":" in value:
            raise ValueError(f"is {value!r}; IPv6 isn't supported, write an IPv4 address") from None
        raise ValueError(f"is {value!r}; write an IPv4 address: `192.168.166.101`") from None
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        raise ValueError(
            f"is {value}, which other hosts can't reach; write the address on the network that the hosts "
            "share"
        )
    return value


def _network(value: str) -> str:
    if ":" in value:
        raise ValueError(f"is {value!r}; IPv6 isn't supported, write an IPv4 network: `10.244.0.0/16`")
    if "/" not in value:
        raise ValueError(f"is {value!r}, which has no prefix length; write a network: `10.244.0.0/16`")
    try:
        network = IPv4Network(value, strict=False)
    except ValueError:
        raise ValueError(f"is {value!r}; write an IPv4 network: `10.244.0.0/16`") from None
    if str(network) != value:
        raise ValueError(f"is {value}, an address in a network; write the network: `{network}`")
    return value


def _node_port_address(value: str) -> str:
    return value if value == "primary" else _network(value)


def _node_port_addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    # Before 1.37, kube-proxy doesn't accept the word next to others (validateKubeProxyNodePortAddress).
    if "primary" in value and len(value) > 1:
        raise ValueError("has `primary` next to other items; write `[primary]` or only networks")
    return value


def _pod_subnet(value: str) -> str:
    length = IPv4Network(_network(value)).prefixlen
    # kubeadm and the controller manager allow at most 2^16 nodes.
    if not NODE_PREFIX - 16 <= length <= NODE_PREFIX:
        raise ValueError(
            f"is {value}, but each node gets a /{NODE_PREFIX} of it; write a network from "
            f"/{NODE_PREFIX - 16} to /{NODE_PREFIX}"
        )
    return value


def _service_subnet(value: str) -> str:
    length = IPv4Network(_network(value)).prefixlen
    # The tenth address is the DNS service's. kubeadm and the API server reject more than 20 host bits.
    if not 12 <= length <= 28:
        raise ValueError(
            f"is {value}, but the DNS service needs its tenth address and the API server rejects more than "
            "20 host bits; write a network from /12 to /28"
        )
    return value


def _kubernetes_version(value: str) -> str:
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", value)
    if match is None:
        hint = f": `{value[1:]}`" if re.fullmatch(r"v\d+\.\d+\.\d+", value) else ": `1.37.2`"
        raise ValueError(f"is {value!r}; write a full released version x.y.z{hint}")
    major, minor = int(match[1]), int(match[2])
    if (major, minor) > (1, NEWEST_MINOR):
        raise ValueError(
            f"is {value}, which has no IPVS mode: kube-proxy's feature gate KubeProxyIPVS is off by default "
            "from 1.40 on, and the mode is removed in 1.43; "
            f"write a version from 1.{OLDEST_MINOR} to 1.{NEWEST_MINOR}"
        )
    if (major, minor) < (1, OLDEST_MINOR):
        raise ValueError(
            f"is {value}, which is too old; write a version from 1.{OLDEST_MINOR} to 1.{NEWEST_MINOR}"
        )
    return value


def _host_port(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if is_url(value) or not separator or not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"is {value!r}; write host:port without a scheme: `192.168.166.101:6443`")
    _ssh_host(host)
    return value


def _ssh_host(value: str) -> str:
    if re.fullmatch(r"[\d.]+", value):
        try:
            IPv4Address(value)
        except AddressValueError:
            raise ValueError(
                f"is {value!r}, which isn't an IPv4 address; write one: `192.168.166.101`"
            ) from None
    elif len(value) > 253 or not _SUBDOMAIN.fullmatch(value.lower()):
        raise ValueError(f"is {value!r}; write an IPv4 address or a DNS name")
    return value


def _jump_host(value: str) -> str:
    if value.lower() == "none":
        return "none"
    if "," in value:
        raise ValueError(f"is {value!r}; write one jump host, because steps can't pass through several")
    try:
        user, host, port = jump_host_parts(value)
        _ssh_host(host)
        _user_name(user or "root")
        if not 1 <= port <= 65535:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"is {value!r}; write [USER@]HOST[:PORT], such as `ops@bastion.example.com`, or `none`"
        ) from None
    return value


def jump_host_parts(value: str) -> tuple[str, str, int]:
    """User (empty if not given), host and port of a jump host, `[USER@]HOST[:PORT]`.

    Raises:
        ValueError: The port isn't a number.
    """
    user, _, address = value.rpartition("@")
    host, separator, port = address.partition(":")
    if separator and not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError
    return user, host, int(port) if separator else 22


def _certificate_name(value: str) -> str:
    try:
        _ssh_host(value.removeprefix("*.") if value.startswith("*.") else value)
    except ValueError:
        raise ValueError(
            f"is {value!r}; write a DNS name or an IPv4 address without port or scheme"
        ) from None
    if value != value.lower():
        raise ValueError(f"is {value!r}; write it in lower case: `{value.lower()}`")
    return value


def _share_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _share(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,5}|(100|[1-9]\d?)%", value):
        raise ValueError(f"is {value!r}; write a number of hosts or a percentage: `1`, `10%`")
    return value


def share_of(value: str, total: int) -> int:
    """How many of `total` a `Share` is: rounded down, but at least one."""
    if value.endswith("%"):
        return max(1, total * int(value.removesuffix("%")) // 100)
    return int(value)


def _duration_text(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"is the number {value}; write a duration with its unit: `{value}s`")
    return value


def _duration(value: str) -> str:
    if value.startswith("-"):
        raise ValueError(f"is {value!r}, which is negative; write a duration: `5s`")
    if re.fullmatch(r"\d+", value):
        raise ValueError(f"is {value!r}; write a duration with its unit: `{value}s`")
    if not re.fullmatch(f"({_DURATION.pattern})+", value):
        raise ValueError(f"is {value!r}; write a duration in Kubernetes' form: `5s`, `1m30s`")
    if seconds(value) > _LONGEST_SECONDS:
        hours = int(_LONGEST_SECONDS // 3600)
        raise ValueError(f"is {value!r}, which is too long for Kubernetes; write at most `{hours}h`")
    return value


def _positive_duration(value: str) -> str:
    if seconds(_duration(value)) <= 0:
        raise ValueError(f"is {value!r}; write a duration above zero: `5m`")
    return value


def _grace_period(value: str) -> str:
    if seconds(_duration(value)) < 1:
        raise ValueError(f"is {value!r}; write at least one second: `30s`")
    return value


def _url(value: str, noun: str, advice: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """Check a URL that is written to the hosts.

    Args:
        value: The URL.
        noun: What it is, for messages.
        advice: What to do instead of writing a login into it.
        schemes: The schemes that it may have.
    """
    # First, because later messages contain the URL. A password may contain any character.
    if "@" in value:
        raise ValueError(
            "contains a user name or password (or another `@`), but settings are stored in plain text in "
            f"Pulumi's state and on the hosts; {advice}"
        )
    unusual = _URL_PART.sub("", value)
    if unusual:
        # What follows a `?` may be a token, so the message doesn't contain the URL.
        raise ValueError(
            f"contains {unusual[0]!r}, which isn't allowed in {noun}; remove it, or write it percent-encoded"
        )
    try:
        parts = urlsplit(value)
        # `port` raises ValueError if it isn't a number.
        good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        beginnings = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"is {value!r}; write {noun}, beginning with {beginnings}")
    return value


def _repository_url(value: str) -> str:
    unknown = sorted(set(re.findall(r"{[^{}]*}", value)) - {"{minor}", "{format}"})
    rest = re.sub(r"{[^{}]*}", "", value)
    if unknown or "{" in rest or "}" in rest:
        named = f" ({', '.join(unknown)})" if unknown else ""
        raise ValueError(f"has an unknown placeholder{named}; only {{minor}} and {{format}} are replaced")
    _url(
        re.sub(r"{[^{}]*}", "x", value),
        "the repository's URL",
        "use a repository that needs no login, or, for apt, write the login into a file in "
        "/etc/apt/auth.conf.d on each host and set packages.key to a file",
    )
    return value


def _revision(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.+~*]+", value):
        raise ValueError(
            f"is {value!r}; write the part of the package's version that follows Kubernetes' own: `1.1`, or "
            "`*` for any"
        )
    return value


def _image(value: str) -> str:
    match = _IMAGE.fullmatch(value)
    if match is None:
        raise ValueError(f"is {value!r}, which isn't an image; write `registry/path:tag`")
    if match["tag"] is None and match["digest"] is None:
        raise ValueError(f"is {value!r}, which has no version; add a tag or digest: `{value}:TAG`")
    return value


def _image_repository(value: str) -> str:
    match = _IMAGE.fullmatch(value)
    # A port at the end looks like a tag.
    if match is None or match["digest"] or (match["tag"] and not match["tag"][1:].isdigit()):
        raise ValueError(f"is {value!r}; write a registry and path without scheme or tag: `registry.k8s.io`")
    return value


@dataclass(frozen=True)
class Mirror:
    """A mirror of a registry.

    Attributes:
        url: Its URL.
        override_path: Whether the URL's path is the API's root, to which containerd must not add `/v2`.
        ca: File on this machine with the certificates of the CAs that may have issued the mirror's own.
    """

    url: str
    override_path: bool = False
    ca: str | None = None


_MIRROR_NAMES = ("url", "overridePath", "ca")


def _mirror(value: Any) -> Mirror:
    form = "`{url: https://registry.example.com, overridePath: true, ca: FILE}`"
    if isinstance(value, str):
        return Mirror(_mirror_url(value, override_path=False))
    if not isinstance(value, dict):
        raise ValueError(f"is {without_logins(json.dumps(value))}; write a URL, or {form}")
    unknown = sorted(set(value) - set(_MIRROR_NAMES))
    if unknown:
        logins = any(re.search("user|pass|auth|login|token", name, re.IGNORECASE) for name in unknown)
        raise ValueError(
            f"has {', '.join(unknown)}, but a mirror can only have {', '.join(_MIRROR_NAMES)}"
            + ("; for a login, see docs/air-gap.md" if logins else "")
        )
    url, ca, override_path = (value.get("url"), value.get("ca"), _boolean(value.get("overridePath", False)))
    if not isinstance(url, str):
        raise ValueError(f"has no url; write {form}")
    if not isinstance(override_path, bool):
        raise ValueError(f"has overridePath: {json.dumps(override_path)}; write true or false")
    if ca is not None:
        if not isinstance(ca, str) or not ca.strip():
            raise ValueError(f"has ca: {json.dumps(ca)}; write the path of a file with PEM certificates")
        if not url.startswith("https://"):
            raise ValueError("has ca, which only an https:// URL can use; change the URL, or remove ca")
    return Mirror(_mirror_url(url, override_path), override_path, ca)


def _mirrors(value: dict[str, tuple[Mirror, ...]]) -> dict[str, tuple[Mirror, ...]]:
    for registry, mirrors in value.items():
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?", registry):
            raise ValueError(
                f"has the registry {registry!r}; write the upstream registry's name without scheme or path: "
                "`registry.k8s.io`"
            )
        if not mirrors:
            raise ValueError(f"has no mirror for {registry}; write at least one URL, or remove the registry")
        if len({mirror.url for mirror in mirrors}) != len(mirrors):
            raise ValueError(f"lists a mirror of {registry} twice; list each one once")
    return value


def _package_key(value: str) -> str:
    if not is_url(value):
        return _text(value)
    if value.lower().startswith("http://") and "@" not in value:
        raise ValueError(
            "is an http:// URL, so anyone between the host and the server can replace the key; write an "
            "https:// URL, or the path of a file with the key"
        )
    return _url(value, "the key's URL", "write the path of a file with the key", ("https",))


def _mirror_url(value: str, override_path: bool) -> str:
    _url(
        value,
        "the mirror's URL",
        "use a mirror that needs no login, or write it on the hosts as docs/air-gap.md describes",
    )
    folders = [folder for folder in urlsplit(value).path.split("/") if folder]
    # containerd's parseHostConfig and request (core/remotes/docker, v1.7.27 and v2.1.4).
    if not override_path and "v2" in folders[:-1]:
        path = "/".join(folders if folders[-1] == "v2" else [*folders, "v2"])
        raise ValueError(
            f"is {value}, for which containerd would request /{path}/IMAGE, because it adds /v2 to the end; "
            f"for a path that already has the API's /v2, such as a Harbor project's, write "
            f"`{{url: {value}, overridePath: true}}`"
        )
    return value


def _host_key(value: str) -> str:
    if not knownhosts.valid(value) or len(value.split()) > 3:
        raise ValueError(
            "isn't a host key; write type and key as in the host's /etc/ssh/ssh_host_ed25519_key.pub: "
            "`ssh-ed25519 AAAA...`"
        )
    if value.split()[0] not in knownhosts.PREFERENCE:
        raise ValueError(
            f"is a key of type {value.split()[0]}, which can't be pinned: current SSH servers don't offer "
            f"the signature that it needs; write the host's {' or '.join(knownhosts.PREFERENCE[:2])} key"
        )
    return " ".join(value.split()[:2])


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is {value!r}, which isn't a regular expression: {error}") from None
    # flannel uses Go's RE2. It has no look-around, back-references or possessive quantifiers, and its
    # equivalent of Python's `\Z` is `\z`.
    if not value or re.search(r"\(\?(=|!|<=|<!|P=|>|\()|\\[1-9Z]|[*+?}]\+", value):
        raise ValueError(
            f"is {value!r}, but flannel doesn't support look-around, back-references, `\\Z` or possessive "
            "quantifiers; write a simpler expression: `^eth1$`"
        )
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for key, content in value.items():
        prefix, slash, name = key.rpartition("/")
        if not _QUALIFIED.fullmatch(name) or (
            slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix))
        ):
            raise ValueError(f"has the label {key!r}; write `name` or `domain/name`")
        if content and not _QUALIFIED.fullmatch(content):
            raise ValueError(
                f"has the value {content!r} for {key}; write at most 63 letters, digits, `-`, `_` and `.`, "
                "beginning and ending with a letter or digit"
            )
        _kubelet_may_set(key, prefix)
    return value


def _kubelet_may_set(key: str, prefix: str) -> None:
    """Reject labels that keep kubelet from starting (k8s.io/kubelet, well_known_labels.go)."""
    reserved = any(
        prefix == domain or prefix.endswith("." + domain) for domain in ("kubernetes.io", "k8s.io")
    )
    allowed = any(
        prefix == domain or prefix.endswith("." + domain)
        for domain in ("kubelet.kubernetes.io", "node.kubernetes.io")
    ) or key in ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
    if reserved and not allowed:
        raise ValueError(
            f"has {key}, but kubelet refuses to start with labels of that domain; use your own domain or "
            "node.kubernetes.io/"
        )


def _taints(value: tuple[str, ...]) -> tuple[str, ...]:
    for taint in value:
        place, _, effect = taint.rpartition(":")
        key, equals, text = place.partition("=")
        prefix, _, name = key.rpartition("/")
        if (
            effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute")
            or not _QUALIFIED.fullmatch(name)
            or (prefix and not _SUBDOMAIN.fullmatch(prefix))
            or (equals and text and not _QUALIFIED.fullmatch(text))
        ):
            raise ValueError(
                f"has {taint!r}; write `key=value:Effect` or `key:Effect` with one of the effects "
                "NoSchedule, PreferNoSchedule and NoExecute"
            )
    places = [taint.partition(":")[0].partition("=")[0] + taint.rpartition(":")[2] for taint in value]
    if len(set(places)) != len(places):
        raise ValueError("has a key twice with the same effect; list each one once")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, content in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(
                f"has the variable {name!r}; write letters, digits and `_`, not beginning with a digit"
            )
        if not content.isprintable():
            raise ValueError(f"has a value for {name} that isn't one printable line; write one line")
        # A proxy needs no scheme.
        if _LOGIN.search(content) or ("@" in content and name.lower().endswith("_proxy")):
            raise ValueError(
                f"has a user name or password in {name}, but the variables are stored in plain text in "
                "Pulumi's state, in the ConfigMap kubeadm-config and in the control plane's manifests; use a "
                "proxy that needs no login, for example one on the host that adds it"
            )
    return value


# `NumCPU`, or a kind and its object with `-` for `/` (cmd/kubeadm/app/preflight/checks.go, Name, v1.37.2).
_PREFLIGHT_CHECK = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[-A-Za-z0-9._]*[A-Za-z0-9])?")


def _preflight_check(value: str) -> str:
    if value.lower() == "all":
        raise ValueError(f"is {value!r}, which would hide every problem; name the checks to ignore: `NumCPU`")
    if not _PREFLIGHT_CHECK.fullmatch(value):
        raise ValueError(
            f"is {value!r}, which isn't the name of a kubeadm check; write one name, as kubeadm prints it: "
            "`NumCPU`, `Port-6443`"
        )
    return value


def _preflight_checks(value: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for name in value:
        # kubeadm compares names in lower case (ValidateIgnorePreflightErrors).
        if name.lower() in seen:
            raise ValueError(f"has {name} twice (names are case-insensitive); list each one once")
        seen.add(name.lower())
    return value


def _host_path(value: str) -> str:
    if not re.fullmatch(r"(/[^/\s]+)+", value):
        raise ValueError(f"is {value!r}; write the full path of a file on the hosts: `/etc/resolv.pods.conf`")
    return value


_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_RESERVABLE = ("cpu", "memory", "ephemeral-storage", "pid")  # cmd/kubelet/app/server.go, parseResourceList
_SIGNALS = (  # pkg/kubelet/eviction/api/types.go; kubelet sets the containerfs signals itself
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
)


def _reserved(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if name not in _RESERVABLE:
            raise ValueError(f"has {name}, which can't be reserved; write one of {', '.join(_RESERVABLE)}")
        if not _QUANTITY.fullmatch(text):
            raise ValueError(f"has {name}: {text!r}; write a quantity in Kubernetes' form: `500m`, `512Mi`")
    return value


def _thresholds(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if name not in _SIGNALS:
            raise ValueError(
                f"has {name}, which isn't an eviction signal; write one of {', '.join(_SIGNALS)}"
            )
        percent = re.fullmatch(r"(\d+(\.\d+)?)%", text)
        if percent is not None and Decimal(percent[1]) <= 100:
            continue
        if not _QUANTITY.fullmatch(text) or not re.search("[1-9]", text):
            raise ValueError(
                f"has {name}: {text!r}; write a quantity above zero or a percentage up to 100: `100Mi`, `10%`"
            )
    return value


def _max_pods(value: int) -> int:
    if value > _MOST_PODS:
        raise ValueError(
            f"is {value}, but a node's /{NODE_PREFIX} has addresses for {_POD_ADDRESSES} pods, and only "
            f"kube-proxy and flannel run without one; write at most {_MOST_PODS}"
        )
    if value < _FEWEST_PODS:
        raise ValueError(
            f"is {value}, but the control plane's own pods wouldn't all start; write at least {_FEWEST_PODS}"
        )
    return value


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,11}(k|M|G|Ki|Mi|Gi)?", value):
        raise ValueError(f"is {value!r}; write a size in Kubernetes' form: `10Mi`")
    return value


_USER_NAME = re.compile(r"""(?!-)[^\s'"`;:/&<>|(){}]{0,254}[^\s'"`;:/&<>|(){}\\]""")


def _user_name(value: str) -> str:
    # What ssh accepts (openssh-portable, ssh.c, valid_ruser), without the colon and the slash, which a local
    # name can't have, and with the domain of a directory's user.
    if not _USER_NAME.fullmatch(value) or not value.isprintable():
        raise ValueError(
            f"is {value!r}, which isn't a valid user name; write a name without spaces, quotes or a leading "
            "hyphen: `root`, `ops@corp.example.com`"
        )
    return value


class Kind:
    """A type's name in the docs, and the JSON schema keywords with which editors check it.

    The type's validator is the actual check. The keywords accept everything that the validator accepts.
    """

    def __init__(self, name: str, **keywords: Any) -> None:
        self.name = name
        self.keywords = keywords

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """pydantic's hook for JSON schemas."""
        return {**handler(schema), **self.keywords}


class Between(Kind):
    """A whole number within bounds, and its validator."""

    def __init__(self, low: int, high: int, noun: str) -> None:
        super().__init__(noun.removeprefix("a "), minimum=low, maximum=high)
        self._low, self._high, self._noun = low, high, noun

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """pydantic's hook for validators."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: int) -> int:
        if not self._low <= value <= self._high:
            raise ValueError(f"is {value}; write {self._noun} from {self._low} to {self._high}")
        return value


_NETWORK_KIND = Kind("IPv4 network", pattern=r"^[\d.]+/\d+$")
_DURATION_KIND = Kind("duration", pattern=f"^({_DURATION.pattern})+$")

Text = Annotated[str, AfterValidator(_text), Kind("text", minLength=1)]
FilePath = Annotated[str, AfterValidator(_text), Kind("path", minLength=1)]
Name = Annotated[
    str,
    AfterValidator(_name),
    Kind("node name", pattern=rf"^{_SUBDOMAIN.pattern}$", maxLength=63),
]
Subdomain = Annotated[str, AfterValidator(_subdomain), Kind("DNS name", pattern=rf"^{_SUBDOMAIN.pattern}$")]
Address = Annotated[str, AfterValidator(_address), Kind("IPv4 address", format="ipv4")]
Network4 = Annotated[str, AfterValidator(_network), _NETWORK_KIND]
NodePortAddresses = Annotated[
    tuple[
        Annotated[
            str, AfterValidator(_node_port_address), Kind("IPv4 network", pattern=r"^([\d.]+/\d+|primary)$")
        ],
        ...,
    ],
    AfterValidator(_node_port_addresses),
    Kind("list: IPv4 network, or `[primary]`"),
]
PodSubnet = Annotated[str, AfterValidator(_pod_subnet), _NETWORK_KIND]
ServiceSubnet = Annotated[str, AfterValidator(_service_subnet), _NETWORK_KIND]
KubernetesVersion = Annotated[
    str, AfterValidator(_kubernetes_version), Kind("version", pattern=r"^\d+\.\d+\.\d+$")
]
HostPort = Annotated[str, AfterValidator(_host_port), Kind("host:port", pattern=r"^[^:/]+:\d+$")]
JumpHost = Annotated[str, AfterValidator(_jump_host), Kind("[user@]host[:port]")]
SshHost = Annotated[str, AfterValidator(_ssh_host), Kind("address or DNS name")]
CertificateName = Annotated[str, AfterValidator(_certificate_name), Kind("address or DNS name")]
Share = Annotated[
    str,
    BeforeValidator(_share_text),
    AfterValidator(_share),
    Kind("number or percentage", type=["string", "integer"], pattern=r"^\d+%?$"),
]
Duration = Annotated[str, BeforeValidator(_duration_text), AfterValidator(_duration), _DURATION_KIND]
PositiveDuration = Annotated[
    str, BeforeValidator(_duration_text), AfterValidator(_positive_duration), _DURATION_KIND
]
GracePeriod = Annotated[str, BeforeValidator(_duration_text), AfterValidator(_grace_period), _DURATION_KIND]
RepositoryUrl = Annotated[str, AfterValidator(_repository_url), Kind("URL", pattern="://")]
PackageRevision = Annotated[str, AfterValidator(_revision), Kind("revision")]
PackageKey = Annotated[str, AfterValidator(_package_key), Kind("path or URL")]
Image = Annotated[str, AfterValidator(_image), Kind("image with tag or digest", pattern="[:@]")]
ImageRepository = Annotated[str, AfterValidator(_image_repository), Kind("registry and path")]
Mirrors = Annotated[
    dict[
        str,
        tuple[
            Annotated[
                Any,
                AfterValidator(_mirror),
                Kind(
                    "mirror",
                    anyOf=[
                        {"type": "string"},
                        {
                            "type": "object",
                            "properties": {
                                "url": {"type": "string"},
                                "overridePath": {"enum": [True, False, "true", "false"]},
                                "ca": {"type": "string", "minLength": 1},
                            },
                            "required": ["url"],
                            "additionalProperties": False,
                        },
                    ],
                ),
            ],
            ...,
        ],
    ],
    AfterValidator(_mirrors),
    Kind("registry: list of mirrors"),
]
HostKey = Annotated[
    str,
    AfterValidator(_host_key),
    Kind("public key", pattern=r"^\s*(ssh-ed25519|ecdsa-sha2-nistp(256|384|521))\s+AAAA"),
]
Regex = Annotated[str, AfterValidator(_regex), Kind("regular expression")]
HostPath = Annotated[str, AfterValidator(_host_path), Kind("path", pattern="^/")]
Labels = Annotated[dict[str, str], AfterValidator(_labels), Kind("name: text")]
Taints = Annotated[tuple[str, ...], AfterValidator(_taints), Kind("list of taints")]
PreflightChecks = Annotated[
    tuple[
        Annotated[
            str,
            AfterValidator(_preflight_check),
            Kind("name of a check", pattern=f"^{_PREFLIGHT_CHECK.pattern}$"),
        ],
        ...,
    ],
    AfterValidator(_preflight_checks),
    Kind("list of kubeadm's checks", uniqueItems=True),
]
Reserved = Annotated[dict[str, str], AfterValidator(_reserved), Kind("name: quantity")]
Thresholds = Annotated[dict[str, str], AfterValidator(_thresholds), Kind("name: quantity")]
Size = Annotated[str, AfterValidator(_size), Kind("size", pattern=r"^\d+[kMGi]*$")]
Environment = Annotated[dict[str, str], AfterValidator(_environment), Kind("NAME: text")]
UserName = Annotated[str, AfterValidator(_user_name), Kind("user name")]
Flag = Annotated[
    bool,
    BeforeValidator(_boolean),
    # When Pulumi rewrites a stack file, it turns `true` into text.
    Kind("true or false", type=["boolean", "string"], enum=[True, False, "true", "false"]),
]
# kubelet doesn't start unless this is above its default low threshold, 80
# (pkg/kubelet/apis/config/validation).
ImageThreshold = Annotated[int, BeforeValidator(_integer), Between(81, 100, "a percentage")]
MaxPods = Annotated[
    int,
    BeforeValidator(_integer),
    AfterValidator(_max_pods),
    Kind("whole number", minimum=_FEWEST_PODS, maximum=_MOST_PODS),
]
LogFiles = Annotated[int, BeforeValidator(_integer), Between(2, 1_000, "a whole number")]
Port = Annotated[int, BeforeValidator(_integer), Between(1, 65535, "a port")]
NodePort = Annotated[int, BeforeValidator(_integer), Between(30000, 32767, "a node port")]
Positive = Annotated[int, BeforeValidator(_integer), Between(1, 1_000_000, "a whole number")]
# A step waits a minute less than this, so that it has that minute for the rest of its work.
RolloutSeconds = Annotated[int, BeforeValidator(_integer), Between(120, 1_000_000, "seconds")]
ResyncSeconds = Annotated[int, BeforeValidator(_integer), Between(1, 3600, "seconds")]
# More would renew them in every run: they are valid for a year.
RenewDays = Annotated[int, BeforeValidator(_integer), Between(1, 180, "days")]
TokenMinutes = Annotated[int, BeforeValidator(_integer), Between(1, 1440, "minutes")]
