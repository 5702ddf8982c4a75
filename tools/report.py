"""`python -m tools.report`: a report on what a change does to each environment, for its pull request.

It is made from `pulumi preview --json` of each environment, or from the errors of a failed preview.
docs/reviewing.md explains how to read it.

Exit status: 1 if a preview failed or a mandatory policy rule is broken, 3 if the change is destructive and
`--allow-destructive` isn't given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.paths import project_dir
from model.settings_file import config_of, written
from report.page import Environment, render
from report.policy_findings import Finding

FAILED, DESTRUCTIVE = 1, 3
_FINDINGS = TypeAdapter(list[Finding])


def environments(
    root: Path,
    previews: Mapping[str, Path],
    errors: Mapping[str, Path],
    before: Mapping[str, Path],
    policy: Mapping[str, Path],
) -> list[Environment]:
    """Read everything about each environment. All files are given by stack name.

    Args:
        root: The checkout, with the stack files after the change.
        previews: The output of `pulumi preview --json`.
        errors: The errors of failed previews.
        before: Stack files before the change.
        policy: The findings of the policy pack, as `findings_text` writes them.

    Raises:
        UserError: A file can't be read, or an environment has both a preview and errors.
    """
    both = sorted(previews.keys() & errors.keys())
    if both:
        raise UserError(f"{', '.join(both)} has both a preview and errors", "pass only one of the two")
    return [
        Environment(
            name=name,
            plan=_plan(previews[name]) if name in previews else None,
            errors=_read(errors[name]) if name in errors else "",
            before=_settings(before[name], root) if name in before else None,
            after=_settings(root / f"Pulumi.{name}.yaml", root),
            findings=_findings(policy[name]) if name in policy else (),
        )
        for name in [*previews, *errors]
    ]


def _plan(file: Path) -> dict[str, Any]:
    text = _read(file)
    try:
        # The engine may print warnings before the JSON.
        plan = json.loads(text[max(text.find("{\n"), 0) :])
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or "steps" not in plan:
        raise UserError(f"{file} isn't a preview", "pass the output of `pulumi preview --json`")
    return plan


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings of the policy pack, in the format that `--policy` reads."""
    return _FINDINGS.dump_json(list(findings), indent=2).decode() + "\n"


def _findings(file: Path) -> list[Finding]:
    try:
        return _FINDINGS.validate_json(_read(file))
    except ValidationError as error:
        raise UserError(
            f"{file} has no findings of the policy pack", "pass the file that `tools.ci preview` writes"
        ) from error


def _settings(file: Path, root: Path) -> dict[str, Any]:
    """A stack file's settings, even if they are invalid: the errors are about that."""
    if not file.exists():
        return {}
    try:
        return written(config_of(_read(file)), root)
    except yaml.YAMLError:
        return {}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error


def _pair(text: str) -> tuple[str, Path]:
    name, found, file = text.partition("=")
    if not found or not name or not file:
        raise argparse.ArgumentTypeError(f"{text} isn't STACK=FILE")
    return name, Path(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report", description=(__doc__ or "").partition(": ")[2].splitlines()[0]
    )

    def files(option: str, text: str) -> None:
        parser.add_argument(option, metavar="STACK=FILE", type=_pair, action="append", default=[], help=text)

    files("--preview", "the output of `pulumi preview --json`; can be repeated for several stacks")
    files("--errors", "the errors of a stack's failed preview")
    files("--settings-before", "the stack file before the change")
    files("--policy", "the findings of the policy pack in a stack's preview")
    parser.add_argument(
        "--allow-destructive", action="store_true", help="don't fail if the change is destructive"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file, not to the terminal")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; an expected failure becomes a message and status 1."""
    chosen = _parser().parse_args(argv)
    try:
        found = environments(
            project_dir(),
            dict(chosen.preview),
            dict(chosen.errors),
            dict(chosen.settings_before),
            dict(chosen.policy),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    page = render(found, approved=chosen.allow_destructive)
    if chosen.output is None:
        print(page.text, end="")
    else:
        chosen.output.write_text(page.text, encoding="utf-8")
    if page.has_failed:
        return FAILED
    return DESTRUCTIVE if page.is_destructive and not chosen.allow_destructive else 0


if __name__ == "__main__":
    sys.exit(main())
