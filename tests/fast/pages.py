"""The project's pages, and the schema of its stack files."""

from __future__ import annotations

import json

import jsonschema

from tests.stacks import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
SCHEMA = json.loads((PROJECT / "docs/stack.schema.json").read_text())


def schema_errors(document: object) -> list[str]:
    """The parts of a stack file that don't match the schema."""
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
