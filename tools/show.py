"""`python -m tools.show --stack NAME`, or `make show`: what each host's kernel balances, and how much.

By default the virtual servers as the last proof saw them, out of the stack's outputs: no host is asked.
With --live each host is, and with --watch again and again. --html FILE draws the same as a page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from common.errors import UserError
from model import ipvs, steps, traffic
from model.settings import Settings
from model.traffic import View
from tools import cluster_page
from tools.check import settings_of
from tools.reader import Reader

OUTPUT = "virtualServers"
_MISSING = "does not have output property"  # Pulumi's words for an output that the stack hasn't
# The kernel adds its counters up every other second.
WATCH_SECONDS = 2.0
# It reads a few files of /proc; a host that hangs holds up the others' next look for so long.
LOOK_SECONDS = 60


@dataclass(frozen=True)
class Look:
    """Hosts' views, why others couldn't be looked at, and the moment of it (seconds, monotonic)."""

    views: tuple[View, ...]
    failed: dict[str, str]
    at: float = 0.0


def last_proof(stack: str) -> Look:
    """What the stack's last proof saw.

    :raises UserError: the stack's outputs can't be read, there is no such one, or it isn't this program's.
    """
    text = _output(stack)
    try:
        return Look(
            tuple(
                View(host, tuple(ipvs.in_order(ipvs.from_rows(rows))))
                for host, rows in json.loads(text).items()
            ),
            {},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"the stack's {OUTPUT} is not what this program writes: {text.strip()[:200]}",
            "`pulumi up` with this version of the program writes it anew",
        ) from None


def _output(stack: str) -> str:
    try:
        result = subprocess.run(
            ["pulumi", "stack", "output", OUTPUT, "--stack", stack, "--json", "--non-interactive"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("there is no pulumi on PATH", "`make show` puts it there") from None
    if result.returncode == 0:
        return result.stdout
    said = result.stderr.strip()
    if _MISSING in said:
        raise UserError(
            f"the stack {stack} has no {OUTPUT} to show: {said}",
            "`pulumi up` makes it; the proof is its last step",
        )
    raise UserError(f"the outputs of the stack {stack} can't be read: {said}")


async def look(readers: Sequence[Reader]) -> Look:
    """Every host's view now; one that can't be looked at doesn't keep the others from it."""

    async def one(reader: Reader) -> View | UserError:
        try:
            return traffic.view_of_report(reader.host.name, await reader.ask(steps.TRAFFIC, {}, LOOK_SECONDS))
        except UserError as trouble:
            return trouble
        except ipvs.UnreadableError as error:
            return UserError(str(error))

    results = await asyncio.gather(*(one(reader) for reader in readers))
    return Look(
        tuple(result for result in results if isinstance(result, View)),
        {
            reader.host.name: str(result)
            for reader, result in zip(readers, results, strict=True)
            if isinstance(result, UserError)
        },
        time.monotonic(),
    )


def text_of(seen: Look, nodes: dict[str, str], since: traffic.Change | None = None, lines: int = 0) -> str:
    """The table, and a line for each host that couldn't be looked at.

    :param nodes: hosts' addresses by name, as far as they are known.
    :param lines: where the table is longer, idle virtual servers are left out, then its end; 0 for no limit.
    """
    hosts = traffic.hosts_of(seen.views, nodes)
    failed = [f"{host}: not looked at: {why}\n" for host, why in seen.failed.items()]

    def whole(fold: bool) -> str:
        return "\n".join(filter(None, [traffic.table(seen.views, hosts, since, fold=fold), *failed]))

    text = whole(fold=False)
    if lines and text.count("\n") > lines:
        text = whole(fold=True)
    if lines and text.count("\n") > lines:
        kept = text.splitlines()[: max(lines - 1, 0)]
        more = text.count("\n") - len(kept)
        text = "\n".join([*kept, f"... {more} lines more than this window has"]) + "\n"
    return text


async def watch(
    ask: Callable[[], Awaitable[Look]],
    nodes: dict[str, str],
    stream: TextIO,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    height: Callable[[], int] = lambda: shutil.get_terminal_size().lines,
) -> None:
    """Look again and again, and write each table with what was counted since the one before, until cancelled.

    On a terminal each takes the place of the one before; else they follow one another.
    """
    before: Look | None = None
    counted: dict[traffic.Key, ipvs.Counts] = {}
    screen = stream.isatty()
    while True:
        seen = await ask()
        now = traffic.counts_by_key(seen.views)
        since = traffic.change(counted, now, seen.at - before.at) if before else None
        if screen:
            text = text_of(seen, nodes, since, height() - 2)
            # Home, each line's rest cleared, then what is below: nothing flickers.
            drawn = text.replace("\n", "\x1b[K\n")
            stream.write(f"\x1b[H{datetime.now():%T}\x1b[K\n{drawn}\x1b[J")
        else:
            stream.write(f"{datetime.now():%T}\n{text_of(seen, nodes, since)}\n")
        stream.flush()
        before, counted = seen, now
        await pause(WATCH_SECONDS)


async def _live(settings: Settings, chosen: argparse.Namespace) -> Look:
    async with AsyncExitStack() as open_readers:
        readers = [await open_readers.enter_async_context(Reader(settings, host)) for host in settings.hosts]
        if chosen.watch:
            await watch(lambda: look(readers), _nodes(settings), sys.stdout)
        return await look(readers)


def _nodes(settings: Settings) -> dict[str, str]:
    return {host.name: host.address for host in settings.hosts}


def _page(seen: Look, settings: Settings, stack: str, when: str) -> str:
    views = [
        view
        if view.addresses
        else replace(
            view, addresses=traffic.service_addresses(view.virtuals, settings.network.service_subnet)
        )
        for view in seen.views
    ]
    nodes = _nodes(settings)
    return cluster_page.page(
        views, nodes, traffic.hosts_of(views, nodes), title=f"What IPVS balances: {stack}", when=when
    )


def _run(chosen: argparse.Namespace) -> int:
    if not (chosen.live or chosen.watch or chosen.html):
        if chosen.json:
            print(_output(chosen.stack), end="")
        else:
            print(text_of(last_proof(chosen.stack), {}), end="")
        return 0
    settings = settings_of(chosen.stack)
    if chosen.live or chosen.watch:
        seen = asyncio.run(_live(settings, chosen))
        when = f"read from the hosts' kernels on {datetime.now():%F at %T}"
    else:
        seen, when = last_proof(chosen.stack), "as the last proof saw it"
    for host, why in seen.failed.items():
        print(f"{host}: not looked at: {why}", file=sys.stderr)
    if chosen.html:
        chosen.html.write_text(_page(seen, settings, chosen.stack, when), encoding="utf-8")
        print(f"written: {chosen.html}")
    elif chosen.json:
        print(json.dumps({view.host: ipvs.rows(view.virtuals) for view in seen.views}, indent=2))
    else:
        print(text_of(replace(seen, failed={}), _nodes(settings)), end="")
    return 1 if seen.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns the exit status, 1 where something can't be shown."""
    parser = argparse.ArgumentParser(prog="python -m tools.show", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stack", required=True, help="the stack's name, such as dev")
    parser.add_argument("--live", action="store_true", help="ask each host's kernel now")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="the same every two seconds, until Ctrl-C")
    form.add_argument("--html", type=Path, metavar="FILE", help="write a page that draws it")
    form.add_argument("--json", action="store_true", help="the structured output itself")
    chosen = parser.parse_args(argv)
    try:
        return _run(chosen)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
