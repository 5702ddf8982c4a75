"""Measures the processes of an engine run: CPU time, peak memory, and bytes written to disk.

The kernel's accounting for a parent (`os.wait4`) adds everything up, but the program's and the engine's own
shares are what matters here. So /proc is read while the run lasts. A process loses at most the CPU time of
its last reading interval.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

ENGINE, PROGRAM, PLUGINS, OTHER = "engine", "program", "plugins", "other"
API_SERVER, HOSTS = "api server", "hosts"
ROLES = (ENGINE, PROGRAM, PLUGINS, OTHER, API_SERVER, HOSTS)
"""`OTHER` is the rest of the engine's descendants, such as the language host. `HOSTS` is this process, which
simulates the hosts, and `API_SERVER` everything else that it started."""

_PROC = Path("/proc")
_READ_SECONDS = 0.1
_READINGS_PER_SEARCH = 3  # finding new processes takes longer than reading the known ones
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one or several processes used.

    Attributes:
        cpu_seconds: User and system time.
        peak_bytes: The largest resident set of a process.
        written_bytes: Bytes that they sent to the disk.
    """

    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.written_bytes + other.written_bytes,
        )


@dataclass
class Measured:
    """The usage of a run; complete after the block of `measured`.

    Attributes:
        by_role: What the processes of a role used. The peaks of `API_SERVER` and `HOSTS` aren't measured.
        seconds: The duration.
        other_load: The share of this computer's cores that all other processes used meanwhile, from 0 to 1.
    """

    by_role: dict[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    other_load: float = 0.0

    def of(self, role: str) -> Usage:
        """A role's usage, or none if there was no such process."""
        return self.by_role.get(role, Usage())


_Seen = dict[tuple[int, int], tuple[str, Usage]]
"""The role and usage of each process, by its ID and start."""


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure this process, every `pulumi` that it starts within the block, and all their descendants."""
    found = Measured()
    before: _Seen = {}
    seen: _Seen = {}
    ended = threading.Event()

    def watch() -> None:
        known: list[tuple[int, bool]] = []
        turn = 0
        while True:
            if turn % _READINGS_PER_SEARCH == 0:
                known = _descendants(os.getpid())
            _read_all(known, seen)
            turn += 1
            if ended.wait(_READ_SECONDS):
                return

    _read_all(_descendants(os.getpid()), before)
    began, own, busy = time.monotonic(), time.process_time(), _busy_seconds()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        _read_all(_descendants(os.getpid()), seen)
        found.seconds = time.monotonic() - began
        for process, (role, usage) in seen.items():
            _, earlier = before.get(process, (role, Usage()))
            spent = usage.cpu_seconds - earlier.cpu_seconds
            peak = 0 if role == API_SERVER else usage.peak_bytes
            written = usage.written_bytes - earlier.written_bytes
            found.by_role[role] = found.of(role) + Usage(spent, peak, written)
        found.by_role[HOSTS] = Usage(time.process_time() - own)
        ours = sum(usage.cpu_seconds for usage in found.by_role.values())
        spare = found.seconds * (os.cpu_count() or 1)
        found.other_load = max(0.0, (_busy_seconds() - busy - ours) / spare)


def role_of(argv: Sequence[str]) -> str:
    """The role of a process below `pulumi`, from its command line."""
    names = [Path(word).name for word in argv]
    if any(name == "pulumi-language-python-exec" for name in names):
        return PROGRAM
    if any(name.startswith(("pulumi-resource-", "standins.")) for name in names):
        return PLUGINS
    return ENGINE if names[:1] == ["pulumi"] else OTHER


def parse_stat(text: str) -> tuple[str, int, int, float]:
    """Parse `/proc/PID/stat`.

    Returns:
        The process's name, its parent's ID, its start in clock ticks since boot, its CPU time in seconds.
    """
    # The name is in parentheses and may contain any character.
    name, _, rest = text.partition("(")[2].rpartition(") ")
    fields = rest.split()
    return name, int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def parse_lines(text: str) -> Mapping[str, int]:
    """The numbers in lines such as `VmHWM:  1234 kB`, by name. Other lines are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            found[name] = int(number[0])
    return found


def _busy_seconds() -> float:
    """The CPU time of all processes since boot."""
    # cpu user nice system idle iowait irq softirq steal ...
    fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / TICKS_PER_SECOND


def _descendants(root: int) -> list[tuple[int, bool]]:
    """All processes below a process, and whether each belongs to an engine."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended
                name, parent, _, _ = parse_stat((folder / "stat").read_text())
                children.setdefault(parent, []).append((int(folder.name), name))
    found = [(pid, name == "pulumi") for pid, name in children.get(root, [])]
    for pid, engine in found:
        found += [(child, engine) for child, _ in children.get(pid, [])]
    return found


def _read_all(known: Sequence[tuple[int, bool]], seen: _Seen) -> None:
    for pid, engine in known:
        folder = _PROC / str(pid)
        with suppress(OSError):  # it has ended
            _, _, began, cpu = parse_stat((folder / "stat").read_text())
            status = parse_lines((folder / "status").read_text())
            if "VmHWM" in status:
                # The role is read each time, because a new process becomes another program.
                argv = (folder / "cmdline").read_text().split("\0")[:-1]
                written = parse_lines((folder / "io").read_text())["write_bytes"]
                usage = Usage(cpu, status["VmHWM"] << 10, written)
                seen[pid, began] = (role_of(argv) if engine else API_SERVER, usage)
            elif (pid, began) in seen:
                # It has ended, and nobody has waited for it yet: only its CPU time is left.
                role, usage = seen[pid, began]
                seen[pid, began] = (role, replace(usage, cpu_seconds=cpu))
