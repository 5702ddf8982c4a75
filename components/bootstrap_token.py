"""Makes a join token valid for one attempt to join, and revokes it afterwards.

A bootstrap token is a Secret of type `bootstrap.kubernetes.io/token` in kube-system
(https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/). It is written through the API
instead of by a remote command, because a command that has succeeded doesn't run again: a failed join that is
retried later would find its token expired. A resource hook runs before every attempt.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pulumi
import urllib3

from model.kubeconfig import Kubeconfig

SECRETS = "/api/v1/namespaces/kube-system/secrets"
TIMEOUT_SECONDS = 60


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

    Raises:
        BootstrapTokenError: The API server is unreachable or refused the request.
    """
    revoke(kubeconfig, token)
    body = token_secret(token, worker, datetime.now(UTC) + timedelta(minutes=minutes))
    _request(kubeconfig, "POST", SECRETS, body, accepted=(201,))


def revoke(kubeconfig: str, token: str) -> None:
    """Make `token` invalid, if it isn't already.

    Raises:
        BootstrapTokenError: The API server is unreachable or refused the request.
    """
    path = f"{SECRETS}/bootstrap-token-{token.partition('.')[0]}"
    _request(kubeconfig, "DELETE", path, None, accepted=(200, 202, 404))


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
) -> None:
    config = Kubeconfig.parse(kubeconfig)
    headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
    try:
        with urllib3.PoolManager(ssl_context=_tls(config), retries=False) as pool:
            response = pool.request(
                method, f"{config.server}{path}", json=body, headers=headers, timeout=TIMEOUT_SECONDS
            )
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise BootstrapTokenError(f"the API server {config.server} is unreachable: {error}") from error
    if response.status not in accepted:
        raise BootstrapTokenError(
            f"the API server {config.server} returned {response.status}: {_message(response.data)}"
        )


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
