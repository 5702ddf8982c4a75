"""Every command in a page's code blocks is run by a test, or the page gives the reason why not.

A code block without a language holds commands, one per line. Each is run here in a temporary folder or
by the test in RUN_BY, unless `<!-- not run here: reason -->` precedes the block.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from lab import __main__ as lab
from tests.fast.pages import PAGES
from tests.fleet import __main__ as fleet
from tests.stacks import PROJECT
from tools import __main__ as tools

MARK = re.compile(r"<!-- not run here: (.*?) -->")
BLOCK = re.compile(rf"(?:{MARK.pattern}\s*)?^ *```(sh|bash|console|)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LANGUAGES = re.compile(r"^ *```\w+\n.*?^ *```$", re.MULTILINE | re.DOTALL)

CLUSTER, BREAKS = "tests/lab/test_cluster.py", "tests/lab/resilience/cases/failures.py"
MADE = (CLUSTER, "test_make_up_shows_virtual_servers_and_a_response")
# Pattern of a command: the file that runs it, and the test there (for CI's script, its text).
RUN_BY = {
    r"make up": MADE,
    r"make show": MADE,
    r"make show ARGS=(--live|\"--live --html show.html\")": (
        CLUSTER,
        "test_live_page_shows_what_each_kernel_balances",
    ),
    r"make show ARGS=--watch": (
        "tests/fast/test_traffic.py",
        "test_watch_shows_rates_since_the_previous_snapshot",
    ),
    r"make timeline( ARGS=.*)?": (
        "tests/fast/test_timeline.py",
        "test_command_shows_last_run_or_log",
    ),
    r"pulumi up --yes --skip-preview --json > events\.json": ("tests/live_engine.py", "__init__"),
    r"make policy( .*)?": (
        "tests/engine/test_policy.py",
        "test_committed_prod_passes_the_mandatory_rules",
    ),
    r"make test": (".ci/run", "make test"),
    r"make down": (
        "tests/engine/test_down.py",
        "test_state_of_a_stopped_lab_is_removed",
    ),
    r"python -m lab up .*": MADE,
    r"python -m lab status .*": (
        "tests/fast/test_lab_status.py",
        "test_status_of_stopped_lab_is_complete_json",
    ),
    r"(\.venv/bin/)?python -m lab ssh .*": (CLUSTER, "test_ipvs_balances_and_iptables_does_not"),
    r"python -m lab reboot HOST": (CLUSTER, "test_rebooted_worker_recovers_by_itself"),
    r"python -m lab power-off HOST": (BREAKS, "test_hosts_recover_from_reboots_and_power_loss"),
    r"python -m lab requirements .*": (
        "tests/fast/test_lab_requirements.py",
        "test_only_missing_packages_are_installed",
    ),
    r"curl http://127\.0\.0\.1:22380/": (CLUSTER, "test_nginx_answers_on_every_hosts_node_port"),
    r"pulumi (stack init qa|preview --stack qa)": (
        "tests/engine/test_environments.py",
        "test_committed_stack_previews_as_a_new_cluster",
    ),
}
RUN_HERE = r"python -m lab (down|prune .*)"


@dataclass(frozen=True)
class Line:
    """A command on a page."""

    page: str
    text: str
    reason: str  # why no test runs it; empty if one does

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def lines_of(page: str, text: str) -> Iterator[Line]:
    # Remove other blocks first: their closing fence would look like an opening one.
    for reason, _, block in BLOCK.findall(LANGUAGES.sub("", text)):
        for line in block.splitlines():
            command = re.sub(r"(^|\s+)#.*", "", line).strip()
            if command:
                yield Line(page, command, reason)


COMMANDS = [line for page in PAGES for line in lines_of(page.name, page.read_text())]
HERE = [line for line in COMMANDS if not line.reason and re.fullmatch(RUN_HERE, line.text)]


def unknown(lines: list[Line]) -> list[str]:
    patterns = "|".join(f"(?:{pattern})" for pattern in [*RUN_BY, RUN_HERE])
    return [str(line) for line in lines if not line.reason and not re.fullmatch(patterns, line.text)]


def words(line: Line) -> list[str]:
    """A usage line as a command: with its optional words, and the first of each choice."""
    text = re.sub(r"(?<=[a-z])(\|[a-z]+)+", "", line.text.replace("[", "").replace("]", ""))
    return shlex.split(re.sub(r"\b(N|MIB)\b", "2", text))


def test_commands_are_run_or_explained() -> None:
    assert unknown(COMMANDS) == []


def test_unexplained_command_is_found() -> None:
    yaml = "```yaml\na: b\n```\n"
    commands = "```\nmake up # all\nrm -rf x\n```\n"
    page = f"{yaml}\n{commands}\n<!-- not run here: no -->\n{commands.replace('x', 'y')}"
    assert unknown(list(lines_of("page", page))) == ["page: rm -rf x"]


@pytest.mark.parametrize("pattern", RUN_BY)
def test_commands_and_their_tests_exist(pattern: str) -> None:
    file, name = RUN_BY[pattern]
    assert (f"def {name}(" if file.startswith("tests/") else name) in (PROJECT / file).read_text()
    assert any(re.fullmatch(pattern, line.text) for line in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marks_have_reasons_and_precede_commands(page: Path) -> None:
    marks = MARK.findall(page.read_text())
    assert all(marks)
    assert marks == [reason for reason, _, _ in BLOCK.findall(LANGUAGES.sub("", page.read_text())) if reason]


@pytest.mark.parametrize("line", HERE, ids=str)
def test_harmless_command_runs(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    done = subprocess.run([sys.executable, *words(line)[1:]], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in COMMANDS if "python -m " in line.text], ids=str)
def test_command_line_is_valid(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    # A command's options are parsed, but nothing is run.
    monkeypatch.setattr(click.Command, "invoke", lambda command, context: 0)
    _, _, module, *arguments = words(line)
    assert {"lab": lab, "tools": tools, "tests.fleet": fleet}[module].main(arguments) == 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.text.startswith("make ")], ids=str)
def test_make_target_exists(line: Line) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words(line)[1:]], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
