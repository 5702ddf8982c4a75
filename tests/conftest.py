"""Order, markers, deadline and failure logs of all the tests.

Fast tests run first, then those with the engine, then those in the lab: a mistake that a
second can show is not found after half an hour. The folder decides the marker, so that no
test is forgotten: `tests/engine` is `engine`, `tests/lab` is `lab`.

`--deadline-minutes N` ends the whole run after N minutes with a message that names the
test it was in, and with every fixture torn down, which is what CI needs: a run killed from
outside leaves machines behind and says nothing.

`@pytest.mark.takes(minutes=N)`: what a test, with whatever must still come after it, took on the
slowest machine so far. Where less is left before the deadline it is skipped, and says so.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

from common.progress import Progress

PROJECT = Path(__file__).resolve().parent.parent
ARTIFACTS = PROJECT / ".artifacts"
ORDER = ("fast", "engine", "lab")
# With any status that isn't pytest's own, the failures so far would not be summed up.
INTERRUPTED = pytest.ExitCode.INTERRUPTED
MOST_COLLECTIONS = 3

LogCollector = Callable[[Path], object]
_collectors: pytest.StashKey[dict[str, LogCollector]] = pytest.StashKey()
_collected: pytest.StashKey[list[Path]] = pytest.StashKey()
_current: pytest.StashKey[list[str]] = pytest.StashKey()


def _kind(item: pytest.Item) -> str:
    """Which of ORDER a test belongs to."""
    parts = item.path.relative_to(PROJECT / "tests").parts
    return parts[0] if parts[0] in ORDER else "fast"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deadline-minutes",
        type=float,
        default=None,
        metavar="N",
        help="end the whole run, with fixtures torn down, after N minutes",
    )
    parser.addoption(
        "--deadline-from",
        type=float,
        default=None,
        metavar="EPOCH",
        help="count the deadline's minutes from that time (seconds since 1970), not from pytest's start",
    )


def pytest_configure(config: pytest.Config) -> None:
    _only_our_own_surroundings()
    config.stash[_collectors] = {}
    config.stash[_collected] = []
    config.stash[_current] = []

    def where() -> str:
        running = config.stash[_current]
        return f"while running {running[-1]}" if running else "outside of any test"

    def terminated(signum: int, frame: FrameType | None) -> None:
        pytest.exit(f"stopped by {signal.Signals(signum).name} {where()}", INTERRUPTED)

    def too_late(signum: int, frame: FrameType | None) -> None:
        # What every thread waits for: the one thing that a hung run can still tell.
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        for nodeid in config.stash[_current]:
            _collect(config, nodeid)
        pytest.exit(
            f"out of time: {minutes:g} minutes are over {where()}; raise --deadline-minutes, or see above"
            " what it was waiting for",
            INTERRUPTED,
        )

    # CI systems and `timeout` end a run by SIGTERM: fixtures must get their chance to stop machines.
    signal.signal(signal.SIGTERM, terminated)
    minutes: float | None = config.getoption("--deadline-minutes")
    if minutes is not None:
        begun: float | None = config.getoption("--deadline-from")
        gone = 0.0 if begun is None else time.time() - begun
        signal.signal(signal.SIGALRM, too_late)
        # At once, if it is over already: zero would be no deadline.
        signal.setitimer(signal.ITIMER_REAL, max(minutes * 60 - gone, 0.001))


def _only_our_own_surroundings() -> None:
    """Take away what would make the tests act elsewhere than in their folders and on this machine.

    A hook of git's may have its repository in the environment, a person's own settings name hooks, and a
    proxy isn't for servers of the tests' own.
    """
    local = subprocess.run(
        ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True
    )
    for name in local.stdout.split():
        os.environ.pop(name, None)
    os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def _minutes_left() -> float:
    seconds, _ = signal.getitimer(signal.ITIMER_REAL)
    return seconds / 60 if seconds else float("inf")


def pytest_runtest_setup(item: pytest.Item) -> None:
    takes = item.get_closest_marker("takes")
    if takes is None:
        return
    left = _minutes_left()
    if left < takes.kwargs["minutes"]:
        # Begun, it would be cut off by the deadline, and with it all that comes after: what matters most
        # in the lab comes last. Without a deadline, as in `make test` by hand, nothing is skipped.
        pytest.skip(f"{left:.0f} minutes are left, and a slow machine takes {takes.kwargs['minutes']}")


def pytest_unconfigure() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _kind(item) != "fast":
            item.add_marker(_kind(item))
    items.sort(key=lambda item: ORDER.index(_kind(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[_current].append(item.nodeid)
    try:
        return (yield)
    finally:
        item.config.stash[_current].clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        _collect(item.config, item.nodeid)
    return report


def _collect(config: pytest.Config, nodeid: str) -> None:
    """Let each registered collector write what it knows about a failure."""
    # Slow hosts answer slowly: the first failures tell most, and time is needed to tear down.
    if not config.stash[_collectors] or len(config.stash[_collected]) >= MOST_COLLECTIONS:
        return
    folder = ARTIFACTS / re.sub(r"[^\w.-]+", "_", nodeid.removeprefix("tests/"))
    if folder in config.stash[_collected]:  # its setup or call failed before its teardown did
        return
    folder.mkdir(parents=True, exist_ok=True)
    config.stash[_collected].append(folder)
    for name, collect in list(config.stash[_collectors].items()):
        try:
            collect(folder)
        except Exception as error:
            (folder / f"{name}.not-collected.txt").write_text(f"{type(error).__name__}: {error}\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for folder in config.stash[_collected]:
        terminalreporter.write_line(f"logs of the failure: {folder.relative_to(PROJECT)}/")


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Iterator[Progress]:
    """Progress that is seen while a test or fixture runs, not only when it has failed.

    A lab that is being built says nothing for minutes otherwise.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    # A copy of standard error as it was before pytest took it, for as long as the session lasts.
    with capture.global_and_fixture_disabled():
        stream = os.fdopen(os.dup(2), "w")
    with stream:
        stream.write("\n")  # ends the line of dots
        yield Progress(stream)


@pytest.fixture(scope="session", autouse=True)
def _fresh_artifacts() -> None:
    """Yesterday's logs must not be taken for today's."""
    shutil.rmtree(ARTIFACTS, ignore_errors=True)


@pytest.fixture(scope="session")
def failure_logs(pytestconfig: pytest.Config) -> dict[str, LogCollector]:
    """Where a fixture registers who collects logs when a test fails.

    Name to a function of the folder to write into, such as `Lab.collect_logs`. Whoever
    registers takes its entry out again in its teardown.
    """
    return pytestconfig.stash[_collectors]
