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
from common.paths import project_dir, unqualified
from model import drift, steps
from model.change_impact import VERSION
from model.drift import Difference
from model.settings import PREFIX, Host, Settings
from model.settings_file import load
from model.settings_problems import SettingsError
from tools.reader import Reader


def settings_of(stack: str) -> Settings:
    """The settings of a stack, read by the `pulumi` on PATH. A version that isn't written is the cluster's.

    Raises:
        UserError: There is no such stack, its settings are invalid, or its state can't be read.
    """
    done = pulumi("config", "--stack", stack, "--json", "--show-secrets", "--non-interactive")
    if done.returncode != 0:
        raise UserError(f"the settings of the stack {stack} can't be read: {done.stderr.strip()}")
    config = json.loads(done.stdout)
    raw = {
        name.removeprefix(PREFIX): item.get("value")
        for name, item in config.items()
        if name.startswith(PREFIX)
    }
    try:
        settings = load(raw, project_dir())
        return settings if settings.version_is_written else load(raw, project_dir(), version_of(stack))
    except SettingsError as error:
        raise UserError(str(error)) from None


def owner_of(stack: str) -> str:
    """The owner that the stack's first update generated and wrote on its hosts (`STACK ID`).

    It isn't computed from the stack's name, because a stack can be renamed. A stack that has no owner yet
    gets its name.

    Raises:
        UserError: The stack's state can't be read.
    """
    owner = _in_state(stack, "pulumi:index:Stash", "::owner", "outputs", "output")
    return unqualified(stack) if owner is None else owner


def version_of(stack: str) -> str | None:
    """The cluster's Kubernetes version according to the stack's state; None if there is no cluster.

    Raises:
        UserError: The stack's state can't be read.
    """
    return _in_state(stack, "kubeadm-ipvs:index:Cluster", "", "inputs", VERSION)


def _in_state(stack: str, kind: str, end: str, part: str, name: str) -> str | None:
    """A property of the first resource of a kind whose URN has an end; None if there is no such resource."""
    done = pulumi("stack", "export", "--stack", stack, "--non-interactive")
    why = done.stderr.strip()
    if done.returncode == 0:
        try:
            for resource in json.loads(done.stdout)["deployment"].get("resources") or []:
                if resource["type"] == kind and resource["urn"].endswith(end):
                    return str(resource[part][name])
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            why = "unknown format"
    raise UserError(f"the state of the stack {stack} can't be read: {why}")


def pulumi(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the `pulumi` on PATH, with `given` on its standard input.

    Raises:
        UserError: The program isn't installed.
    """
    try:
        return subprocess.run(
            ["pulumi", *arguments],
            cwd=project_dir(),
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "pulumi is not on PATH", "use `make check` for the lab; otherwise install the Pulumi CLI"
        ) from None


async def check_host(settings: Settings, host: Host, owner: str) -> tuple[Difference, ...]:
    """One host's differences.

    Raises:
        UserError: The host can't be reached, the step failed, or its output is invalid.
    """
    async with Reader(settings, host) as reader:
        printed = await reader.run(steps.CHECK, drift.values(settings, host, owner), steps.CHECK_SECONDS)
    try:
        return drift.differences(printed, datetime.now(UTC), settings.cluster.certificates.renew_days)
    except ValueError as error:
        raise UserError(f"the step's output is invalid: {error}") from None


async def check(settings: Settings, owner: str) -> tuple[dict[str, tuple[Difference, ...]], dict[str, str]]:
    """Every host's differences, and why a host couldn't be checked."""
    results = await asyncio.gather(
        *(check_host(settings, host, owner) for host in settings.hosts), return_exceptions=True
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
    file = f"Pulumi.{unqualified(stack)}.yaml"
    return (
        f"\nnext: to repair {', '.join(hosts)}, set `repair` in {file} to a new text, such as\n"
        f"`repair: '{datetime.now(UTC):%F %H:%M}'`, and run `pulumi up`: all steps of the host run again\n"
    )


@click.command()
@cli.stack_option
@click.option("--json", "as_json", is_flag=True, help="Print differences and failures as JSON.")
def command(stack: str, *, as_json: bool) -> int:
    """Show what on the hosts differs from how they were set up."""
    checked, failed = asyncio.run(check(settings_of(stack), owner_of(stack)))
    if as_json:
        hosts = {host: [asdict(difference) for difference in found] for host, found in checked.items()}
        print(json.dumps({"differences": hosts, "notChecked": failed}, indent=2))
    else:
        print(table(checked, failed), end="")
    differing = [host for host, found in checked.items() if found]
    if differing and not as_json:
        print(_next_move(stack, differing), end="")
    return 1 if failed else 2 if differing else 0
