"""Order, markers, deadline and failure logs of all tests.

Fast tests run first, then engine tests, the simulated fleet, and lab tests, so that cheap tests fail early.
Tests get their marker from their folder: `engine` in `tests/engine`, `fleet` in `tests/fleet`, `lab` in
`tests/lab`.

`--deadline-minutes N` ends the run after N minutes. It reports the test that was running and tears down all
fixtures. In CI, a run that is killed from outside would leave virtual machines behind and report nothing.

`@pytest.mark.takes(minutes=N)` states how long a test took on the slowest computer so far, including
everything that must run after it. The test is skipped if less time is left before the deadline.
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
ORDER = ("fast", "engine", "fleet", "lab")
# With a status other than pytest's own, pytest wouldn't summarize the failures so far.
INTERRUPTED = pytest.ExitCode.INTERRUPTED
MAX_COLLECTIONS = 3

LogCollector = Callable[[Path], object]
_collectors: pytest.StashKey[dict[str, LogCollector]] = pytest.StashKey()
_collected: pytest.StashKey[list[Path]] = pytest.StashKey()
_current: pytest.StashKey[list[str]] = pytest.StashKey()


def _kind(item: pytest.Item) -> str:
    """The entry of ORDER that a test belongs to."""
    parts = item.path.relative_to(PROJECT / "tests").parts
    return parts[0] if parts[0] in ORDER else "fast"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deadline-minutes",
        type=float,
        default=None,
        metavar="N",
        help="end the run after N minutes, with all fixtures torn down",
    )
    parser.addoption(
        "--deadline-from",
        type=float,
        default=None,
        metavar="EPOCH",
        help="count the minutes from this time (seconds since 1970) instead of pytest's start",
    )


def pytest_configure(config: pytest.Config) -> None:
    _isolate_environment()
    config.stash[_collectors] = {}
    config.stash[_collected] = []
    config.stash[_current] = []

    def where() -> str:
        running = config.stash[_current]
        return f"while running {running[-1]}" if running else "outside of any test"

    def terminated(signum: int, frame: FrameType | None) -> None:
        pytest.exit(f"stopped by {signal.Signals(signum).name} {where()}", INTERRUPTED)

    def too_late(signum: int, frame: FrameType | None) -> None:
        # The stack of every thread shows what a hung run is waiting for.
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        for nodeid in config.stash[_current]:
            _collect(config, nodeid)
        pytest.exit(
            f"out of time: the deadline of {minutes:g} minutes passed {where()}; see the stacks above for"
            " what it was waiting for, or raise --deadline-minutes",
            INTERRUPTED,
        )

    # CI systems and `timeout` end a run with SIGTERM; fixtures must still be able to stop virtual machines.
    signal.signal(signal.SIGTERM, terminated)
    minutes: float | None = config.getoption("--deadline-minutes")
    if minutes is not None:
        started: float | None = config.getoption("--deadline-from")
        elapsed = 0.0 if started is None else time.time() - started
        signal.signal(signal.SIGALRM, too_late)
        # 0 would turn the timer off if the deadline has already passed.
        signal.setitimer(signal.ITIMER_REAL, max(minutes * 60 - elapsed, 0.001))


def _isolate_environment() -> None:
    """Remove settings that would make tests act outside their own folders and servers.

    A Git hook has its repository in the environment, the user's Git configuration may have hooks, and a proxy
    must not be used for the tests' own servers.
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
        # The deadline would interrupt it, and no later test would run; the most important lab test is the
        # last one. Without a deadline, as in `make test`, nothing is skipped.
        pytest.skip(f"needs up to {takes.kwargs['minutes']} minutes, and {left:.0f} minutes are left")


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
    """Run all registered log collectors for a failed test."""
    # Collecting from slow hosts takes long, the first failures are the most useful, and teardown needs time.
    if not config.stash[_collectors] or len(config.stash[_collected]) >= MAX_COLLECTIONS:
        return
    folder = ARTIFACTS / re.sub(r"[^\w.-]+", "_", nodeid.removeprefix("tests/"))
    if folder in config.stash[_collected]:  # its setup or call failed before its teardown
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
    """Progress output that is visible while a test or fixture runs, despite pytest's capturing.

    Otherwise nothing would be printed for minutes while a lab is being built.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    # A copy of the original standard error, for the whole session.
    with capture.global_and_fixture_disabled():
        stream = os.fdopen(os.dup(2), "w")
    with stream:
        stream.write("\n")  # ends the line of dots
        yield Progress(stream)


@pytest.fixture(scope="session", autouse=True)
def _fresh_artifacts() -> None:
    """Remove the logs of earlier runs."""
    shutil.rmtree(ARTIFACTS, ignore_errors=True)


@pytest.fixture(scope="session")
def failure_logs(pytestconfig: pytest.Config) -> dict[str, LogCollector]:
    """A registry of log collectors, which run when a test fails.

    Maps a name to a function that writes logs to a given folder, such as `Lab.collect_logs`. A fixture that
    adds an entry must remove it in its teardown.
    """
    return pytestconfig.stash[_collectors]
