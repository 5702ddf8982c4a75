"""The helpers in common/: files, locks, processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import processes
from common.files import locked, sparse_digest, write_atomic
from common.progress import Progress


def test_sparse_digest_ignores_how_zeros_are_stored(tmp_path: Path) -> None:
    holes, zeros, other = tmp_path / "holes", tmp_path / "zeros", tmp_path / "other"
    with holes.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"x")
        file.truncate(9 << 20)
    zeros.write_bytes(bytes(5 << 20) + b"x" + bytes((4 << 20) - 1))
    other.write_bytes(bytes(5 << 20) + b"y" + bytes((4 << 20) - 1))
    assert sparse_digest(holes) == sparse_digest(zeros) != sparse_digest(other)


def test_failed_write_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old", 0o600)
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \udc80")
    assert path.read_text() == "old"
    assert path.stat().st_mode & 0o777 == 0o600


def test_waiting_for_lock_is_reported(tmp_path: Path) -> None:
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()

    class ReleasesLock(io.StringIO):
        def flush(self) -> None:
            assert holder.stdin is not None
            if not holder.stdin.closed:
                holder.stdin.close()  # the holder exits once the wait has been reported

    output = ReleasesLock()
    with locked(tmp_path / "lock", Progress(output), "lab x"):
        assert "another process is using it" in output.getvalue()
    holder.wait(timeout=10)
    holder.stdout.close()


def test_reused_pid_is_not_mistaken_for_the_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text(str(os.getpid()))
    assert processes.running(pid_file, "kubeadm-ipvs/default/master") is None
    processes.end(pid_file, "kubeadm-ipvs/default/master")  # must not kill this process


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, "mark-of-a-test"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    pid_file = tmp_path / "pid"
    pid_file.write_text(str(child.pid))
    assert processes.running(pid_file, "mark-of-a-test") == child.pid
    processes.end(pid_file, "mark-of-a-test", seconds=0.3)
    assert processes.running(pid_file, "mark-of-a-test") is None
    assert not pid_file.exists()
    child.stdout.close()
