"""What an API server that is too busy costs: the request is made again, and not for ever."""

from __future__ import annotations

import asyncio
import time

import pulumi
import pytest

from components import manifests


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made, of which time consists."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(pulumi.log, "info", lambda message: None)
    return pauses


def asked(again: manifests.RetryWhenBusy, *errors: str, urn: str = "urn:nginx") -> bool:
    """Whether what failed so, the newest first, is tried again."""
    failure = pulumi.ErrorHookArgs(
        urn=urn, id="", name="Service/default/nginx", type="", failed_operation="create", errors=list(errors)
    )
    return asyncio.run(again(failure))


def attempts(*errors: str) -> int:
    """How often one is asked, whose last error comes for ever."""
    again, seen = manifests.RetryWhenBusy(), list(errors[:1])
    rest = list(errors[1:])
    while asked(again, *seen):
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
def test_what_a_busy_api_server_gave_up_is_tried_again(clock: list[float], error: str) -> None:
    assert asked(manifests.RetryWhenBusy(), error)


@pytest.mark.parametrize(
    "error",
    [
        'Deployment.apps "nginx" is invalid: spec.replicas: Invalid value: -1',
        "the Kubernetes API server reported that it failed to fully initialize or become live: timed out",
    ],
)
def test_what_is_wrong_by_itself_is_not(clock: list[float], error: str) -> None:
    assert not asked(manifests.RetryWhenBusy(), error)
    assert not clock


def test_a_node_port_that_a_given_up_attempt_still_holds_is_waited_for(clock: list[float]) -> None:
    assert asked(manifests.RetryWhenBusy(), HELD, BUSY)


def test_a_node_port_that_was_taken_from_the_start_is_not(clock: list[float]) -> None:
    assert not asked(manifests.RetryWhenBusy(), HELD)


def test_it_is_tried_ever_more_slowly_and_not_for_ever(clock: list[float]) -> None:
    assert attempts(BUSY) > 10
    assert clock[:3] == [5.0, 10.0, 15.0]
    assert max(clock) == manifests.LONGEST_PAUSE_SECONDS
    assert manifests.BUSY_SECONDS <= sum(clock) < manifests.BUSY_SECONDS + manifests.LONGEST_PAUSE_SECONDS


def test_a_node_port_is_waited_for_as_long_as_the_api_server_needs_to_find_it(clock: list[float]) -> None:
    attempts(BUSY, HELD)
    # Three looks of three minutes each, the first of them up to three minutes away.
    assert sum(clock) > 3 * 180 + 180


def test_each_object_has_time_of_its_own(clock: list[float]) -> None:
    again = manifests.RetryWhenBusy()
    assert asked(again, BUSY)
    clock.append(manifests.BUSY_SECONDS)
    assert not asked(again, BUSY, BUSY)
    assert asked(again, BUSY, urn="urn:flannel")
