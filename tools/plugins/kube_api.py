"""A small client of the Kubernetes API for the stand-in of the `kubernetes` plugin.

It is not the `kubernetes` package's, for one reason: that one needs a client's key as a file,
and a plugin, which the engine kills when it is done, would leave such files behind. Here a
key is on disk only while the TLS context reads it. Only what `kubeadm` writes into a
kubeconfig is understood: certificates and tokens, as data or as files.
"""

from __future__ import annotations

import base64
import binascii
import json
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
import yaml

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 180.0  # an emulated control plane may take its time
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0

Object = dict[str, Any]
"""A Kubernetes object, as its JSON."""


class BadKubeconfig(Exception):
    """The kubeconfig can't be used."""


class Unreachable(Exception):
    """The API server didn't answer."""


class ApiError(Exception):
    """The API server refused; the message is its own."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        """Keep the answer.

        :param code: the HTTP status.
        :param status: the `Status` object, or whatever came instead.
        """
        super().__init__(str(status.get("message") or f"the server answered with status {code}"))
        self.code = code
        self.reason = str(status.get("reason") or "")
        self.details: Mapping[str, Any] = status.get("details") or {}

    @property
    def namespace_missing(self) -> bool:
        """Whether it is the object's namespace that isn't there."""
        return self.code == 404 and self.details.get("kind") == "namespaces"


class NoSuchKind(Exception):
    """The API server has no such API version, or no such kind in it."""


@dataclass(frozen=True)
class Kind:
    """How objects of a kind are reached."""

    prefix: str  # `/api/v1` or `/apis/GROUP/VERSION`
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of one object, or of all in a namespace."""
        parts = [self.prefix]
        if self.namespaced:
            parts.append(f"namespaces/{quote(namespace or 'default')}")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        return "/".join(parts)


def parse(kubeconfig: str) -> Object:
    """A kubeconfig's content; `kubeconfig` may also be the path of one.

    :raises BadKubeconfig: it is neither.
    """
    text = kubeconfig
    if "\n" not in text and len(text) < 4096 and Path(text).expanduser().is_file():
        text = Path(text).expanduser().read_text()
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadKubeconfig(str(error)) from error
    if not isinstance(content, dict):
        raise BadKubeconfig("it is no mapping")
    return content


def active(content: Object, context: str | None, cluster: str | None) -> tuple[Object, Object, str] | None:
    """The cluster, the user and the namespace that a kubeconfig selects; nothing if it selects none."""

    def named(section: str, name: str | None, part: str) -> Object | None:
        for entry in content.get(section) or []:
            if isinstance(entry, dict) and entry.get("name") == name:
                found = entry.get(part)
                return found if isinstance(found, dict) else {}
        return None

    chosen = named("contexts", context or content.get("current-context"), "context")
    if chosen is None:
        return None
    place = named("clusters", cluster or chosen.get("cluster"), "cluster")
    if place is None:
        return None
    return place, named("users", chosen.get("user"), "user") or {}, chosen.get("namespace") or "default"


class Api:
    """The API of one cluster. Its calls block; several threads may share it."""

    def __init__(self, content: Object, context: str | None = None, cluster: str | None = None) -> None:
        """Prepare; nothing is sent yet.

        :param content: a kubeconfig, parsed.
        :param context: the context to use instead of the current one.
        :param cluster: the cluster to use instead of the context's.
        :raises BadKubeconfig: it names no server, or a way to log in that isn't known here.
        """
        chosen = active(content, context, cluster)
        if chosen is None:
            raise BadKubeconfig("it selects no cluster: look at current-context, contexts and clusters")
        place, user, self.namespace = chosen
        server = place.get("server")
        if not isinstance(server, str) or not server.startswith(("https://", "http://")):
            raise BadKubeconfig("the cluster has no server's URL")
        for unknown in ("exec", "auth-provider", "username"):
            if user.get(unknown):
                raise BadKubeconfig(f"the stand-in can't log in by '{unknown}': Pulumi's own plugin can")
        self._server = server.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "kubeadm-ipvs-stand-in"}
        token = user.get("token") or (
            Path(user["tokenFile"]).read_text().strip() if user.get("tokenFile") else ""
        )
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(
            maxsize=16,
            retries=False,
            ssl_context=_tls(place, user) if server.startswith("https://") else None,
            server_hostname=place.get("tls-server-name"),
            assert_hostname=place.get("tls-server-name"),
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
        """Send one request, again if the connection breaks or the server is too busy.

        A creation that was sent isn't sent again, since it may have been done.

        :raises ApiError: the server refused.
        :raises Unreachable: it didn't answer.
        """
        url = f"{self._server}{path}{'?' + urlencode(query) if query else ''}"
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": content_type}
        for attempt in range(1, attempts + 1):
            try:
                answer = self._pool.request(
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
            if answer.status < 400:
                return _json(answer.data)
            after = answer.headers.get("Retry-After")
            if attempt < attempts and after is not None and answer.status in (429, 500, 502, 503, 504):
                time.sleep(min(float(after) if after.isdigit() else _PAUSE_SECONDS, 10.0))
                continue
            raise ApiError(answer.status, _json(answer.data))
        raise AssertionError("the last attempt returns or raises")

    def kind(self, api_version: str, kind: str, *, fresh: bool = False) -> Kind:
        """How objects of that kind are reached, by the server's own list.

        :param fresh: ask again, since definitions may have come since.
        :raises NoSuchKind: the server doesn't have it.
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


def _tls(place: Object, user: Object) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        authority = _pem(place, "certificate-authority")
        if authority:
            context = ssl.create_default_context(cadata=authority)
        if place.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = _pem(user, "client-certificate"), _pem(user, "client-key")
        if certificate and key:
            # The ssl module reads client certificates from files only.
            with tempfile.NamedTemporaryFile("w", prefix="kubeadm-ipvs-", suffix=".pem") as file:
                file.write(f"{certificate}\n{key}\n")
                file.flush()
                context.load_cert_chain(file.name)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise BadKubeconfig(f"its certificates can't be used: {error}") from error
    return context


def _pem(section: Object, name: str) -> str:
    data = section.get(f"{name}-data")
    if data:
        try:
            return base64.b64decode("".join(data.split()), validate=True).decode()
        except binascii.Error as error:
            raise ValueError(f"{name}-data: {error}") from error
    return Path(section[name]).read_text() if section.get(name) else ""


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
