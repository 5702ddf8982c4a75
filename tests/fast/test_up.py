"""What `make up` and `make down` promise apart from what they call."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.paths import stack_file
from common.progress import Progress
from lab.api import Lab
from tools import down, env, runs, stack, up, watch
from tools.watch import Row, time_table


class _Nginx(BaseHTTPRequestHandler):
    """Answers from its third request on, as a service whose endpoints are just being programmed."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.asked > 2 else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def nginx() -> Iterator[str]:
    _Nginx.asked = 0
    server = HTTPServer(("127.0.0.1", 0), _Nginx)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_answer_is_waited_for(nginx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # what is asked is this machine: no proxy knows it
    assert up.answer(nginx, time.monotonic() + 30) == "200 OK"
    assert _Nginx.asked == 3


def test_a_url_that_never_answers_is_an_error_that_names_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UserError) as caught:
            up.answer(url, time.monotonic())
    assert url in caught.value.what
    assert "python -m lab status" in caught.value.next_move


def test_the_time_table_aligns_and_leaves_unknown_beginnings_out() -> None:
    table = time_table([Row("lab", 0.0, 61.25), Row("  hosts: booting", None, 12.0)])
    assert table.splitlines() == [
        "where the time went     began      took",
        "lab                      0.0s     61.2s",
        "  hosts: booting                  12.0s",
    ]


def test_the_time_table_fits_a_terminal_whatever_a_step_lists() -> None:
    table = time_table([Row("  mirror: compiling " + "bridge, " * 30, None, 12.0)])
    assert {len(line) <= 94 for line in table.splitlines()} == {True}
    assert "  mirror: compiling bridge, " in table


def test_down_without_lab_and_stack_needs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def toolbox(progress: Progress) -> env.Toolbox:
        raise AssertionError("the engine would have been built only to find nothing")

    monkeypatch.setattr(env, "toolbox", toolbox)
    down.down("default", Progress(quiet=True))


class _Busy:
    """A lab whose host runs, and is too busy to greet at once."""

    exists = True

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(ready=False, hosts=(SimpleNamespace(state="booting"),))

    def up(self) -> None:
        self._done.append("waited for the hosts")

    def down(self) -> None:
        self._done.append("lab ended")


def test_hosts_that_are_too_busy_to_answer_at_once_are_given_back_before_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Lab, "load", lambda *_: _Busy(done))
    monkeypatch.setattr(down, "exists", lambda _: True)
    monkeypatch.setattr(env, "toolbox", lambda _: None)
    monkeypatch.setattr(env, "environment", lambda _: {})
    monkeypatch.setattr(stack, "ensure", lambda *_: None)
    monkeypatch.setattr(runs, "recorded", lambda *_: nullcontext())
    monkeypatch.setattr(watch, "run", lambda argv, *_: done.append(argv[0]))
    down.down("default", Progress(quiet=True))
    assert done == ["waited for the hosts", "destroy", "lab ended"]


def test_the_command_line_tells_an_expected_failure_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("port 22101 is taken by nginx (pid 7)", "end it")

    monkeypatch.setattr(up, "up", refuse)
    assert up.main([]) == 1
    assert capsys.readouterr().err == "\nerror: port 22101 is taken by nginx (pid 7)\n  -> end it\n"


def test_a_state_folder_that_the_committed_stack_file_cannot_name_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        up.check_place("default")
    assert "XDG_STATE_HOME" in caught.value.what
    up.check_place("mine")


def test_the_usual_state_folder_is_the_one_that_the_committed_stack_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    up.check_place("default")
    assert "~/.local/state/kubeadm-ipvs/labs/default/id_ed25519" in stack_file().read_text()
