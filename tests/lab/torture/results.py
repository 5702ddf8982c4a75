"""What the long cases have shown; `python -m tests.lab.torture.results` writes the table in the docs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab import paths
from lab.files import write_atomic
from model import settings
from tools import versions

TABLE = paths.project_dir() / "docs" / "torture.md"
# What a case depends on: another text of any of these, and it has shown nothing.
CODE = ("__main__.py", "components", "manifests", "model", "scripts")


@dataclass(frozen=True)
class Result:
    """One run of a case."""

    case: str
    what: str
    outcome: str
    seconds: int
    date: str
    code: str
    figures: list[str] = field(default_factory=list)


def _place() -> Path:
    return paths.state_dir() / "torture.json"


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


def read() -> dict[str, Result]:
    """The last result of each case."""
    if not _place().exists():
        return {}
    return {case: Result(**values) for case, values in json.loads(_place().read_text()).items()}


def add(result: Result) -> None:
    """Keep a result, in place of an earlier one of the same case."""
    kept = {**read(), result.case: result}
    write_atomic(_place(), json.dumps({case: asdict(kept[case]) for case in kept}, indent=1) + "\n")


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
    """The docs' page."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    lines = [
        "# What was broken on purpose, and what came of it",
        "",
        "The last run of each case of `make torture`, on virtual machines with real kubeadm.",
        "Written by `python -m tests.lab.torture.results`.",
        "",
        f"Kubernetes {settings.Cluster().kubernetes_version}, Pulumi {versions.ENGINE}; "
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB.",
        "",
        "| case | outcome | seconds | date | program | measured |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {result.what} | {result.outcome} | {result.seconds} | {result.date} | `{result.code}` | "
        f"{'; '.join(result.figures)} |"
        for result in sorted(kept.values(), key=lambda result: result.case)
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page from what was kept."""
    TABLE.write_text(table(read()))
    subprocess.run(["git", "--no-pager", "diff", "--stat", str(TABLE)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
