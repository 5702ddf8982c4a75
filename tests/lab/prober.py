"""Asks addresses again and again while something is changed, and counts what isn't answered."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PAUSE_SECONDS = 0.5
REQUEST_SECONDS = 15.0


@dataclass
class Count:
    """What became of one address's requests.

    Attributes:
        asked: How many were sent, one connection each.
        lost: What the others got instead of a 200, in their order.
    """

    asked: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For a report."""
        return f"{len(self.lost)} of {self.asked} lost"


@contextmanager
def probing(urls: list[str]) -> Iterator[dict[str, Count]]:
    """Ask each URL, one request at a time, until the block ends."""
    counts = {url: Count() for url in urls}
    ended = threading.Event()
    # The URLs are this machine's own: a proxy could not reach them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(url: str) -> None:
        count = counts[url]
        while not ended.wait(PAUSE_SECONDS):
            count.asked += 1
            try:
                with opener.open(url, timeout=REQUEST_SECONDS) as response:
                    response.read()
            except (OSError, http.client.HTTPException) as error:
                count.lost.append(str(error))

    threads = [threading.Thread(target=ask, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ended.set()
        for thread in threads:
            thread.join()
