"""Every command in a block of the pages is run by a test, or says why not.

A block without a language holds commands, one on a line (others are `text`, `yaml` and so on). Each line is
run here in a throwaway place, or by the test that RUN_BY names; or `<!-- not run here: reason -->` stands
before the block.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.__main__ import _parser as lab_parser
from tests.stacks import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- not run here: (.*?) -->")
BLOCK = re.compile(rf"(?:{MARK.pattern}\s*)?^ *```(sh|bash|console|)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LANGUAGES = re.compile(r"^ *```\w+\n.*?^ *```$", re.MULTILINE | re.DOTALL)

CLUSTER, TORTURE = "tests/lab/test_cluster.py", "tests/lab/resilience/breaks.py"
MADE = (CLUSTER, "test_make_up_ends_with_each_hosts_virtual_servers_and_an_answer")
# A line's pattern, the file that runs it, and the test there (of CI's script, the words).
RUN_BY = {
    r"make up": MADE,
    r"make show": MADE,
    r"make show ARGS=(--live|\"--live --html show.html\")": (
        CLUSTER,
        "test_a_live_look_draws_what_each_kernel_balances",
    ),
    r"make show ARGS=--watch": (
        "tests/fast/test_traffic.py",
        "test_a_watch_refreshes_with_what_was_counted_since_the_last_look",
    ),
    r"make timeline( ARGS=.*)?": (
        "tests/fast/test_timeline.py",
        "test_the_command_shows_the_last_run_or_a_given_log",
    ),
    r"pulumi up --yes --skip-preview --json > events\.json": ("tests/live_engine.py", "__init__"),
    r"make policy( .*)?": (
        "tests/engine/test_policy.py",
        "test_the_committed_production_keeps_the_mandatory_rules_and_is_warned_of_its_one_control_plane",
    ),
    r"make test": (".ci/run", "make test"),
    r"make down": (
        "tests/engine/test_down.py",
        "test_a_lab_that_does_not_run_takes_its_stacks_state_with_it",
    ),
    r"python -m lab up .*": MADE,
    r"python -m lab status .*": (
        "tests/fast/test_lab_machine.py",
        "test_the_status_of_a_lab_whose_hosts_do_not_run_is_complete_json",
    ),
    r"(\.venv/bin/)?python -m lab ssh .*": (CLUSTER, "test_the_kernel_balances_and_iptables_does_not"),
    r"python -m lab reboot HOST": (CLUSTER, "test_a_rebooted_worker_comes_back_by_itself"),
    r"python -m lab power-off HOST": (TORTURE, "test_hosts_are_rebooted_one_by_one_and_all_at_once"),
    r"python -m lab requirements .*": (
        "tests/fast/test_lab_requirements.py",
        "test_installing_asks_apt_for_exactly_what_is_missing",
    ),
    r"curl http://127\.0\.0\.1:22380/": (CLUSTER, "test_nginx_answers_from_outside_by_every_hosts_node_port"),
    r"pulumi (stack init qa|preview --stack qa)": (
        "tests/engine/test_environments.py",
        "test_a_committed_stack_is_previewed_as_a_new_cluster_with_its_own_and_the_shared_settings",
    ),
}
RUN_HERE = r"python -m lab (down|prune .*)"


@dataclass(frozen=True)
class Line:
    """A command of a page."""

    page: str
    text: str
    reason: str  # why it is not run; empty where it is

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def lines_of(page: str, text: str) -> Iterator[Line]:
    # Blocks of other languages first: their end would be taken for a beginning.
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
    """A usage line as somebody would type it: all that may be left out, the first of each choice."""
    text = re.sub(r"(?<=[a-z])(\|[a-z]+)+", "", line.text.replace("[", "").replace("]", ""))
    return shlex.split(re.sub(r"\b(N|MIB)\b", "2", text))


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    assert unknown(COMMANDS) == []


def test_a_command_that_nobody_runs_is_found_and_a_marked_one_is_not() -> None:
    yaml = "```yaml\na: b\n```\n"
    commands = "```\nmake up # all\nrm -rf x\n```\n"
    page = f"{yaml}\n{commands}\n<!-- not run here: no -->\n{commands.replace('x', 'y')}"
    assert unknown(list(lines_of("page", page))) == ["page: rm -rf x"]


@pytest.mark.parametrize("pattern", RUN_BY)
def test_what_runs_a_command_exists_and_the_command_is_in_a_page(pattern: str) -> None:
    file, name = RUN_BY[pattern]
    assert (f"def {name}(" if file.startswith("tests/") else name) in (PROJECT / file).read_text()
    assert any(re.fullmatch(pattern, line.text) for line in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_mark_has_a_reason_and_stands_before_commands(page: Path) -> None:
    marks = MARK.findall(page.read_text())
    assert all(marks)
    assert marks == [reason for reason, _, _ in BLOCK.findall(LANGUAGES.sub("", page.read_text())) if reason]


@pytest.mark.parametrize("line", HERE, ids=str)
def test_a_harmless_command_runs(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    done = subprocess.run([sys.executable, *words(line)[1:]], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in COMMANDS if " -m lab " in line.text], ids=str)
def test_a_command_of_the_lab_has_its_words(line: Line) -> None:
    lab_parser().parse_args(words(line)[3:])


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.text.startswith("make ")], ids=str)
def test_make_knows_its_targets(line: Line) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words(line)[1:]], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
