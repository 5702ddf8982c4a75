"""Retries of requests to a busy API server, and their limits."""

from __future__ import annotations

import asyncio
import time

import pulumi
import pytest

from components import manifests


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses so far. Time passes only in pauses."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(pulumi.log, "info", lambda message: None)
    return pauses


def retried(hook: manifests.RetryWhenBusy, *errors: str, urn: str = "urn:nginx") -> bool:
    """Whether a request that failed with these errors, newest first, is retried."""
    failure = pulumi.ErrorHookArgs(
        urn=urn, id="", name="Service/default/nginx", type="", failed_operation="create", errors=list(errors)
    )
    return asyncio.run(hook(failure))


def attempts(*errors: str) -> int:
    """The number of attempts if the last error repeats forever."""
    hook, seen = manifests.RetryWhenBusy(), list(errors[:1])
    rest = list(errors[1:])
    while retried(hook, *seen):
        seen.insert(0, rest.pop(0) if rest else seen[0])
    return len(seen)


BUSY = (
    'resource "urn" was not successfully created by the Kubernetes API server: Timeout: request did not '
    "complete within requested timeout - context deadline exceeded"
)
HELD = (
    'Service "nginx" is invalid: spec.ports[0].nodePort: Invalid value: 30080: '
    "provided port is already allocated"
)


@pytest.mark.parametrize(
    "error",
    [
        BUSY,
        "etcdserver: request timed out",
        "net/http: TLS handshake timeout",
        "connection refused",
        'Patch "https://127.0.0.1:22643/api/v1/namespaces/default/services/nginx": EOF',
    ],
)
def test_errors_of_a_busy_api_server_are_retried(clock: list[float], error: str) -> None:
    assert retried(manifests.RetryWhenBusy(), error)


@pytest.mark.parametrize(
    "error",
    [
        'Deployment.apps "nginx" is invalid: spec.replicas: Invalid value: -1',
        "the Kubernetes API server reported that it failed to fully initialize or become live: timed out",
    ],
)
def test_permanent_errors_are_not_retried(clock: list[float], error: str) -> None:
    assert not retried(manifests.RetryWhenBusy(), error)
    assert not clock


def test_node_ports_held_by_earlier_attempts_are_retried(clock: list[float]) -> None:
    assert retried(manifests.RetryWhenBusy(), HELD, BUSY)


def test_node_port_in_use_is_not_retried(clock: list[float]) -> None:
    assert not retried(manifests.RetryWhenBusy(), HELD)


def test_pauses_grow_and_retries_end(clock: list[float]) -> None:
    assert attempts(BUSY) > 10
    assert clock[:3] == [5.0, 10.0, 15.0]
    assert max(clock) == manifests.LONGEST_PAUSE_SECONDS
    assert manifests.BUSY_SECONDS <= sum(clock) < manifests.BUSY_SECONDS + manifests.LONGEST_PAUSE_SECONDS


def test_node_port_retries_outlast_the_repair_interval(clock: list[float]) -> None:
    attempts(BUSY, HELD)
    # Three repairs at intervals of three minutes, the first after up to three minutes.
    assert sum(clock) > 3 * 180 + 180


def test_each_object_has_its_own_time_limit(clock: list[float]) -> None:
    hook = manifests.RetryWhenBusy()
    assert retried(hook, BUSY)
    clock.append(manifests.BUSY_SECONDS)
    assert not retried(hook, BUSY, BUSY)
    assert retried(hook, BUSY, urn="urn:flannel")
