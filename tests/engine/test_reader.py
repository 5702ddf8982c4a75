"""Running scripts on a host over one SSH connection."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from model.steps import TRAFFIC
from tests.engine.ssh_server import SshServer
from tests.engine.ssh_settings import settings_for
from tests.fast.recorded_run import framed
from tools import reader
from tools.reader import Reader

LIMIT_SECONDS = 9


@pytest.fixture(autouse=True)
def _own_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real scripts have their own tests.
    monkeypatch.setattr(reader, "script_text", lambda script, values: values["TEXT"])


def printing(results: str) -> str:
    """A script with these results."""
    return f"printf %s {shlex.quote(framed(results))}"


def traffic(reading: Reader, text: str) -> Coroutine[Any, Any, str]:
    return reading.run(TRAFFIC, {"TEXT": text}, LIMIT_SECONDS)


def test_scripts_share_one_login(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)

    async def outputs() -> list[str]:
        async with Reader(settings, settings.hosts[0]) as reading:
            found = [await traffic(reading, printing(word)) for word in ("one", "two")]
            assert reading._connection is not None
            reading._connection.abort()
            with pytest.raises(UserError, match="the connection was lost"):
                await traffic(reading, "echo lost")
            return [*found, await traffic(reading, f"echo Welcome; {printing('three')}")]

    assert asyncio.run(outputs()) == ["one", "two", "three"]
    assert len(host.logins) == 2
    assert host.commands[0] == "timeout --kill-after=20 9 bash -s -- create traffic node1"


@pytest.mark.parametrize(
    ("printed", "reported"),
    [
        ("first\nnode1: check: FAILED: why", "node1: check: FAILED: why"),
        (
            "first\nnode1: check: FAILED: why\nnode1: check: next: what to do",
            "node1: check: FAILED: why\nnode1: check: next: what to do",
        ),
        ("first\nbash: last line", "bash: last line"),
        ("", "the script ended with status 3"),
    ],
)
def test_failed_script_reports_cause_and_next_move(
    host: SshServer, tmp_path: Path, printed: str, reported: str
) -> None:
    settings = settings_for(host, tmp_path)

    async def run() -> None:
        async with Reader(settings, settings.hosts[0]) as reading:
            await traffic(reading, f"printf %s {shlex.quote(printed)} >&2; exit 3")

    with pytest.raises(UserError) as caught:
        asyncio.run(run())
    assert str(caught.value) == reported


def test_script_that_didnt_run_is_reported(host: SshServer, tmp_path: Path) -> None:
    settings = settings_for(host, tmp_path)

    async def run(text: str) -> None:
        async with Reader(settings, settings.hosts[0]) as reading:
            await traffic(reading, text)

    for text, reported in (("true", "it returned nothing"), ("echo Welcome", "without the lines that frame")):
        with pytest.raises(UserError, match=f"the host reported success, but .*{reported}"):
            asyncio.run(run(text))


def test_hanging_host_times_out(host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_LOST_SECONDS", 0)
    monkeypatch.setattr(reader, "command_text", lambda *_: "exec tail -f /dev/null")
    settings = settings_for(host, tmp_path)

    async def run() -> None:
        async with Reader(settings, settings.hosts[0]) as reading:
            await reading.run(TRAFFIC, {"TEXT": ""}, 1)

    with pytest.raises(UserError, match="the connection was lost: no answer"):
        asyncio.run(run())


def test_login_shell_that_prints_is_reported(host: SshServer, tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\necho Welcome\n")
    shell.chmod(0o755)
    host.shell = str(shell)
    settings = settings_for(host, tmp_path)

    async def run() -> None:
        async with Reader(settings, settings.hosts[0]) as reading:
            await traffic(reading, "")

    with pytest.raises(UserError, match=r"node1: root can log in, but the host doesn't run .* 'Welcome'"):
        asyncio.run(run())
    assert host.commands == []


def test_unreachable_host_is_named_with_its_address(host: SshServer, tmp_path: Path) -> None:
    host.port = 1  # nothing listens there
    settings = settings_for(host, tmp_path)

    async def run() -> None:
        async with Reader(settings, settings.hosts[0]) as reading:
            await traffic(reading, "")

    with pytest.raises(UserError, match=r"no SSH server answers at 127\.0\.0\.1:1: "):
        asyncio.run(run())
