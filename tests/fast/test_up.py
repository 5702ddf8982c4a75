"""`make up`: waiting for nginx, checks, errors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.errors import UserError
from common.paths import stack_file
from tools import up
from tools.__main__ import main


class Nginx(BaseHTTPRequestHandler):
    """Succeeds from the third request on, like a service that is still starting."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200 if self.requests > 2 else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


@pytest.fixture
def nginx() -> Iterator[str]:
    Nginx.requests = 0
    server = HTTPServer(("127.0.0.1", 0), Nginx)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_answer_is_retried_without_a_proxy(nginx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert up.answer(nginx, time.monotonic() + 30) == "200 OK"
    assert Nginx.requests == 3


def test_url_without_an_answer_is_named() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UserError) as caught:
            up.answer(url, time.monotonic())
    assert url in caught.value.what
    assert "python -m lab status" in caught.value.next_move


def test_expected_failure_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("nginx (pid 7) uses port 22101", "stop it")

    monkeypatch.setattr(up, "up", refuse)
    assert main(["up"]) == 1
    assert capsys.readouterr().err == "error: nginx (pid 7) uses port 22101\n  -> stop it\n"


def test_other_state_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        up.check_state_dir("default")
    assert "XDG_STATE_HOME" in caught.value.what
    up.check_state_dir("mine")


def test_committed_stack_file_names_default_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    up.check_state_dir("default")
    assert "~/.local/state/kubeadm-ipvs/labs/default/id_ed25519" in stack_file().read_text()
