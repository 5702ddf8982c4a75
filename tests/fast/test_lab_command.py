"""A lab test's command that is left in the middle, as by a signal to pytest, doesn't go on by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common import processes
from common.progress import Progress
from tests.lab import cluster

# The child and one of its own, as `tools.up` and its `pulumi`. Both say their ids, then the child is ready.
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


class Left(BaseException):
    """As pytest.exit raises in a signal's handler: no Exception."""


class Leaving(Progress):
    """Progress in whose midst the test is left."""

    def say(self, message: str) -> None:
        self.said = message
        raise Left


@pytest.mark.parametrize(("kind", "seconds"), [("obeys", 30.0), ("stays", 0.5)])
def test_a_command_that_is_left_takes_what_it_has_started_with_it(
    tmp_path: Path, kind: str, seconds: float
) -> None:
    program = tmp_path / "children.py"
    program.write_text(CHILDREN)
    progress = Leaving(quiet=True)

    with pytest.raises(Left):
        cluster.said_by(progress, [sys.executable, str(program), str(tmp_path), kind], seconds)

    ids = [int(word) for word in progress.said.split()]
    assert len(ids) == 2
    for pid in ids:
        assert (tmp_path / f"{pid}.interrupted").exists(), "it was asked first"
        assert processes.wait_end(pid, 10)


def test_a_command_that_ends_well_is_heard_and_one_that_fails_is_told() -> None:
    argv = [sys.executable, "-c", "import sys; print('said'); sys.exit(len(sys.argv) - 1)"]
    assert cluster.said_by(Progress(quiet=True), argv) == "said\n"
    with pytest.raises(AssertionError, match="said"):
        cluster.said_by(Progress(quiet=True), [*argv, "fail"])
