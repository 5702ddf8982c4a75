"""`python -m tools show --stack NAME`, or `make show`: the IPVS virtual servers of each host.

By default those of the verified services are shown as of the last verification, from the stack's outputs,
without contacting the hosts. --live reads all services from each host's kernel now, --watch does so
repeatedly. --html FILE writes a page.
"""

from __future__ import annotations

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

import click

from common import cli
from common.errors import UserError
from model import ipvs, steps, traffic
from model.settings import Settings
from model.traffic import View
from tools import cluster_page, cluster_table
from tools.check import settings_of
from tools.reader import Reader

OUTPUT = "virtualServers"
_NOTE = "These are the services that each run verifies. --live reads all services from the hosts.\n"
_MISSING = "does not have output property"  # Pulumi's error message
# The kernel updates its counters every two seconds.
WATCH_SECONDS = 2.0
# The step reads a few files in /proc. A host that hangs delays the next reading of all hosts by this long.


@dataclass(frozen=True)
class Snapshot:
    """One reading of all hosts.

    Attributes:
        views: The hosts that were read.
        failed: Why the others couldn't be read, by name.
        at: The time of the reading (seconds, monotonic).
    """

    views: tuple[View, ...]
    failed: dict[str, str]
    at: float = 0.0


def last_verification(stack: str) -> Snapshot:
    """The virtual servers as of the stack's last verification.

    Raises:
        UserError: The stack's outputs can't be read, lack the virtual servers, or have an unknown format.
    """
    text = _output(stack)
    try:
        return Snapshot(
            tuple(
                View(host, tuple(ipvs.in_order(ipvs.from_rows(rows))))
                for host, rows in json.loads(text).items()
            ),
            {},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"the output {OUTPUT} of the stack {stack} has an unknown format: {text.strip()[:200]}",
            "run `pulumi up` with this version of the program, which writes it again",
        ) from None


