"""The command lines of the tools and the lab: messages, exit statuses, help."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from common import cli
from common.errors import UserError
from lab.__main__ import commands as lab_commands
from tests.stacks import PROJECT
from tools.__main__ import commands as tools_commands


@click.group(cls=cli.Group, context_settings=cli.SETTINGS)
def sample() -> None:
    """A sample."""


@sample.command("finish")
@click.option("--status", type=int, help="The exit status.")
def _finish(status: int | None) -> int | None:
    """Finish."""
    return status


@sample.command("fail")
def _fail() -> None:
    """Fail."""
    raise UserError("node1 doesn't answer", "start it")


@sample.command("hang")
def _hang() -> None:
    """Wait for Ctrl-C."""
    raise KeyboardInterrupt


@sample.command("break")
def _break() -> None:
    """Have a bug."""
    raise EOFError


def run(*arguments: str) -> int:
    return cli.run(sample, "sample", arguments)


def all_commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        yield f"{name} {word}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{name} {word}")


COMMANDS = [*all_commands(tools_commands, "tools"), *all_commands(lab_commands, "lab")]


def test_command_sets_the_exit_status() -> None:
    assert run("finish") == 0
    assert run("finish", "--status", "3") == 3


def test_user_error_becomes_message_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail") == 1
    assert capsys.readouterr().err == "error: node1 doesn't answer\n  -> start it\n"


@pytest.mark.parametrize(
    ("arguments", "message", "help_of"),
    [
        (["finsh"], "no such command 'finsh'", "sample"),
        (["finish", "--stat"], "no such option '--stat'", "sample finish"),
        (
            ["finish", "--status", "x"],
            "invalid value for '--status': 'x' is not a valid integer",
            "sample finish",
        ),
        (["finish", "now"], "got unexpected extra argument (now)", "sample finish"),
    ],
)
def test_wrong_command_line_points_to_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, help_of: str
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.endswith(f"\n  -> see `{help_of} --help`\n")


def test_missing_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "Usage: sample [OPTIONS] COMMAND" in capsys.readouterr().err


def test_help_lists_commands_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-h") == 0
    printed = capsys.readouterr().out.split("Commands:\n")[1]
    assert [line.split()[0] for line in printed.splitlines()] == ["finish", "fail", "hang", "break"]


def test_interrupt_has_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hang") == 130
    assert capsys.readouterr().err == "\ninterrupted; run the same command again to continue\n"


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(EOFError):
        run("break")


def test_closed_pipe_fails_without_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "lab", "--help"]
    done = subprocess.run(argv, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_unreadable_and_unwritable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none can't be read: No such file"):
        cli.read_text(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"binary can't be read: .*utf-8"):
        cli.read_text(tmp_path / "binary")
    with pytest.raises(UserError, match="x can't be written: No such file"):
        cli.write_text(tmp_path / "none/x", "")


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_commands_and_options_have_one_line_of_help(name: str, command: click.Command) -> None:
    assert command.help
    assert "\n" not in command.help
    # Lists of commands cut longer texts in a terminal of 80 columns.
    assert len(command.help) <= 64
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help and option.help.endswith(".") for option in options)


def test_env_imports_no_other_command() -> None:
    code = (
        "import sys; from tools.__main__ import commands\n"
        "import click; commands.get_command(click.Context(commands), 'env')\n"
        "print({'rich', 'jinja2', 'pydantic', 'pulumi', 'lab.lab'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "lab"),
    [
        (["status"], "default"),
        (["--name", "blue", "status"], "blue"),
        (["status", "--name", "blue"], "blue"),
        (["--name", "red", "status", "--name", "blue"], "blue"),
    ],
)
def test_lab_is_named_before_or_after_the_command(
    arguments: list[str],
    lab: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.run(lab_commands, "python -m lab", arguments) == 1
    assert f"there is no lab '{lab}'" in capsys.readouterr().err


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_words_after_the_host_are_for_ssh(monkeypatch: pytest.MonkeyPatch, separator: list[str]) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("lab.lab.Lab.ssh_command", lambda lab, host, tty: ["/bin/ssh", host])
    monkeypatch.setattr("os.execv", lambda path, argv: started.append(argv))
    assert cli.run(lab_commands, "lab", ["ssh", "node1", *separator, "ipvsadm", "-Ln", "--help"]) == 0
    assert started == [["/bin/ssh", "node1", "ipvsadm", "-Ln", "--help"]]
