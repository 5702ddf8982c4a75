"""tests/conftest.py, tested with a small suite."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A project with one passing test of each kind."""
    for kind in ("lab", "fleet", "engine", "fast"):
        folder = tmp_path / "tests" / kind
        folder.mkdir(parents=True)
        (folder / f"test_{kind}.py").write_text(f"def test_{kind}():\n    pass\n")
    shutil.copy(CONFTEST, tmp_path / "tests")
    shutil.copy(CONFTEST.parents[1] / "pyproject.toml", tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]


def environment() -> dict[str, str]:
    # The conftest imports the project's own modules.
    return {**os.environ, "PYTHONPATH": str(CONFTEST.parents[1]), "PYTHONUNBUFFERED": "1"}


def run(suite: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=suite,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def hang(suite: Path, before: str = "") -> Path:
    """Add a lab test that never ends.

    Args:
        suite: The suite's folder.
        before: A line that the test runs first.

    Returns:
        A file that the test's fixture creates in its teardown.
    """
    (suite / "tests/lab/test_hang.py").write_text(
        "import pathlib, threading, pytest\n"
        "@pytest.fixture(scope='session')\n"
        "def host(failure_logs):\n"
        "    failure_logs['host'] = lambda folder: (folder / 'console.log').touch()\n"
        "    yield\n"
        "    pathlib.Path('torn-down').touch()\n"
        "def test_hangs(host):\n"
        f"{before}"
        "    print('waiting', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    return suite / "torn-down"


def test_fast_tests_run_first_and_lab_tests_last(suite: Path) -> None:
    done = run(suite, "--collect-only", "--quiet")
    names = [line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert names == ["test_fast", "test_engine", "test_fleet", "test_lab"], done.stdout


@pytest.mark.parametrize("kind", ["engine", "fleet", "lab"])
def test_folder_determines_marker(suite: Path, kind: str) -> None:
    done = run(suite, "--collect-only", "--quiet", "-m", kind)
    assert f"::test_{kind}" in done.stdout
    assert "1/4 tests collected" in done.stdout


def test_lab_tests_run_by_default(suite: Path) -> None:
    assert "4 passed" in run(suite).stdout.splitlines()[-1]


def test_deadline_reports_hanging_test_and_tears_down_fixtures(suite: Path) -> None:
    # The test raises the alarm itself: on a busy computer, a short timer might fire before the test starts.
    torn_down = hang(suite, "    import signal; signal.raise_signal(signal.SIGALRM)\n")
    (suite / "tests/fast/test_bad.py").write_text("def test_bad():\n    assert 'apples' == 'pears'\n")
    done = run(suite, "--deadline-minutes=50")
    assert done.returncode == 2
    hit = "out of time: the deadline of 50 minutes passed while running tests/lab/test_hang.py::test_hangs"
    assert hit in done.stdout
    assert "most recent call first" in done.stderr, "the stacks are shown"
    assert "'apples' == 'pears'" in done.stdout, "earlier failures are still summarized"
    assert "logs of the failure: .artifacts/lab_test_hang.py_test_hangs/" in done.stdout
    assert torn_down.exists()


@pytest.mark.parametrize(("started_ago", "low", "high"), [(None, 2900, 3000), (600, 2300, 2400)])
def test_deadline_counts_from_start_or_given_time(
    suite: Path, started_ago: int | None, low: int, high: int
) -> None:
    (suite / "tests/fast/test_alarm.py").write_text(
        "import signal\n"
        "def test_alarm():\n"
        f"    assert {low} < signal.getitimer(signal.ITIMER_REAL)[0] <= {high}\n"
    )
    start = [] if started_ago is None else [f"--deadline-from={time.time() - started_ago}"]
    assert run(suite, "--deadline-minutes=50", *start, "tests/fast/test_alarm.py").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [(["--deadline-minutes=50"], "1 passed"), (["--deadline-minutes=20"], "1 skipped"), ([], "1 passed")],
)
def test_test_without_enough_time_left_is_skipped(suite: Path, arguments: list[str], outcome: str) -> None:
    (suite / "tests/fast/test_long.py").write_text(
        "import pytest\n@pytest.mark.takes(minutes=25)\ndef test_long():\n    pass\n"
    )
    done = run(suite, *arguments, "tests/fast/test_long.py")
    assert outcome in done.stdout.splitlines()[-1]
    assert ("needs up to 25 minutes, and" in done.stdout) == (outcome == "1 skipped")


def test_terminated_run_tears_down_fixtures(suite: Path) -> None:
    torn_down = hang(suite)
    process = subprocess.Popen(
        command("-s", "tests/lab/test_hang.py"),
        cwd=suite,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "waiting" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "stopped by SIGTERM while running tests/lab/test_hang.py::test_hangs" in rest
    assert torn_down.exists()


def test_summary_names_folder_of_failure_logs(suite: Path) -> None:
    (suite / ".artifacts").mkdir()
    (suite / ".artifacts/old").touch()
    (suite / "tests/lab/test_broken.py").write_text(
        "import pytest\n"
        "@pytest.fixture(scope='session')\n"
        "def hosts(failure_logs):\n"
        "    failure_logs['bad'] = lambda folder: 1 / 0\n"
        "    failure_logs['good'] = lambda folder: (folder / 'node1.log').write_text('why')\n"
        "    yield\n"
        "@pytest.mark.parametrize('number', range(5))\n"
        "def test_breaks(hosts, number):\n"
        "    assert False\n"
    )
    done = run(suite)
    folder = suite / ".artifacts/lab_test_broken.py_test_breaks_0_"
    assert "logs of the failure: .artifacts/lab_test_broken.py_test_breaks_0_/" in done.stdout
    assert (folder / "node1.log").read_text() == "why"
    assert "ZeroDivisionError" in (folder / "bad.not-collected.txt").read_text()
    assert len(list((suite / ".artifacts").iterdir())) == 3, "only the first failures, and no old logs"
    assert "5 failed" in done.stdout.splitlines()[-1]


def test_progress_is_visible_despite_capturing(suite: Path) -> None:
    (suite / "tests/lab/test_lab.py").write_text(
        "def test_lab(progress):\n    print('captured')\n    progress.say('booting')\n"
    )
    done = run(suite)
    assert "s] booting" in done.stderr
    assert "captured" not in done.stdout + done.stderr
