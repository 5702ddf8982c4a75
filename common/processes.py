"""Background processes tracked by pid files: find and stop them without hitting a reused pid."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from common.errors import UserError


def running(pid_file: Path, mark: str) -> int | None:
    """The pid in a file, if that process is running and its command line has the word `mark`.

    Without the mark, any process that has been given the same pid since, such as after a reboot, would match.
    """
    try:
        pid = int(pid_file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if mark.encode() in words else None


def alive(pid: int) -> bool:
    """Whether a process is running; a zombie isn't."""
    try:
        # The state follows the process name, which is in parentheses and may contain anything. The
        # command line can't be used instead: it is empty for a moment while a program starts.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def wait_end(pid: int, seconds: float) -> bool:
    """Wait for a process to exit; False if it is still running after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            # Reap our own child; otherwise it stays a zombie.
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            pass
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def end(pid_file: Path, mark: str, seconds: float = 10.0) -> None:
    """Stop a process with SIGTERM, then SIGKILL; do nothing if it isn't running.

    Args:
        pid_file: Removed afterwards.
        mark: A word of the process's command line (see `running`).
        seconds: How long to wait after each signal.

    Raises:
        UserError: The process is still running after both signals.
    """
    pid = running(pid_file, mark)
    if pid is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            if wait_end(pid, seconds):
                break
        else:
            raise UserError(f"can't stop process {pid} ({mark})")
    pid_file.unlink(missing_ok=True)
