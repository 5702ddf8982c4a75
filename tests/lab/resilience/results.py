"""What the long cases have shown.

`python -m tests.lab.resilience.results` adds what this machine has shown to docs/resilience.json, and writes the table docs/resilience.md from it: a case that took an evening elsewhere stays in it, with its
date, its machine and the program's text that it has shown something of.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import paths
from common.files import write_atomic
from lab.api import LabStatus
from model import settings
from tools import env, versions

TABLE = paths.project_dir() / "docs" / "resilience.md"
RECORD = TABLE.with_suffix(".json")
# What a case depends on: another text of any of these, and it has shown nothing.
CODE = ("__main__.py", "components", "manifests", "model", "scripts")
FIGURES_IN_A_CELL = 12


@dataclass(frozen=True)
class Result:
    """One run of a case."""

    case: str
    what: str
    outcome: str
    seconds: int
    date: str
    code: str
    where: str
    figures: list[str] = field(default_factory=list)


def here() -> Path:
    """Where the results of this machine are kept."""
    return paths.state_dir() / "resilience.json"


def where(status: LabStatus) -> str:
    """What a case runs on, for a person: hosts, machine and versions."""
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30))
    plugins = ", ".join(f"{tool.name} ({tool.version}, {tool.source})" for tool in env.toolbox().plugins)
    return (
        f"{len(status.hosts)} hosts of the {status.family} family by {status.accelerator} on "
        f"{os.cpu_count()} cores and {memory} GiB, Kubernetes {settings.Cluster().kubernetes_version}, "
        f"Pulumi {versions.ENGINE}, {plugins}"
    )


def code() -> str:
    """A short name for the program's text as it is now."""
    digest = hashlib.sha256()
    for part in CODE:
        root = paths.project_dir() / part
        files = sorted(root.rglob("*.*")) if root.is_dir() else [root]
        for file in files:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(file.relative_to(paths.project_dir()).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def read(place: Path) -> dict[str, Result]:
    """The last result of each case."""
    if not place.exists():
        return {}
    return {case: Result(**values) for case, values in json.loads(place.read_text()).items()}


def _write(place: Path, kept: dict[str, Result]) -> None:
    write_atomic(place, json.dumps({case: asdict(kept[case]) for case in sorted(kept)}, indent=1) + "\n")


def add(result: Result) -> None:
    """Keep a result, in place of an earlier one of the same case."""
    _write(here(), {**read(here()), result.case: result})


def passed(kept: dict[str, Result], now: str) -> set[str]:
    """The cases that have passed with the program as it is now."""
    return {case for case, result in kept.items() if result.outcome == "passed" and result.code == now}


def write_state(file: Path, states: dict[str, set[str]]) -> None:
    """Keep the hosts' states for a later run."""
    write_atomic(file, json.dumps({host: sorted(lines) for host, lines in states.items()}))


def read_state(file: Path) -> dict[str, set[str]]:
    """What `write_state` has kept."""
    return {host: set(lines) for host, lines in json.loads(file.read_text()).items()}


def table(kept: dict[str, Result]) -> str:
    """The docs' page. What is too much for a cell has a table of its own below."""
    places = sorted({result.where for result in kept.values()})
    long = {case for case, result in kept.items() if len(result.figures) > FIGURES_IN_A_CELL}
    lines = [
        "# What was broken on purpose, and what came of it",
        "",
        "The last run of each case of `make resilience`, on virtual machines with real kubeadm.",
        "Written by `python -m tests.lab.resilience.results`.",
        "",
        "| case | outcome | seconds | date | on | program | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {result.what} | {result.outcome} | {result.seconds} | {result.date} | "
        f"{places.index(result.where) + 1} | `{result.code}` | "
        f"{'below' if case in long else '; '.join(result.figures)} |"
        for case, result in sorted(kept.items())
    ]
    lines += ["", "On:", ""]
    lines += [f"{number}. {place}" for number, place in enumerate(places, 1)]
    lines += [
        "",
        "`program` names the text of the program's files at that run (`results.code()`): "
        "it differs from row to row where the program has changed since.",
    ]
    for case in sorted(long):
        lines += ["", f"## {kept[case].what}", "", "| | measured |", "|---|---|"]
        lines += [f"| {number} | {figure} |" for number, figure in enumerate(kept[case].figures, 1)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Add what was seen here to the record, and write the page from it."""
    kept = {**read(RECORD), **read(here())}
    _write(RECORD, kept)
    TABLE.write_text(table(kept))
    subprocess.run(["git", "--no-pager", "diff", "--stat", str(TABLE)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
