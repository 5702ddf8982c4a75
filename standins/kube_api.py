"""A small Kubernetes API client for the `kubernetes` stand-in.

The `kubernetes` package isn't used because it writes client keys to files, which would stay behind when the
engine kills the plugin. Here a key is on disk only while the TLS context reads it.
"""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from model import http_proxy
from model.kubeconfig import Kubeconfig, KubeconfigError

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 180.0  # an emulated control plane can be slow
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


class Unreachable(Exception):
    """The API server didn't respond."""


class ApiError(Exception):
    """The API server rejected a request; the message is the server's."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        """Keep the response.

        Args:
            code: The HTTP status.
            status: The `Status` object, or whatever JSON arrived instead.
        """
        super().__init__(str(status.get("message") or f"the server returned status {code}"))
        self.code = code
        self.reason = str(status.get("reason") or "")
        self.details: Mapping[str, Any] = status.get("details") or {}

    @property
    def namespace_missing(self) -> bool:
        """Whether the request failed because the object's namespace doesn't exist."""
        return self.code == 404 and self.details.get("kind") == "namespaces"


class NoSuchKind(Exception):
    """The API server doesn't have this API version, or doesn't have this kind in it."""


@dataclass(frozen=True)
class Kind:
    """Where the API has a kind's objects."""

    prefix: str  # `/api/v1` or `/apis/GROUP/VERSION`
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of one object, or of a namespace's collection."""
        parts = [self.prefix]
        if self.namespaced:
            parts.append(f"namespaces/{quote(namespace or 'default')}")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        return "/".join(parts)


def load(kubeconfig: str, context: str | None = None, cluster: str | None = None) -> Kubeconfig:
    """Read a kubeconfig, given as text or as a path.

    Args:
        kubeconfig: The text or the path.
        context: The context to use instead of the current one.
        cluster: The cluster to use instead of the context's.

    Raises:
        KubeconfigError: The kubeconfig can't be used.
    """
    text = kubeconfig
    if "\n" not in text and len(text) < 4096 and Path(text).expanduser().is_file():
        text = Path(text).expanduser().read_text()
    return Kubeconfig.parse(text, context, cluster)


class Api:
    """A client for one cluster's API. Calls block; threads may share a client."""

    def __init__(self, config: Kubeconfig) -> None:
        """Prepare the connection without sending anything.

        Raises:
            KubeconfigError: The server's URL or the certificates can't be used.
            UnsupportedProxyError: The environment names a SOCKS proxy for the server.
        """
        if not config.server.startswith(("https://", "http://")):
            raise KubeconfigError("the kubeconfig's server is not a URL")
        self.namespace = config.namespace
        self._server = config.server.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "kubeadm-ipvs-stand-in"}
        if config.token:
            self._headers["Authorization"] = f"Bearer {config.token}"
        self._pool = http_proxy.pool(
            http_proxy.proxy_for(config.server, os.environ),
            maxsize=16,
            retries=False,
            ssl_context=_tls(config) if config.server.startswith("https://") else None,
            server_hostname=config.tls_server_name,
            assert_hostname=config.tls_server_name,
        )
        self._kinds: dict[str, dict[str, Kind]] = {}
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        attempts: int = _ATTEMPTS,
    ) -> Object:
        """Send a request, and retry if the connection breaks or the server is too busy.

        A POST isn't repeated if the connection breaks after it was sent: the server may have handled it.

        Raises:
            ApiError: The server rejected the request.
            Unreachable: The server didn't respond.
        """
        url = f"{self._server}{path}{'?' + urlencode(query) if query else ''}"
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": content_type}
        for attempt in range(1, attempts + 1):
            try:
                response = self._pool.request(
                    method,
                    url,
                    body=data,
                    headers=headers,
                    timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
                    redirect=False,
                )
            except urllib3.exceptions.HTTPError as error:
                sent = not isinstance(error, urllib3.exceptions.NewConnectionError)
                if attempt == attempts or (sent and method == "POST"):
                    raise Unreachable(f"{self._server}: {_cause(error)}") from error
                time.sleep(_PAUSE_SECONDS)
                continue
            if response.status < 400:
                return _json(response.data)
            after = response.headers.get("Retry-After")
            if attempt < attempts and after is not None and response.status in (429, 500, 502, 503, 504):
                time.sleep(min(float(after) if after.isdigit() else _PAUSE_SECONDS, 10.0))
                continue
            raise ApiError(response.status, _json(response.data))
        raise AssertionError("the last attempt returns or raises")

    def kind(self, api_version: str, kind: str, *, fresh: bool = False) -> Kind:
        """Look up a kind in the server's API discovery.

        Args:
            api_version: Such as `apps/v1`.
            kind: Such as `Deployment`.
            fresh: Ask the server again if the kind is unknown: its definition may be new.

        Raises:
            NoSuchKind: The server doesn't have the kind.
        """
        with self._lock:
            known = self._kinds.get(api_version)
        if known is None or (fresh and kind not in known):
            prefix = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            try:
                listed = self.request("GET", prefix).get("resources") or []
            except ApiError as error:
                if error.code != 404:
                    raise
                listed = []
            known = {
                entry["kind"]: Kind(prefix, entry["name"], bool(entry["namespaced"]))
                for entry in listed
                if "/" not in entry["name"]
            }
            if known:
                with self._lock:
                    self._kinds[api_version] = known
        if kind not in known:
            raise NoSuchKind(f'no matches for kind "{kind}" in version "{api_version}"')
        return known[kind]


def _tls(config: Kubeconfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=config.ca or None)
        if config.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if config.client_certificate and config.client_key:
            # The ssl module only reads client certificates from files.
            with tempfile.NamedTemporaryFile("w", prefix="kubeadm-ipvs-", suffix=".pem") as file:
                file.write(f"{config.client_certificate}\n{config.client_key}\n")
                file.flush()
                context.load_cert_chain(file.name)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise KubeconfigError(f"the kubeconfig's certificates can't be used: {error}") from error
    return context


def _json(data: bytes) -> Object:
    try:
        content = json.loads(data)
    except ValueError:
        return {"message": data.decode(errors="replace").strip()[:500]}
    return content if isinstance(content, dict) else {"message": str(content)[:500]}


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None or isinstance(getattr(error, "reason", None), BaseException):
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error
    return str(error)
