"""Reads the GitHub workflows and the GitLab example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.stacks import PROJECT
from tools import lint

WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
Yaml = dict[str, Any]


def parsed(path: Path) -> Yaml:
    """A workflow's content."""
    # YAML 1.1 reads a bare `on` as true.
    document: Yaml = {
        ("on" if key is True else key): value for key, value in yaml.safe_load(path.read_text()).items()
    }
    return document


def jobs() -> Iterator[tuple[str, Yaml, str, Yaml]]:
    """Every job, as the workflow's name and content, and the job's name and content."""
    for path in WORKFLOWS:
        workflow = parsed(path)
        for name, job in workflow["jobs"].items():
            yield path.stem, workflow, name, job


def job(workflow: str, name: str) -> Yaml:
    """One job of a GitHub workflow."""
    found: Yaml = parsed(PROJECT / f".github/workflows/{workflow}.yml")["jobs"][name]
    return found


def gitlab() -> dict[str, Yaml]:
    """The jobs of the GitLab example, merged with the jobs that they extend; hidden jobs are left out."""
    document = yaml.safe_load((PROJECT / lint.GITLAB).read_text())
    settings = {"stages", "workflow", "default", "variables"}

    def merged(entry: Yaml) -> Yaml:
        parent = merged(document[entry["extends"]]) if "extends" in entry else {}
        return {**parent, **entry, "variables": {**parent.get("variables", {}), **entry.get("variables", {})}}

    return {
        name: merged(entry)
        for name, entry in document.items()
        if name not in settings and not name.startswith(".")
    }
