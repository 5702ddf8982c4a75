"""The program's own requests to the API server, beside those of the Kubernetes provider."""

from __future__ import annotations

import json
import os
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from model import http_proxy
from model.kubeconfig import Kubeconfig

TIMEOUT_SECONDS = 60
# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_NOT_YET_VALID, _EXPIRED = 9, 10


class ApiError(Exception):
    """The API server is unreachable or refused a request; the message contains nothing secret."""


def send(
    kubeconfig: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    accepted: tuple[int, ...] = (200,),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> urllib3.BaseHTTPResponse:
    """Send one request, without retries.

    Raises:
        ApiError: The API server is unreachable, or the response's status isn't in `accepted`.
        KubeconfigError: The kubeconfig can't be used.
    """
    config = Kubeconfig.parse(kubeconfig)
    headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
    proxy = http_proxy.proxy_for(config.server, os.environ)
    try:
        with _pool(config, proxy) as pool:
            response = pool.request(
                method, f"{config.server}{path}", json=body, headers=headers, timeout=timeout_seconds
            )
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise ApiError(_unreachable(config, proxy, error)) from error
    if response.status not in accepted:
        raise ApiError(
            f"the API server {config.server} returned {response.status}: {_message(response.data)}"
        )
    return response


def _pool(config: Kubeconfig, proxy: str | None) -> urllib3.PoolManager:
    """Connections to the API server, through the proxy that the Kubernetes provider uses as well."""
    try:
        return http_proxy.pool(proxy, ssl_context=_tls(config), retries=False)
    except http_proxy.UnsupportedProxyError as error:
        raise ApiError(f"the API server {config.server} is unreachable: {error}. {_direct(config)}") from None


def _unreachable(config: Kubeconfig, proxy: str | None, error: Exception) -> str:
    way = f" through the proxy {http_proxy.without_login(proxy)}" if proxy else ""
    cause = error.args[0] if error.args else None
    code = cause.verify_code if isinstance(cause, ssl.SSLCertVerificationError) else None
    clock = f"This machine's clock shows {datetime.now(UTC):%F %H:%M} UTC"
    if code == _NOT_YET_VALID:
        why = f"its certificate isn't valid yet. {clock}; set it, for example with NTP"
    elif code == _EXPIRED:
        why = f"its certificate has expired. {clock}; if that is right, set `repair` on the control plane"
    else:
        why = f"{error}" + (f". {_direct(config)}" if proxy else "")
    return f"the API server {config.server} is unreachable{way}: {why}"


def _direct(config: Kubeconfig) -> str:
    return f"For a direct connection, add {urlsplit(config.server).hostname} to NO_PROXY"


def _tls(config: Kubeconfig) -> ssl.SSLContext:
    """A TLS context with the cluster's CA and the client's certificate."""
    context = ssl.create_default_context(cadata=config.ca)
    if config.client_certificate and config.client_key:
        # The ssl module loads a client key only from a file. Nobody else can read this one.
        with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-") as folder:
            pair = Path(folder) / "client.pem"
            pair.touch(mode=0o600)
            pair.write_text(config.client_certificate + config.client_key, encoding="utf-8")
            context.load_cert_chain(pair)
    return context


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"
