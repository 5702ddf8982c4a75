"""Sends requests to addresses during a change and counts the lost ones."""

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
from tests.lab.cluster import HTTP_REQUEST, Cluster

PAUSE_SECONDS = 1.0
REQUEST_SECONDS = 15.0
# The tolerated share of lost requests while kube-proxy changes; on emulated hosts it was one in seventy. An
# address that doesn't answer in a mode, or only after every host has changed, exceeds it.
LOST_AT_MOST = 0.2
# A DNS query in the form of `HTTP_REQUEST`: `bash -ec DNS_REQUEST ADDRESS PORT`. The response must have the
# query's ID, the bit for responses, and no error. No byte of the query is a newline, where printf could split
# the datagram.
DNS_HEAD = r"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
DNS_NAME = r"\x08kube-dns\x0bkube-system\x03svc\x07cluster\x05local\x00"
DNS_REQUEST = (
    rf"exec 3<>/dev/udp/$0/$1; printf '{DNS_HEAD}{DNS_NAME}\x00\x01\x00\x01' >&3; "
    "dd bs=512 count=1 status=none <&3 | od -An -tx1 -N4 | grep -qE '^ 12 34 8. .0'"
)


@dataclass
class Count:
    """The outcome of the requests to one address.

    Attributes:
        sent: The number of requests, each over its own connection.
        lost: For each request without a status 200, the reason.
    """

    sent: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Format for a report."""
        return f"{len(self.lost)} of {self.sent} lost"


Request = Callable[[], object]


def external_requests(urls: Iterable[str]) -> dict[str, Request]:
    """A request to each URL, over its own connection."""
    # The URLs are on 127.0.0.1, out of a proxy's reach.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request_to(url: str) -> Request:
        def request() -> None:
            with opener.open(url, timeout=REQUEST_SECONDS) as response:
                response.read()

        return request

    return {url: request_to(url) for url in urls}


@contextmanager
def host_requests(
    cluster: Cluster, host: str, address: str, port: int = 80, command: str = HTTP_REQUEST
) -> Iterator[dict[str, Request]]:
    """A request from a host to a cluster address.

    All requests share one SSH connection, because on an emulated host a login costs more than the request.

    Args:
        cluster: The cluster.
        host: The host that sends the requests.
        address: The address of a Service.
        port: Its port.
        command: What bash runs for a request: `HTTP_REQUEST` or `DNS_REQUEST`.
    """
    script = (
        'while read -r; do if error=$(timeout "$3" bash -ec "$0" "$1" "$2" 2>&1); then echo 200; '
        'else echo "status $?:" $error; fi; done'
    )
    line = shlex.join(["bash", "-c", script, command, address, str(port), f"{REQUEST_SECONDS:.0f}"])
    process: subprocess.Popen[str] | None = None

    def request() -> None:
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
            reply = process.stdout.readline().strip()
        except BrokenPipeError:
            reply = ""
        if not reply:
            process.kill()
            process.wait()
            raise UserError(f"the connection to {host} was lost")
        if reply != "200":
            raise OSError(reply)

    try:
        yield {f"{address} from {host}": request}
    finally:
        if process is not None:
            process.kill()
            process.communicate()


@contextmanager
def probing(requests: dict[str, Request], pause: float = PAUSE_SECONDS) -> Iterator[dict[str, Count]]:
    """Send each request repeatedly, one at a time and with a pause in seconds, until the block ends."""
    counts = {name: Count() for name in requests}
    ended = threading.Event()

    def probe(name: str) -> None:
        count = counts[name]
        while not ended.wait(pause):
            try:
                requests[name]()
            except UserError:  # no connection to the requesting host: nothing was sent
                continue
            except (OSError, http.client.HTTPException) as error:
                count.lost.append(str(error))
            count.sent += 1

    threads = [threading.Thread(target=probe, args=(name,)) for name in requests]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ended.set()
        for thread in threads:
            thread.join()
