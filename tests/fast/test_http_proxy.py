"""Choosing a proxy as Go's net/http does."""

from __future__ import annotations

import pytest

from model.http_proxy import proxy_for

PROXY = "http://proxy.example.com:3128"
URL = "https://10.0.0.11:6443"


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, URL, None),
        ({"HTTPS_PROXY": PROXY}, URL, PROXY),
        ({"https_proxy": PROXY}, URL, PROXY),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://other:1"}, URL, PROXY),
        ({"HTTPS_PROXY": "", "https_proxy": PROXY}, URL, PROXY),
        ({"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, URL, None),
        ({"HTTP_PROXY": PROXY}, "http://10.0.0.11:8080", PROXY),
        ({"HTTPS_PROXY": "proxy.example.com:3128"}, URL, PROXY),
        ({"HTTPS_PROXY": "socks5://proxy:1080"}, URL, "socks5://proxy:1080"),
        ({"HTTPS_PROXY": "http://[proxy"}, URL, None),
        ({"HTTPS_PROXY": "http://proxy:port"}, URL, None),
        ({"HTTPS_PROXY": PROXY}, "https://localhost:6443", None),
        ({"HTTPS_PROXY": PROXY}, "https://127.0.0.2:6443", None),
        ({"HTTPS_PROXY": PROXY}, "https://[::1]:6443", None),
    ],
)
def test_variables_select_the_proxy(environment: dict[str, str], url: str, expected: str | None) -> None:
    assert proxy_for(url, environment) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("10.0.0.11", "10.0.0.11", True),
        ("10.0.0.1", "10.0.0.11", False),
        ("10.0.0.0/8", "10.0.0.11", True),
        ("192.168.0.0/16, 10.0.0.0/24", "10.0.0.11", True),
        ("10.0.0.11:6443", "10.0.0.11", True),
        ("10.0.0.11:443", "10.0.0.11", False),
        ("10.0.0.*", "10.0.0.11", False),
        ("10.", "10.0.0.11", False),
        ("*", "10.0.0.11", True),
        ("nonsense/33,,:80,*", "10.0.0.11", True),
        ("example.com", "api.example.com", True),
        ("example.com", "example.com", True),
        (".example.com", "example.com", False),
        (".example.com", "API.example.com", True),
        ("*.example.com", "api.example.com", True),
        ("*example.com", "api.example.com", False),
        ("*ample.com", "example.com", False),
        ("example.com:6443", "api.example.com", True),
        ("example.com:443", "api.example.com", False),
        ("ample.com", "api.example.com", False),
        ("10.0.0.0/8", "api.example.com", False),
        ("fd00::/8", "[fd00::11]", True),
        ("fd00::11", "[fd00::11]", True),
        ("[fd00::11]:6443", "[fd00::11]", True),
        ("fd00::12", "[fd00::11]", False),
    ],
)
def test_no_proxy_follows_gos_rules(no_proxy: str, host: str, direct: bool) -> None:
    environment = {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}
    assert (proxy_for(f"https://{host}:6443", environment) is None) == direct
