"""`python -m tools.check --stack NAME`, or `make check`: what on the hosts is not as it was set up.

Logs in to every host of the stack's settings, reads, and changes nothing. For a scheduler the exit
status tells: 0 all as set up, 2 something differs, 1 a host couldn't be looked at or the settings
can't be used (whatever else was found is printed all the same). Not so that of `make check`: make ends
with 2 whatever has failed.

`pulumi up` alone repairs nothing: it runs a step only where its inputs have changed. A text in a host's
setting `repair` that wasn't there before is such a change, and the steps put right what differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from common.errors import UserError
from common.paths import project_dir
from model import drift, steps
from model.settings import PREFIX, Host, Settings, SettingsError, load
from tools.reader import Reader

LOOK_SECONDS = 300  # a few seconds on a host with time to spare, two minutes on a busy emulated one


def settings_of(stack: str) -> Settings:
    """The settings of a stack, read by the `pulumi` on PATH.

    :raises UserError: there is no such stack, or its settings can't be used.
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
            "there is no pulumi on PATH", "`make check` does, for the lab; else install the Pulumi CLI"
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


async def look(settings: Settings, host: Host, stack: str) -> tuple[drift.Difference, ...]:
    """One host's differences.

    :raises UserError: it can't be reached, the look failed there, or what it printed can't be understood.
    """
    async with Reader(settings, host) as reader:
        printed = await reader.ask(steps.CHECK, drift.values(settings, stack), LOOK_SECONDS)
    try:
        return drift.differences(printed, datetime.now(UTC))
    except ValueError as error:
        raise UserError(f"what the look printed can't be understood: {error}") from None


async def check(
    settings: Settings, stack: str
) -> tuple[dict[str, tuple[drift.Difference, ...]], dict[str, str]]:
    """Every host's differences, and why a host couldn't be looked at."""
    results = await asyncio.gather(
        *(look(settings, host, stack) for host in settings.hosts), return_exceptions=True
    )
    seen: dict[str, tuple[drift.Difference, ...]] = {}
    failed: dict[str, str] = {}
    for host, result in zip(settings.hosts, results, strict=True):
        if isinstance(result, UserError):
            failed[host.name] = str(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            seen[host.name] = result
    return seen, failed


def _next_move(stack: str, hosts: Sequence[str]) -> str:
    return (
        f"\nnext: to put it right, give {', '.join(hosts)} in Pulumi.{stack}.yaml a new text as `repair`,\n"
        f"such as `repair: '{datetime.now(UTC):%F %H:%M}'`, and run `pulumi up`:\n"
        "every step there runs again\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--stack", required=True, help="the stack's name, such as dev")
    parser.add_argument("--json", action="store_true", help="differences and failures, for a program")
    chosen = parser.parse_args(argv)
    try:
        settings = settings_of(chosen.stack)
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    seen, failed = asyncio.run(check(settings, chosen.stack))
    if chosen.json:
        hosts = {host: [asdict(difference) for difference in found] for host, found in seen.items()}
        print(json.dumps({"differences": hosts, "notLookedAt": failed}, indent=2))
    else:
        print(drift.table(seen, failed), end="")
    differing = [host for host, found in seen.items() if found]
    if differing and not chosen.json:
        print(_next_move(chosen.stack, differing), end="")
    return 1 if failed else 2 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
