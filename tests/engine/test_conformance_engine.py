"""Behaviour of the engine with these plugins that this project relies on; see conformance.py."""

from __future__ import annotations

from tests.engine.conformance import commands
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack


def test_every_run_with_a_stand_in_reports_it(stack: Stack, host: SshServer, stand_ins: set[str]) -> None:
    stack.language_host = True
    commands(stack, host, "command('a', create='true')\n")
    for run in (stack.up(), stack.preview(), stack.destroy()):
        assert ("stand-in" in run.text) == ("command" in stand_ins)


def test_before_create_hook_runs_before_each_attempt(stack: Stack, host: SshServer) -> None:
    stack.language_host = True
    commands(
        stack,
        host,
        """
        async def mint(args):
            with open("minted", "a") as file:
                file.write(args.name + "\\n")

        hook = pulumi.ResourceHook("mint", mint)
        command("a", create="echo create >> log; test -e allowed",
                opts=pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook])))
        """,
    )
    minted = stack.folder / "minted"
    stack.up(fails=True)
    assert minted.read_text().splitlines() == ["a"]
    (host.folder / "allowed").touch()
    stack.up()
    assert minted.read_text().splitlines() == ["a", "a"]
    stack.up()
    assert minted.read_text().splitlines() == ["a", "a"]


def test_failing_before_create_hook_prevents_the_create(stack: Stack, host: SshServer) -> None:
    stack.language_host = True
    commands(
        stack,
        host,
        """
        def mint(args):
            raise Exception("no token available")

        hooks = pulumi.ResourceHookBinding(before_create=[pulumi.ResourceHook("mint", mint)])
        command("a", create="echo create >> log", opts=pulumi.ResourceOptions(hooks=hooks))
        """,
    )
    assert "no token available" in stack.up(fails=True).text
    assert host.commands == []


def test_deleted_with_skips_the_delete_command(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        a = command("a", create="true", delete="echo a >> log")
        command("b", create="true", delete="echo b >> log",
                opts=pulumi.ResourceOptions(depends_on=[a], deleted_with=a))
        """,
    ).up()
    stack.destroy()
    assert host.lines() == ["a"]


def test_replace_with_replaces_the_dependent(stack: Stack, host: SshServer) -> None:
    text = """
    a = command("a", create="true", triggers=["VERSION"])
    command("b", create="echo b >> log", opts=pulumi.ResourceOptions(replace_with=[a]))
    """
    commands(stack, host, text.replace("VERSION", "1")).up()
    commands(stack, host, text.replace("VERSION", "2")).up()
    assert host.lines() == ["b", "b"]
