"""A host read from outside a run: one login for many questions, and a lost one is made up for."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import pytest

from common.errors import UserError
from model.steps import TRAFFIC
from tests.engine.ssh_server import SshServer
from tests.engine.test_ssh_access import settings_for
from tools import reader
from tools.reader import Reader


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # The step's text is a value of the test's: what is asked of a real host is the scripts' tests' matter.
    monkeypatch.setattr(reader, "script_text", lambda step, values: values["TEXT"])


def test_many_questions_take_one_login_and_a_lost_connection_another(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)

    async def ask() -> list[str]:
        async with Reader(settings, settings.hosts[0]) as one:
            said = [await one.ask(TRAFFIC, {"TEXT": f"echo {word}"}, 9) for word in ("one", "two")]
            assert one._connection is not None
            one._connection.abort()
            with pytest.raises(UserError, match="the connection was lost"):
                await one.ask(TRAFFIC, {"TEXT": "echo lost"}, 9)
            return [*said, await one.ask(TRAFFIC, {"TEXT": "echo three"}, 9)]

    assert asyncio.run(ask()) == ["one\n", "two\n", "three\n"]
    assert len(host.logins) == 2
    assert host.commands[0] == "timeout --kill-after=20 9 bash -s -- create traffic node1"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("first\nnode1: check: FAILED: why", "node1: check: FAILED: why"),
        (
            "first\nnode1: check: FAILED: why\nnode1: check: next: what to do",
            "node1: check: FAILED: why\nnode1: check: next: what to do",
        ),
        ("first\nbash: last words", "bash: last words"),
        ("", "the look ended with status 3"),
    ],
)
def test_a_step_that_fails_is_told_by_its_cause_and_next_move(
    host: SshServer, tmp_path: Path, printed: str, told: str
) -> None:
    settings = settings_for(host, tmp_path)

    async def ask() -> None:
        async with Reader(settings, settings.hosts[0]) as one:
            await one.ask(TRAFFIC, {"TEXT": f"printf %s {shlex.quote(printed)} >&2; exit 3"}, 9)

    with pytest.raises(UserError) as trouble:
        asyncio.run(ask())
    assert str(trouble.value) == told


def test_a_host_that_hangs_is_given_up(
    host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_LOST_SECONDS", 0)
    monkeypatch.setattr(reader, "command_text", lambda *_: "exec tail -f /dev/null")
    settings = settings_for(host, tmp_path)

    async def ask() -> None:
        async with Reader(settings, settings.hosts[0]) as one:
            await one.ask(TRAFFIC, {"TEXT": ""}, 1)

    with pytest.raises(UserError, match="the connection was lost: no answer"):
        asyncio.run(ask())


def test_a_host_that_is_down_is_named_with_its_address(host: SshServer, tmp_path: Path) -> None:
    host.port = 1  # nobody listens there
    settings = settings_for(host, tmp_path)

    async def ask() -> None:
        async with Reader(settings, settings.hosts[0]) as one:
            await one.ask(TRAFFIC, {"TEXT": ""}, 9)

    with pytest.raises(UserError, match=r"no SSH server answers at 127\.0\.0\.1:1: "):
        asyncio.run(ask())
