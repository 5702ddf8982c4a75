"""The front end of `python -m tools` and `python -m lab`.

`run` is the only place that turns an exception into a message and an exit status.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from common.errors import UserError

FAILED = 1
INTERRUPTED = 130

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Settings for a group's context; its commands inherit them."""

stack_option = click.option("--stack", required=True, metavar="NAME", help="The stack, such as dev.")


class Group(click.Group):
    """A group that lists its commands in the order of their definition."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)


class LazyGroup(click.Group):
    """A group that imports a command's module only to run the command or to show the group's help."""

    def __init__(self, places: Mapping[str, str], help_text: str) -> None:
        """Create the group.

        Args:
            places: Where each command is, as `module:attribute`.
            help_text: The group's description.
        """
        super().__init__(help=help_text, context_settings=SETTINGS)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is no such command."""
        if cmd_name not in self._places:
            return None
        module, _, attribute = self._places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def run(group: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        group: All commands, or the only one. Each returns its exit status, or None for 0.
        program: How users start it, such as `python -m lab`.
        arguments: The command line; that of this process by default.

    Returns:
        The command's exit status; 1 if it raised a UserError, 2 for a wrong command line, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with group.make_context(program, words) as context:
            status: int | None = group.invoke(context)
        sys.stdout.flush()
        return status or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        message = error.format_message().removesuffix(".")
        command = error.ctx.command_path if error.ctx else program
        _print(UserError(message[:1].lower() + message[1:], f"see `{command} --help`"))
        return error.exit_code
    except UserError as error:
        _print(error)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has exited (`| head`). Keep the interpreter from flushing to the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _print(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)


def read_text(file: Path) -> str:
    """Read a file that the command line names.

    Raises:
        UserError: The file can't be read or isn't UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} can't be read: {error}") from error


def write_text(file: Path, text: str) -> None:
    """Write a file that the command line names.

    Raises:
        UserError: The file can't be written.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error
