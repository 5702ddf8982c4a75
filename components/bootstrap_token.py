"""Makes a join token valid for one attempt, and revokes it.

A bootstrap token is a Secret of type `bootstrap.kubernetes.io/token` in kube-system
(https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/). It is written through
the API rather than by a command, because a command that has succeeded doesn't run again: a
join that failed and is tried after the token's end would find it expired. A resource hook
runs before every attempt.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi
import yaml

SECRETS = "/api/v1/namespaces/kube-system/secrets"
TIMEOUT_SECONDS = 60


class BootstrapTokenError(Exception):
    """The API server didn't do what was asked; the text says what, never the token."""


def token_secret(token: str, worker: str, expires: datetime) -> dict[str, Any]:
    """The Secret that makes `token` (`id.secret`) valid until `expires`."""
    token_id, _, token_value = token.partition(".")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"bootstrap-token-{token_id}", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "description": f"kubeadm-ipvs: the join of {worker}",
            "token-id": token_id,
            "token-secret": token_value,
            "expiration": expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    }


def create(kubeconfig: str, token: str, worker: str, minutes: int) -> None:
    """Makes `token` valid for `minutes` from now, whether or not it was before.

    Raises:
        BootstrapTokenError: The API server refused, or can't be reached.
    """
    revoke(kubeconfig, token)
    body = token_secret(token, worker, datetime.now(UTC) + timedelta(minutes=minutes))
    _request(kubeconfig, "POST", SECRETS, body, accepted=(201,))


def revoke(kubeconfig: str, token: str) -> None:
    """Makes `token` invalid; one that isn't valid is fine.

    Raises:
        BootstrapTokenError: The API server refused, or can't be reached.
    """
    path = f"{SECRETS}/bootstrap-token-{token.partition('.')[0]}"
    _request(kubeconfig, "DELETE", path, None, accepted=(200, 202, 404))


class BootstrapToken:
    """The hooks of one worker's join: the token is made valid before it, and revoked after it.

    Attributes:
        hooks: To be bound to the join.
        known: Resolves when the hooks have what they need; the join must take an input from it.
    """

    def __init__(
        self, worker: str, kubeconfig: pulumi.Output[str], token: pulumi.Output[str], minutes: int
    ) -> None:
        self._worker = worker
        self._minutes = minutes
        self._kubeconfig = self._token = ""
        self.known: pulumi.Output[None] = pulumi.Output.from_input(None)
        # Hooks don't run in a preview, where a kubeconfig that is read again would make the join unknown.
        if not pulumi.runtime.is_dry_run():
            self.known = pulumi.Output.all(kubeconfig, token).apply(self._keep)
        creating = pulumi.ResourceHook(f"{worker}-create-token", self._create)
        revoking = pulumi.ResourceHook(f"{worker}-revoke-token", self._revoke)
        # An update joins too, where somebody has taken the node apart by hand.
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
            # The join itself went well, and the token ends by itself.
            pulumi.log.warn(f"{self._worker}: the join token wasn't revoked before its end: {error}")


def _request(
    kubeconfig: str, method: str, path: str, body: dict[str, Any] | None, accepted: tuple[int, ...]
) -> None:
    server = ""
    try:
        with _credentials(kubeconfig) as (server, context, headers):
            url = urlsplit(server)
            connection = http.client.HTTPSConnection(
                url.hostname or "", url.port or 443, timeout=TIMEOUT_SECONDS, context=context
            )
            try:
                connection.request(
                    method,
                    path,
                    body=None if body is None else json.dumps(body),
                    headers={"Content-Type": "application/json", **headers},
                )
                response = connection.getresponse()
                text = response.read().decode(errors="replace")
            finally:
                connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise BootstrapTokenError(f"the API server {server} can't be reached: {error}") from error
    if response.status not in accepted:
        raise BootstrapTokenError(f"the API server {server} answered {response.status}: {_message(text)}")


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"


@contextmanager
def _credentials(kubeconfig: str) -> Iterator[tuple[str, ssl.SSLContext, dict[str, str]]]:
    """What an administrator's kubeconfig says: server, TLS context, and headers where it holds a token.

    The ssl module reads a client's key from a file only: one that nobody else may read, and
    that is gone before the request is made.
    """
    document = yaml.safe_load(kubeconfig)
    cluster = document["clusters"][0]["cluster"]
    user = document["users"][0]["user"]
    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    if "token" in user:
        yield str(cluster["server"]), context, {"Authorization": f"Bearer {user['token']}"}
        return
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-") as folder:
        pair = Path(folder) / "client.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(
            base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"])
        )
        context.load_cert_chain(pair)
    yield str(cluster["server"]), context, {}
