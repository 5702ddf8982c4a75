"""Commands that lab tests run: their output, failures, and interruptions of pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common import processes
from common.progress import Progress
from tests.lab import cluster

# A child with its own child, like `tools up` and its `pulumi`. The child prints both pids when it is ready.
CHILDREN = """
import os, pathlib, signal, subprocess, sys, time
folder, obeys = pathlib.Path(sys.argv[1]), sys.argv[2] == "obeys"

def interrupted(*_):
    (folder / f"{os.getpid()}.interrupted").touch()
    if obeys:
        print("x" * 200_000, flush=True)  # more than a pipe holds
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupted)
if len(sys.argv) == 3:
    inner = subprocess.Popen([sys.executable, *sys.argv[:3], "inner"], stdout=subprocess.PIPE, text=True)
    print(os.getpid(), inner.stdout.readline().strip(), flush=True)
    while inner.poll() is None:
        try:
            inner.wait()
        except KeyboardInterrupt:
            inner.communicate()
            raise
else:
    print(os.getpid(), flush=True)
    while True:
        time.sleep(60)
"""


class Interrupted(BaseException):
    """Not an `Exception`, just like the one that pytest.exit raises in a signal handler."""


class InterruptingProgress(Progress):
    """Interrupts the test at the first line of output."""

    def say(self, message: str) -> None:
        self.message = message
        raise Interrupted


@pytest.mark.parametrize(("kind", "seconds"), [("obeys", 30.0), ("ignores", 0.5)])
def test_interrupted_command_stops_its_children(tmp_path: Path, kind: str, seconds: float) -> None:
    program = tmp_path / "children.py"
    program.write_text(CHILDREN)
    progress = InterruptingProgress(quiet=True)

    with pytest.raises(Interrupted):
        cluster.run_program(progress, [sys.executable, str(program), str(tmp_path), kind], seconds)

    ids = [int(word) for word in progress.message.split()]
    assert len(ids) == 2
    for pid in ids:
        assert (tmp_path / f"{pid}.interrupted").exists(), "SIGINT comes first"
        assert processes.wait_end(pid, 10)


def test_command_output_is_returned_or_shown_on_failure() -> None:
    argv = [sys.executable, "-c", "import sys; print('output'); sys.exit(len(sys.argv) - 1)"]
    assert cluster.run_program(Progress(quiet=True), argv) == "output\n"
    with pytest.raises(AssertionError, match="output"):
        cluster.run_program(Progress(quiet=True), [*argv, "fail"])
