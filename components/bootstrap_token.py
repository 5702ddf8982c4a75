"""Makes a join token valid for one attempt to join, and revokes it afterwards.

A bootstrap token is a Secret of type `bootstrap.kubernetes.io/token` in kube-system
(https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/). It is written through the API
instead of by a remote command, because a command that has succeeded doesn't run again: a failed join that is
retried later would find its token expired. A resource hook runs before every attempt.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pulumi

from components import api_requests
from components.api_requests import ApiError

SECRETS = "/api/v1/namespaces/kube-system/secrets"
CLOCK_TOLERANCE = timedelta(minutes=1)


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
        except ApiError as error:
            # The join succeeded, and the token expires by itself.
            pulumi.log.warn(f"{self._worker}: can't revoke the join token: {error}. It expires by itself")


def create(kubeconfig: str, token: str, worker: str, minutes: int) -> None:
    """Make `token` valid for `minutes` from now, whether or not it is valid already.

    The API server compares the expiration with its own clock, so that clock counts, not this machine's.

    Raises:
        ApiError: The API server is unreachable or refused the request.
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
        ApiError: The API server is unreachable or refused the request.
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
    response = api_requests.send(kubeconfig, method, path, body, accepted=accepted)
    return _behind(response.headers.get("Date"))


def _behind(date: str | None) -> timedelta:
    """How far this machine's clock is behind a `Date` header that has just arrived."""
    try:
        return parsedate_to_datetime(date or "").astimezone(UTC) - now()
    except ValueError:
        return timedelta()
