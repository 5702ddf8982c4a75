"""What an API server that is too busy costs: the request is made again, and not for ever."""

from __future__ import annotations

import asyncio

import pulumi
import pytest

from components import manifests


def asked(monkeypatch: pytest.MonkeyPatch, *errors: str) -> bool:
    """Whether what failed so, the newest first, is tried again."""
    monkeypatch.setattr(manifests, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(pulumi.log, "info", lambda message: None)
    failure = pulumi.ErrorHookArgs(
        urn="", id="", name="Service/default/nginx", type="", failed_operation="create", errors=list(errors)
    )
    return asyncio.run(manifests.once_more(failure))


BUSY = (
    'resource "urn" was not successfully created by the Kubernetes API server: Timeout: request did not '
    "complete within requested timeout - context deadline exceeded"
)


@pytest.mark.parametrize(
    "error",
    [BUSY, "etcdserver: request timed out", "net/http: TLS handshake timeout", "connection refused"],
)
def test_what_a_busy_api_server_gave_up_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    assert asked(monkeypatch, error)


@pytest.mark.parametrize(
    "error",
    [
        'Deployment.apps "nginx" is invalid: spec.replicas: Invalid value: -1',
        "the Kubernetes API server reported that it failed to fully initialize or become live: timed out",
    ],
)
def test_what_is_wrong_by_itself_is_not(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    assert not asked(monkeypatch, error)


def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, *[BUSY] * (manifests.ATTEMPTS - 1))
    assert not asked(monkeypatch, *[BUSY] * manifests.ATTEMPTS)
