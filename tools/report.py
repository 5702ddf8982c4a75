"""`python -m tools.report`: what a change would do to its environments, as Markdown for a pull request.

Made from each environment's `pulumi preview --json`, or from why that failed. docs/reviewing.md says how
to read it. Status 3: something is destroyed and nobody has said that it is meant; 1: a preview failed,
or a mandatory rule of the policy pack is broken.
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
from model.policy_findings import Finding
from model.report import Environment, page
from model.settings import config_of, written

FAILED, DESTRUCTIVE = 1, 3
_FINDINGS = TypeAdapter(list[Finding])


def environments(
    root: Path,
    previews: Mapping[str, Path],
    errors: Mapping[str, Path],
    before: Mapping[str, Path],
    policy: Mapping[str, Path],
) -> list[Environment]:
    """What is known of each environment.

    :param root: the checkout, whose stack files say what is wanted.
    :param before: stack files as they were.
    :param policy: what the policy pack has found, as `findings_text` writes it.
    :raises UserError: a file can't be read, or an environment has both a preview and errors.
    """
    both = sorted(previews.keys() & errors.keys())
    if both:
        raise UserError(f"{', '.join(both)} has a preview and errors", "give one of the two")
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
        # Warnings of the engine itself may stand before it.
        plan = json.loads(text[max(text.find("{\n"), 0) :])
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or "steps" not in plan:
        raise UserError(f"{file} is no preview", "`pulumi preview --json` writes one")
    return plan


def findings_text(findings: Sequence[Finding]) -> str:
    """What the policy pack has found, as `--policy` reads it."""
    return _FINDINGS.dump_json(list(findings), indent=2).decode() + "\n"


def _findings(file: Path) -> list[Finding]:
    try:
        return _FINDINGS.validate_json(_read(file))
    except ValidationError as error:
        raise UserError(
            f"{file} is no verdict of the policy pack", "`tools.ci preview` writes one"
        ) from error


def _settings(file: Path, root: Path) -> dict[str, Any]:
    """A stack file's settings, also where they are no good: that is what the errors are about."""
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
        raise argparse.ArgumentTypeError(f"{text}: write STACK=FILE")
    return name, Path(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report", description=(__doc__ or "").partition(": ")[2].splitlines()[0]
    )

    def files(option: str, text: str) -> None:
        parser.add_argument(option, metavar="STACK=FILE", type=_pair, action="append", default=[], help=text)

    files("--preview", "what `pulumi preview --json` printed; may be given for several stacks")
    files("--errors", "why a stack's preview failed")
    files("--settings-before", "the stack file as it was")
    files("--policy", "what the policy pack has found in a stack's preview")
    parser.add_argument(
        "--allow-destructive", action="store_true", help="what is destroyed is meant: it fails nothing"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there, not to the terminal")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry: expected failures become a message and status 1."""
    chosen = _parser().parse_args(argv)
    try:
        found = environments(
            project_dir(),
            dict(chosen.preview),
            dict(chosen.errors),
            dict(chosen.settings_before),
            dict(chosen.policy),
        )
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return FAILED
    made = page(found, meant=chosen.allow_destructive)
    if chosen.output is None:
        print(made.text, end="")
    else:
        chosen.output.write_text(made.text, encoding="utf-8")
    if made.failed:
        return FAILED
    return DESTRUCTIVE if made.destructive and not chosen.allow_destructive else 0


if __name__ == "__main__":
    sys.exit(main())
