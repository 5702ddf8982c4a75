"""Behaviour of `command:remote:Command`'s connections that this project relies on; see conformance.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import asyncssh

from tests.engine.conformance import commands
from tests.engine.ssh_server import (
    SshServer,
    private,
    public,
    ssh_agent,
    ssh_server,
    turn_one_away,
)
from tests.engine.stack import Stack
from tests.local_ports import closed_port


def test_delete_uses_the_stored_connection(
    stack: Stack, host: SshServer, hosts: Callable[[str], SshServer]
) -> None:
    text = 'command("a", create="echo create >> log", delete="echo delete >> log")\n'
    commands(stack, host, text).up()
    # The program's new connection is not used.
    commands(stack, hosts("other"), text)
    stack.destroy()
    assert host.lines() == ["create", "delete"]


def test_refused_connection_fails_after_the_attempt_limit(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        'command("a", create="true", connection=connection(port=given["closed"], dial_error_limit=3))\n',
        closed=closed_port(),
    )
    begun = time.monotonic()
    run = stack.up(fails=True)
    assert time.monotonic() - begun < 60
    assert "after 3 failed attempts" in "\n".join(run.messages)
    assert any("3/3 failed: retrying" in line for line in run.progress)


def test_host_that_boots_late_is_reached(stack: Stack, tmp_path: Path) -> None:
    port = closed_port()
    late = asyncssh.generate_private_key("ssh-ed25519")
    user = asyncssh.generate_private_key("ssh-ed25519")
    with ExitStack() as running:

        def boot() -> None:
            turn_one_away(port)
            running.enter_context(ssh_server(tmp_path / "late", port, late, user))

        start = Thread(target=boot)
        start.start()
        commands(
            stack,
            SshServer(port, tmp_path / "late", public(late), private(user)),
            'command("a", create="echo late >> log", connection=connection(dial_error_limit=-1))\n',
        )
        assert stack.up().ops == ["create a"]
        start.join()
    assert (tmp_path / "late" / "log").read_text() == "late\n"


def test_wrong_host_key_fails_before_anything_runs(stack: Stack, host: SshServer) -> None:
    other = public(asyncssh.generate_private_key("ssh-ed25519"))
    commands(
        stack,
        host,
        """
        wrong = connection(host_key=given["other"], dial_error_limit=0)
        command("a", create="echo run >> log", connection=wrong)
        """,
        other=other,
    )
    assert "host key mismatch" in "\n".join(stack.up(fails=True).messages)
    assert host.commands == []


def test_proxy_forwards_the_connection(
    stack: Stack, host: SshServer, hosts: Callable[[str], SshServer]
) -> None:
    proxy = hosts("proxy")
    commands(
        stack,
        host,
        """
        p = given["proxy"]
        a = command("a", create="echo there", connection=connection(proxy=remote.ProxyConnectionArgs(
            host="127.0.0.1", port=p["port"], host_key=p["host_key"], private_key=p["private_key"])))
        pulumi.export("stdout", a.stdout)
        """,
        proxy={"port": proxy.port, "host_key": proxy.host_key, "private_key": proxy.private_key},
    )
    stack.up()
    assert stack.output("stdout") == "there"
    assert len(proxy.logins) == 1
    assert (proxy.commands, len(host.commands)) == ([], 1)


def test_login_without_a_key_uses_the_agent(stack: Stack, host: SshServer) -> None:
    with ssh_agent(host.private_key) as socket_path:
        stack.extra["SSH_AUTH_SOCK"] = socket_path
        commands(
            stack, host, 'command("a", create="echo in >> log", connection=connection(private_key=None))\n'
        )
        assert stack.up().ops == ["create a"]
    assert host.lines() == ["in"]


def test_dead_agent_fails_even_with_a_key(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        'command("a", create="true", connection=connection(agent_socket_path="/nowhere/agent"))\n',
    )
    assert "/nowhere/agent" in "\n".join(stack.up(fails=True).messages)


def test_commands_on_one_host_run_in_parallel(stack: Stack, host: SshServer) -> None:
    # Each command waits for the others, so in sequence they would fail.
    commands(
        stack,
        host,
        """
        for n in range(6):
            command(f"c{n}", create=f"touch here{n}\\n"
                "for i in $(seq 300); do [ $(ls here* | wc -l) -ge 6 ] && exit 0; sleep 0.1; done; exit 1")
        """,
    )
    assert len(stack.up().ops) == 6