def _output(stack: str) -> str:
    options = ("--stack", stack, "--json", "--show-secrets", "--non-interactive")
    try:
        result = subprocess.run(
            ["pulumi", "stack", "output", OUTPUT, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "pulumi is not on PATH", "use `make show` for the lab; otherwise install the Pulumi CLI"
        ) from None
    if result.returncode == 0:
        return result.stdout
    message = result.stderr.strip()
    if _MISSING in message:
        raise UserError(
            f"the stack {stack} has no output {OUTPUT}: {message}",
            "run `pulumi up`: the verification, its last step, writes the output",
        )
    raise UserError(f"the outputs of the stack {stack} can't be read: {message}")


async def read(readers: Sequence[Reader]) -> Snapshot:
    """Read all hosts now. A host that fails doesn't affect the others."""

    async def one(reader: Reader) -> View | UserError:
        try:
            return traffic.view_of_report(
                reader.host.name, await reader.run(steps.TRAFFIC, {}, steps.TRAFFIC_SECONDS)
            )
        except UserError as error:
            return error
        except ipvs.UnreadableError as error:
            return UserError(str(error))

    results = await asyncio.gather(*(one(reader) for reader in readers))
    return Snapshot(
        tuple(result for result in results if isinstance(result, View)),
        {
            reader.host.name: str(result)
            for reader, result in zip(readers, results, strict=True)
            if isinstance(result, UserError)
        },
        time.monotonic(),
    )


def text_of(
    snapshot: Snapshot, nodes: dict[str, str], since: traffic.Change | None = None, lines: int = 0
) -> str:
    """The table, and a line for each host that couldn't be read.

    Args:
        snapshot: The reading.
        nodes: The known addresses of hosts, by name.
        since: Adds the rates since the previous reading.
        lines: The most lines, or 0 for no limit. Virtual servers without traffic are left out first, then
            the end.
    """
    hosts = traffic.hosts_of(snapshot.views, nodes)
    failed = [f"{_failure(host, why)}\n" for host, why in snapshot.failed.items()]

    def whole(fold: bool) -> str:
        return "\n".join(
            filter(None, [cluster_table.table(snapshot.views, hosts, since, fold=fold), *failed])
        )

    text = whole(fold=False)
    if lines and text.count("\n") > lines:
        text = whole(fold=True)
    if lines and text.count("\n") > lines:
        kept = text.splitlines()[: max(lines - 1, 0)]
        more = text.count("\n") - len(kept)
        text = "\n".join([*kept, f"... {more} more lines don't fit into this window"]) + "\n"
    return text


def _stored(snapshot: Snapshot) -> str:
    """The table of the last verification, and a note if there is more to see."""
    text = text_of(snapshot, {})
    return f"{text}\n{_NOTE}" if any(view.virtuals for view in snapshot.views) else text


def _failure(host: str, why: str) -> str:
    return f"{host}: could not be read: {why}"


async def watch(
    take: Callable[[], Awaitable[Snapshot]],
    nodes: dict[str, str],
    stream: TextIO,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    height: Callable[[], int] = lambda: shutil.get_terminal_size().lines,
) -> None:
    """Read the hosts repeatedly and write each table with the rates since the previous one, until cancelled.

    In a terminal each table replaces the previous one; otherwise they follow each other.
    """
    before: Snapshot | None = None
    counted: dict[traffic.Key, ipvs.Counts] = {}
    terminal = stream.isatty()
    while True:
        snapshot = await take()
        now = traffic.counts_by_key(snapshot.views)
        since = traffic.change(counted, now, snapshot.at - before.at) if before else None
        if terminal:
            text = text_of(snapshot, nodes, since, height() - 2)
            # Drawing over the previous table, then clearing what is left of it, doesn't flicker.
            drawn = text.replace("\n", "\x1b[K\n")
            stream.write(f"\x1b[H{datetime.now():%T}\x1b[K\n{drawn}\x1b[J")
        else:
            stream.write(f"{datetime.now():%T}\n{text_of(snapshot, nodes, since)}\n")
        stream.flush()
        before, counted = snapshot, now
        await pause(WATCH_SECONDS)


async def _live(settings: Settings, *, watching: bool) -> Snapshot:
    async with AsyncExitStack() as open_readers:
        readers = [await open_readers.enter_async_context(Reader(settings, host)) for host in settings.hosts]
        if watching:
            await watch(lambda: read(readers), _nodes(settings), sys.stdout)
        return await read(readers)


def _nodes(settings: Settings) -> dict[str, str]:
    return {host.name: host.address for host in settings.hosts}


def _page(snapshot: Snapshot, settings: Settings, stack: str, when: str) -> str:
    views = [
        view
        if view.addresses
        else replace(
            view, addresses=traffic.service_addresses(view.virtuals, settings.network.service_subnet)
        )
        for view in snapshot.views
    ]
    nodes = _nodes(settings)
    return cluster_page.page(
        views, nodes, traffic.hosts_of(views, nodes), title=f"IPVS virtual servers: {stack}", when=when
    )


@click.command()
@cli.stack_option
@click.option("--live", is_flag=True, help="Read each host's kernel now.")
@click.option("--watch", "watching", is_flag=True, help="Read every two seconds, until Ctrl-C.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML page instead of text."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(stack: str, *, live: bool, watching: bool, html: Path | None, as_json: bool) -> int:
    """Show the IPVS virtual servers of each host."""
    if watching + (html is not None) + as_json > 1:
        raise click.UsageError("--watch, --html and --json can't be combined")
    if not (live or watching or html):
        print(_output(stack) if as_json else _stored(last_verification(stack)), end="")
        return 0
    settings = settings_of(stack)
    if live or watching:
        try:
            snapshot = asyncio.run(_live(settings, watching=watching))
        except KeyboardInterrupt:
            if watching:
                return 0
            raise
        when = f"read from the hosts' kernels on {datetime.now():%F at %T}"
    else:
        snapshot, when = last_verification(stack), "for the verified services, as of the last verification"
    for host, why in snapshot.failed.items():
        print(_failure(host, why), file=sys.stderr)
    if html:
        cli.write_text(html, _page(snapshot, settings, stack, when))
        print(f"wrote {html}")
    elif as_json:
        print(json.dumps({view.host: ipvs.rows(view.virtuals) for view in snapshot.views}, indent=2))
    else:
        print(text_of(replace(snapshot, failed={}), _nodes(settings)), end="")
    return 1 if snapshot.failed else 0
