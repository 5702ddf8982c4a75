"""Makes a join token valid for one attempt to join, and revokes it afterwards.

A bootstrap token is a Secret of type `bootstrap.kubernetes.io/token` in kube-system
(https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/). It is written through the API
instead of by a remote command, because a command that has succeeded doesn't run again: a failed join that is
retried later would find its token expired. A resource hook runs before every attempt.
"""

from __future__ import annotations

import functools
import json
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi
import urllib3

from model import http_proxy
from model.kubeconfig import Kubeconfig

SECRETS = "/api/v1/namespaces/kube-system/secrets"
TIMEOUT_SECONDS = 60
CLOCK_TOLERANCE = timedelta(minutes=1)
# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_NOT_YET_VALID, _EXPIRED = 9, 10


class BootstrapTokenError(Exception):
    """The API server is unreachable or refused the request; the message never contains the token."""


class BootstrapToken:
    """The hooks of one worker's join: they make its token valid before the join and revoke it afterwards.

    Attributes:
        hooks: Hooks to bind to the join.
        known: Resolves when the hooks have what they need; one of the join's inputs must depend on it.
    """

    def __init__(
        self, worker: str, kubeconfig: pulumi.Output[str], token: pulumi.Output[str], minutes: int
    ) -> None:
        self._worker = worker
        self._minutes = minutes
        self._kubeconfig = self._token = ""
        self.known: pulumi.Output[None] = pulumi.Output.from_input(None)
        # A preview runs no hooks, and an unknown kubeconfig there would make the join unknown.
        if not pulumi.runtime.is_dry_run():
            self.known = pulumi.Output.all(kubeconfig, token).apply(self._keep)
        creating = pulumi.ResourceHook(f"{worker}-create-token", self._create)
        revoking = pulumi.ResourceHook(f"{worker}-revoke-token", self._revoke)
        # An update also joins, if the node was reset by hand.
        self.hooks = pulumi.ResourceHookBinding(
            before_create=[creating],
            after_create=[revoking],
            before_update=[creating],
            after_update=[revoking],
        )

    def _keep(self, values: list[str]) -> None:
        self._kubeconfig, self._token = values

    def _create(self, _: pulumi.ResourceHookArgs) -> None:
        create(self._kubeconfig, self._token, self._worker, self._minutes)

    def _revoke(self, _: pulumi.ResourceHookArgs) -> None:
        try:
            revoke(self._kubeconfig, self._token)
        except BootstrapTokenError as error:
            # The join succeeded, and the token expires by itself.
            pulumi.log.warn(f"{self._worker}: can't revoke the join token: {error}. It expires by itself")


def create(kubeconfig: str, token: str, worker: str, minutes: int) -> None:
    """Make `token` valid for `minutes` from now, whether or not it is valid already.

    The API server compares the expiration with its own clock, so that clock counts, not this machine's.

    Raises:
        BootstrapTokenError: The API server is unreachable or refused the request.
    """
    behind = revoke(kubeconfig, token)
    if abs(behind) > CLOCK_TOLERANCE:
        warn_about_clock(f"{_rounded(abs(behind))} {'behind' if behind > timedelta() else 'ahead of'}")
    body = token_secret(token, worker, now() + behind + timedelta(minutes=minutes))
    _request(kubeconfig, "POST", SECRETS, body, accepted=(201,))


def revoke(kubeconfig: str, token: str) -> timedelta:
    """Make `token` invalid, if it isn't already.

    Returns:
        How far this machine's clock is behind the API server's; negative if it is ahead.

    Raises:
        BootstrapTokenError: The API server is unreachable or refused the request.
    """
    path = f"{SECRETS}/bootstrap-token-{token.partition('.')[0]}"
    return _request(kubeconfig, "DELETE", path, None, accepted=(200, 202, 404))


def now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)


@functools.cache
def warn_about_clock(difference: str) -> None:
    """Warn about this machine's clock, once for all workers of a run."""
    pulumi.log.warn(
        f"this machine's clock is {difference} that of the API server. Join tokens use the API server's time "
        "and work anyway, but certificates may be rejected. Synchronize both clocks with NTP"
    )


def _rounded(difference: timedelta) -> str:
    minutes = round(difference.total_seconds() / 60)
    number, unit = (minutes, "minute") if minutes < 120 else (minutes // 60, "hour")
    if number >= 48 and unit == "hour":
        number, unit = number // 24, "day"
    return f"{number} {unit}{'' if number == 1 else 's'}"


def token_secret(token: str, worker: str, expires: datetime) -> dict[str, Any]:
    """The Secret that makes `token` (`id.secret`) valid until `expires`."""
    token_id, _, token_value = token.partition(".")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"bootstrap-token-{token_id}", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "description": f"kubeadm-ipvs: join of {worker}",
            "token-id": token_id,
            "token-secret": token_value,
            "expiration": expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    }


def _request(
    kubeconfig: str, method: str, path: str, body: dict[str, Any] | None, accepted: tuple[int, ...]
) -> timedelta:
    """Send a request; returns how far this machine's clock is behind the API server's."""
    config = Kubeconfig.parse(kubeconfig)
    headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
    proxy = http_proxy.proxy_for(config.server, os.environ)
    try:
        with _pool(config, proxy) as pool:
            response = pool.request(
                method, f"{config.server}{path}", json=body, headers=headers, timeout=TIMEOUT_SECONDS
            )
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise BootstrapTokenError(_unreachable(config, proxy, error)) from error
    if response.status not in accepted:
        raise BootstrapTokenError(
            f"the API server {config.server} returned {response.status}: {_message(response.data)}"
        )
    return _behind(response.headers.get("Date"))


def _behind(date: str | None) -> timedelta:
    """How far this machine's clock is behind a `Date` header that has just arrived."""
    try:
        return parsedate_to_datetime(date or "").astimezone(UTC) - now()
    except ValueError:
        return timedelta()


def _pool(config: Kubeconfig, proxy: str | None) -> urllib3.PoolManager:
    """Connections to the API server, through the proxy that the Kubernetes provider uses as well."""
    try:
        return http_proxy.pool(proxy, ssl_context=_tls(config), retries=False)
    except http_proxy.UnsupportedProxyError as error:
        raise BootstrapTokenError(
            f"the API server {config.server} is unreachable: {error}. {_direct(config)}"
        ) from None


def _unreachable(config: Kubeconfig, proxy: str | None, error: Exception) -> str:
    way = f" through the proxy {http_proxy.without_login(proxy)}" if proxy else ""
    cause = error.args[0] if error.args else None
    code = cause.verify_code if isinstance(cause, ssl.SSLCertVerificationError) else None
    clock = f"This machine's clock shows {now():%F %H:%M} UTC"
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
