"""`python -m tools check --stack NAME`, or `make check`: what on the hosts differs from how they were set up.

Logs in to every host in the stack's settings and reads; changes nothing. The exit status is meant for
schedulers: 0 no differences, 2 differences, 1 a host couldn't be checked or the settings are invalid (all
other results are still printed). `make check` exits with 2 in both cases, as make does.

`pulumi up` alone repairs nothing: it runs a step only if its inputs have changed. A new text in a host's
setting `repair` is such a change: the host's steps run again and fix the differences.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from common import cli, tables
from common.errors import UserError
from common.paths import project_dir
from model import drift, steps
from model.drift import Difference
from model.settings import PREFIX, Host, Settings
from model.settings_file import load
from model.settings_problems import SettingsError
from tools.reader import Reader

CHECK_SECONDS = 300  # seconds on an idle host, two minutes on a busy emulated one


def settings_of(stack: str) -> Settings:
    """The settings of a stack, read by the `pulumi` on PATH.

    Raises:
        UserError: There is no such stack, or its settings are invalid.
    """
    try:
        done = subprocess.run(
            ["pulumi", "config", "--stack", stack, "--json", "--show-secrets", "--non-interactive"],
            cwd=project_dir(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "pulumi is not on PATH", "use `make check` for the lab; otherwise install the Pulumi CLI"
        ) from None
    if done.returncode != 0:
        raise UserError(f"the settings of the stack {stack} can't be read: {done.stderr.strip()}")
    config = json.loads(done.stdout)
    raw = {
        name.removeprefix(PREFIX): item.get("value")
        for name, item in config.items()
        if name.startswith(PREFIX)
    }
    try:
        return load(raw, project_dir())
    except SettingsError as error:
        raise UserError(str(error)) from None


async def check_host(settings: Settings, host: Host, stack: str) -> tuple[Difference, ...]:
    """One host's differences.

    Raises:
        UserError: The host can't be reached, the step failed, or its output is invalid.
    """
    async with Reader(settings, host) as reader:
        printed = await reader.run(steps.CHECK, drift.values(settings, stack), CHECK_SECONDS)
    try:
        return drift.differences(printed, datetime.now(UTC))
    except ValueError as error:
        raise UserError(f"the step's output is invalid: {error}") from None


async def check(settings: Settings, stack: str) -> tuple[dict[str, tuple[Difference, ...]], dict[str, str]]:
    """Every host's differences, and why a host couldn't be checked."""
    results = await asyncio.gather(
        *(check_host(settings, host, stack) for host in settings.hosts), return_exceptions=True
    )
    checked: dict[str, tuple[Difference, ...]] = {}
    failed: dict[str, str] = {}
    for host, result in zip(settings.hosts, results, strict=True):
        if isinstance(result, UserError):
            failed[host.name] = str(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            checked[host.name] = result
    return checked, failed


def table(hosts: Mapping[str, Sequence[Difference]], failed: Mapping[str, str]) -> str:
    """A row for each difference, and a line for each host without any and each that couldn't be checked."""
    rows = [
        (host, difference.what, difference.wanted, difference.found)
        for host, found in hosts.items()
        for difference in found
    ]
    lines = [tables.table(("HOST", "WHAT", "EXPECTED", "FOUND"), rows)] if rows else []
    lines += [f"{host}: no differences" for host, found in hosts.items() if not found]
    lines += [f"{host}: could not be checked: {why}" for host, why in failed.items()]
    return "\n".join(lines) + "\n"


def _next_move(stack: str, hosts: Sequence[str]) -> str:
    return (
        f"\nnext: to repair {', '.join(hosts)}, set `repair` in Pulumi.{stack}.yaml to a new text, such as\n"
        f"`repair: '{datetime.now(UTC):%F %H:%M}'`, and run `pulumi up`: all steps of the host run again\n"
    )


@click.command()
@cli.stack_option
@click.option("--json", "as_json", is_flag=True, help="Print differences and failures as JSON.")
def command(stack: str, *, as_json: bool) -> int:
    """Show what on the hosts differs from how they were set up."""
    checked, failed = asyncio.run(check(settings_of(stack), stack))
    if as_json:
        hosts = {host: [asdict(difference) for difference in found] for host, found in checked.items()}
        print(json.dumps({"differences": hosts, "notChecked": failed}, indent=2))
    else:
        print(table(checked, failed), end="")
    differing = [host for host, found in checked.items() if found]
    if differing and not as_json:
        print(_next_move(stack, differing), end="")
    return 1 if failed else 2 if differing else 0
