"""Background processes by their pid files: found again, and ended, without mistaking a stranger."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from common.errors import UserError


def running(pid_file: Path, mark: str) -> int | None:
    """The process id in a file, if that process lives and its command line holds `mark`.

    A pid may have been given to another program since, after a reboot for instance.
    """
    try:
        pid = int(pid_file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if mark.encode() in words else None


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for yet doesn't."""
    try:
        # Its name, in parentheses, may hold anything; the state is the word after it. The command line
        # would not do: it is empty for a moment while a program starts, too.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def wait_end(pid: int, seconds: float) -> bool:
    """Wait until a process has ended; False if it hasn't in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            # Our own child stays as a zombie until it is waited for.
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            pass
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def end(pid_file: Path, mark: str, seconds: float = 10.0) -> None:
    """End a process: asked first, then forced. Nothing happens if it doesn't live.

    :raises UserError: it can't be ended.
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
            raise UserError(f"process {pid} ({mark}) can't be ended")
    pid_file.unlink(missing_ok=True)
