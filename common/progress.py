"""Progress output: one line at a time, each with the elapsed time.

    [  12.3s] image: installing packages

Lines go to standard error, so standard output has only the command's result. The output is the same in
a terminal and in a log file. `Progress` is thread-safe.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Writes progress lines; `scope` returns a view that prefixes each line with a name."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        """Start the clock.

        Args:
            stream: Where lines go; standard error by default.
            quiet: Write nothing, but still record durations.
        """
        self._stream = stream
        self._quiet = quiet
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._prefix = ""
        self._durations: dict[str, float] = {}

    def scope(self, name: str) -> Progress:
        """A view that shares clock, stream and lock, and prefixes each line with `name: `."""
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
        """Seconds that each finished step took, by its full name, in the order they finished."""
        with self._lock:
            return dict(self._durations)

    def say(self, message: str) -> None:
        """Write a message; each of its lines gets its own prefix."""
        if self._quiet:
            return
        with self._lock:
            stream = self._stream or sys.stderr
            for line in message.splitlines():
                stream.write(f"[{self.elapsed:6.1f}s] {self._prefix}{line}\n")
            stream.flush()

    @contextmanager
    def step(self, name: str, *, every: float = 30.0) -> Iterator[Progress]:
        """Announce a step, write a reminder while it runs, and report how long it took.

        The end of a successful step that takes less than half a second isn't reported.

        Args:
            name: What is being done, such as `image: installing packages`.
            every: Seconds between reminders, which show that a long step is still running.
        """
        started = time.monotonic()
        ended = threading.Event()

        def remind() -> None:
            while not ended.wait(every):
                self.say(f"{name} ... {time.monotonic() - started:.0f}s so far")

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
            took = time.monotonic() - started
            with self._lock:
                self._durations[f"{self._prefix}{name}"] = took
            if outcome != "done in" or took >= 0.5:
                self.say(f"{name}: {outcome} {took:.1f}s")
