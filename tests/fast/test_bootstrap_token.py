"""The requests for join tokens: whose clock they use, and which way they take to the API server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pulumi
import pytest

from components import bootstrap_token
from components.api_requests import ApiError
from components.bootstrap_token import create
from tests.fast.api_stub import NAME, StubApi, StubProxy, stub_api, stub_proxy

TOKEN = "abcdef.0123456789abcdef"
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubApi]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with stub_api(tmp_path) as api:
        yield api


@pytest.fixture
def proxy(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubProxy]:
    with stub_proxy(api.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        yield proxy


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", lambda message: found.append(message))
    bootstrap_token.warn_about_clock.cache_clear()
    return found


def seconds_valid(api: StubApi) -> float:
    """How long the token is valid by the API server's clock."""
    assert api.ahead is not None
    expires = dt.datetime.fromisoformat(api.bodies[-1]["stringData"]["expiration"])
    return (expires - api.ahead - dt.datetime.now(dt.UTC)).total_seconds()


@pytest.mark.parametrize("minutes", [15, -15, 0])
def test_token_expires_by_the_api_servers_clock(api: StubApi, minutes: int) -> None:
    api.ahead = dt.timedelta(minutes=minutes)
    create(api.kubeconfig(), TOKEN, "node1", 15)
    assert 14 * 60 < seconds_valid(api) <= 15 * 60


def test_missing_date_falls_back_to_the_own_clock(api: StubApi, warnings: list[str]) -> None:
    api.ahead = None
    create(api.kubeconfig(), TOKEN, "node1", 15)
    api.ahead = dt.timedelta()
    assert 14 * 60 < seconds_valid(api) <= 15 * 60
    assert warnings == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (900, "15 minutes behind"),
        (-900, "15 minutes ahead of"),
        (100, "2 minutes behind"),
        (3 * 86400, "3 days behind"),
        (50, None),
        (-50, None),
    ],
)
def test_wrong_clock_is_reported_once(
    api: StubApi, warnings: list[str], seconds: int, words: str | None
) -> None:
    api.ahead = dt.timedelta(seconds=seconds)
    for worker in ("node1", "node2"):
        create(api.kubeconfig(), TOKEN, worker, 15)
    assert len(warnings) == (0 if words is None else 1)
    if words:
        assert f"this machine's clock is {words} that of the API server" in warnings[0]
        assert "NTP" in warnings[0]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (dt.timedelta(days=2), "isn't valid yet"),
        (dt.timedelta(days=-2), "has expired"),
    ],
)
def test_certificate_outside_its_time_names_the_clock(tmp_path: Path, end: dt.timedelta, words: str) -> None:
    now = dt.datetime.now(dt.UTC)
    with (
        stub_api(tmp_path, end=now + end) as api,
        pytest.raises(ApiError, match=f"{words}.*clock shows {now:%Y-%m-%d}"),
    ):
        create(api.kubeconfig(), TOKEN, "node1", 15)


def test_requests_use_the_proxy_like_the_provider(api: StubApi, proxy: StubProxy) -> None:
    create(api.kubeconfig(NAME), TOKEN, "node1", 15)
    assert set(proxy.tunnels) == {f"{NAME}:{api.port}"}
    assert [request.split()[0] for request in api.requests] == ["DELETE", "POST"]


def test_no_proxy_is_honoured(api: StubApi, proxy: StubProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    create(api.kubeconfig(), TOKEN, "node1", 15)
    assert proxy.tunnels == [], "Go never uses a proxy for this machine itself"
    monkeypatch.setenv("NO_PROXY", ".example.com")
    with pytest.raises(ApiError, match="is unreachable: "):
        create(api.kubeconfig(NAME), TOKEN, "node1", 15)
    assert proxy.tunnels == []


def test_proxy_login_is_sent_and_never_shown(
    api: StubApi, proxy: StubProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:s%40cret@"))
    create(api.kubeconfig(NAME), TOKEN, "node1", 15)
    assert proxy.logins[0] == "Basic bWU6c0BjcmV0"
    proxy.refuse = True
    with pytest.raises(ApiError) as caught:
        create(api.kubeconfig(NAME), TOKEN, "node1", 15)
    assert "cret" not in str(caught.value)


def test_refusing_proxy_is_named_with_the_way_out(api: StubApi, proxy: StubProxy) -> None:
    proxy.refuse = True
    with pytest.raises(ApiError) as caught:
        create(api.kubeconfig(NAME), TOKEN, "node1", 15)
    message = str(caught.value)
    assert f"through the proxy {proxy.url}" in message
    assert "403" in message
    assert f"add {NAME} to NO_PROXY" in message


def test_socks_proxy_is_refused_in_words(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ApiError, match=f"SOCKS.*add {NAME} to NO_PROXY"):
        create(api.kubeconfig(NAME), TOKEN, "node1", 15)
