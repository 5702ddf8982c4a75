"""Chooses the proxy of a request by the rules of Go's net/http.

The Kubernetes provider is a Go program. This program's own requests to the API server must take the same
way, or one of the two fails where the other works. Python's rules differ: `NO_PROXY` can't contain networks,
and lower-case variables come first.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3

_PORTS = {"http": 80, "https": 443}
_SCHEMES = ("http://", "https://", "socks5://", "socks5h://")


class UnsupportedProxyError(ValueError):
    """A proxy that Go's net/http can use but this program can't."""


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The URL of the proxy for a request; None for a direct connection.

    Args:
        url: The URL of the request.
        environment: The environment variables. `HTTPS_PROXY`, or `HTTP_PROXY` for an `http` URL, names the
            proxy and `NO_PROXY` the exceptions. Names in lower case work too.
    """
    target = urlsplit(url)
    proxy = _variable(environment, f"{target.scheme}_proxy")
    host = target.hostname or ""
    port = target.port or _PORTS.get(target.scheme, 0)
    if not proxy or _is_local(host) or _excepted(host, port, _variable(environment, "no_proxy")):
        return None
    proxy = proxy if proxy.startswith(_SCHEMES) else f"http://{proxy}"
    # Go ignores a URL that it can't parse.
    return proxy if _is_url(proxy) else None


def pool(proxy: str | None, **options: Any) -> urllib3.PoolManager:
    """Connections through a proxy, or direct ones.

    Args:
        proxy: The result of `proxy_for`.
        options: The options of `urllib3.PoolManager`.

    Raises:
        UnsupportedProxyError: It is a SOCKS proxy.
    """
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    if parts.scheme.startswith("socks"):
        raise UnsupportedProxyError(f"{without_login(proxy)} is a SOCKS proxy, which isn't supported")
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    return urllib3.ProxyManager(
        f"{parts.scheme}://{_place(proxy)}",
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login),
        proxy_ssl_context=ssl.create_default_context(),
        **options,
    )


def without_login(proxy: str) -> str:
    """The proxy's URL for messages."""
    return f"{urlsplit(proxy).scheme}://{_place(proxy)}"


def _place(proxy: str) -> str:
    return urlsplit(proxy).netloc.rpartition("@")[2]


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _is_local(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _excepted(host: str, port: int, exceptions: str) -> bool:
    entries = [entry.strip().lower() for entry in exceptions.split(",")]
    return any(entry and _matches(entry, host, port) for entry in entries)


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY covers the host: an address, a network, a domain or `*`."""
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ip_network(entry, strict=False)
        except ValueError:
            return False
    name, only_port = _split_port(entry)
    if not name or only_port not in ("", str(port)):
        return False
    excepted = _address(name)
    if excepted is not None:
        return address == excepted
    domain = name[1:] if name.startswith("*.") else name
    return host.endswith(domain) if domain.startswith(".") else f".{host}".endswith(f".{domain}")


def _split_port(entry: str) -> tuple[str, str]:
    """Split `HOST:PORT`; an IPv6 address has a port only after brackets."""
    name, colon, port = entry.rpartition(":")
    if colon and (":" not in name or name.endswith("]")):
        return name.strip("[]"), port
    return entry, ""


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
