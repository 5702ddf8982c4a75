"""Asks addresses again and again while something is changed, and counts what isn't answered."""

from __future__ import annotations

import http.client
import shlex
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.errors import UserError
from tests.lab.cluster import ASK, Cluster

PAUSE_SECONDS = 1.0
REQUEST_SECONDS = 15.0
# Of the requests while kube-proxy changes; on emulated hosts one in seventy was. Where an address doesn't
# answer in a mode at all, or until the change of every host is over, it is more.
LOST_AT_MOST = 0.2


@dataclass
class Count:
    """What became of the requests to one address.

    Attributes:
        asked: How many were sent, one connection each.
        lost: What the others got instead of a 200, in their order.
    """

    asked: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For a report."""
        return f"{len(self.lost)} of {self.asked} lost"


Ask = Callable[[], object]


def from_outside(urls: Iterable[str]) -> dict[str, Ask]:
    """A request to each URL, over a connection of its own."""
    # The URLs are this machine's own: a proxy could not reach them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def asker(url: str) -> Ask:
        def ask() -> None:
            with opener.open(url, timeout=REQUEST_SECONDS) as response:
                response.read()

        return ask

    return {url: asker(url) for url in urls}


@contextmanager
def from_a_host(cluster: Cluster, host: str, address: str) -> Iterator[dict[str, Ask]]:
    """A request from a host to port 80 of an address of the cluster.

    All of them over one SSH connection: a login for each costs an emulated host more than the request.
    """
    requests = (
        'while read -r; do if said=$(timeout "$2" bash -ec "$0" "$1" 80 2>&1); then echo 200; '
        'else echo "status $?:" $said; fi; done'
    )
    line = shlex.join(["bash", "-c", requests, ASK, address, f"{REQUEST_SECONDS:.0f}"])
    process: subprocess.Popen[str] | None = None

    def ask() -> None:
        nonlocal process
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                [*cluster.lab.ssh_command(host, tty=False), line],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("\n")
            said = process.stdout.readline().strip()
        except BrokenPipeError:
            said = ""
        if not said:
            process.kill()
            process.wait()
            raise UserError(f"the connection to {host} was lost")
        if said != "200":
            raise OSError(said)

    try:
        yield {f"{address}, asked by {host}": ask}
    finally:
        if process is not None:
            process.kill()
            process.communicate()


@contextmanager
def probing(asks: dict[str, Ask]) -> Iterator[dict[str, Count]]:
    """Ask each, one request at a time, until the block ends."""
    counts = {name: Count() for name in asks}
    ended = threading.Event()

    def again(name: str) -> None:
        count = counts[name]
        while not ended.wait(PAUSE_SECONDS):
            try:
                asks[name]()
            except UserError:  # no way to the host that asks: nothing was asked
                continue
            except (OSError, http.client.HTTPException) as error:
                count.lost.append(str(error))
            count.asked += 1

    threads = [threading.Thread(target=again, args=(name,)) for name in asks]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ended.set()
        for thread in threads:
            thread.join()
