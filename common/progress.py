"""Progress on the terminal, or in a log: one line at a time, each with the elapsed time.

    [  12.3s] image: installing packages

Lines go to standard error, so that standard output stays a command's result. Several
threads may write to one `Progress`; nothing depends on a terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Writes the lines; `scope` makes a view of it that puts a name before each line."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        """Start the clock.

        :param stream: where lines go; standard error if none is given.
        :param quiet: write nothing (the durations are kept all the same).
        """
        self._stream = stream
        self._quiet = quiet
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._prefix = ""
        self._durations: dict[str, float] = {}

    def scope(self, name: str) -> Progress:
        """A view that shares clock, stream and lock, and puts `name: ` before each line."""
        view = Progress.__new__(Progress)
        view.__dict__.update(self.__dict__)
        view._prefix = f"{self._prefix}{name}: "
        return view

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def durations(self) -> dict[str, float]:
        """Seconds that each finished step took, by its full name, in the order of their ends."""
        with self._lock:
            return dict(self._durations)

    def say(self, message: str) -> None:
        """Write one line (each line of a longer text for itself)."""
        if self._quiet:
            return
        with self._lock:
            stream = self._stream or sys.stderr
            for line in message.splitlines():
                stream.write(f"[{self.elapsed:6.1f}s] {self._prefix}{line}\n")
            stream.flush()

    @contextmanager
    def step(self, name: str, *, every: float = 30.0) -> Iterator[Progress]:
        """Announce a step, remind of it while it lasts, and say how long it took.

        :param name: what is done, such as `image: installing packages`.
        :param every: seconds between reminders, so that a long step is seen to be alive.

        A step that took less than half a second doesn't write its end. One that fails says
        so, and the exception goes on.
        """
        begun = time.monotonic()
        ended = threading.Event()

        def remind() -> None:
            while not ended.wait(every):
                self.say(f"{name} ... {time.monotonic() - begun:.0f}s so far")

        self.say(name)
        reminder = threading.Thread(target=remind, daemon=True)
        reminder.start()
        outcome = "failed after"
        try:
            yield self
            outcome = "done in"
        finally:
            ended.set()
            reminder.join()
            took = time.monotonic() - begun
            with self._lock:
                self._durations[f"{self._prefix}{name}"] = took
            if outcome != "done in" or took >= 0.5:
                self.say(f"{name}: {outcome} {took:.1f}s")
