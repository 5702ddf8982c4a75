"""`python -m tools report`: a report on what a change does to each environment, for its pull request.

It is made from `pulumi preview --json` of each environment, or from the errors of a failed preview.
docs/reviewing.md explains how to read it.

Exit status: 1 if a preview failed or a mandatory policy rule is broken, 3 if the change is destructive and
`--allow-destructive` isn't given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import TypeAdapter, ValidationError

from common import cli
from common.errors import UserError
from common.paths import project_dir
from model.settings_file import config_of, written
from report.page import Environment, render
from report.policy_findings import Finding

DESTRUCTIVE = 3
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
            errors=cli.read_text(errors[name]) if name in errors else "",
            before=_settings(before[name], root) if name in before else None,
            after=_settings(root / f"Pulumi.{name}.yaml", root),
            findings=_findings(policy[name]) if name in policy else (),
        )
        for name in [*previews, *errors]
    ]


def _plan(file: Path) -> dict[str, Any]:
    text = cli.read_text(file)
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
        return _FINDINGS.validate_json(cli.read_text(file))
    except ValidationError as error:
        raise UserError(
            f"{file} has no findings of the policy pack", "pass the file that `tools ci preview` writes"
        ) from error


def _settings(file: Path, root: Path) -> dict[str, Any]:
    """A stack file's settings, even if they are invalid: the errors are about that."""
    if not file.exists():
        return {}
    try:
        return written(config_of(cli.read_text(file)), root)
    except yaml.YAMLError:
        return {}


class _StackFile(click.ParamType[tuple[str, Path], str]):
    name = "STACK=FILE"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        name, _, file = value.partition("=")
        if not name or not file:
            self.fail(f"{value} isn't STACK=FILE", param, ctx)
        return name, Path(file)


def _files(option: str, text: str) -> Callable[[Any], Any]:
    return click.option(option, type=_StackFile(), multiple=True, help=f"{text} (repeatable).")


@click.command()
@_files(
    "--preview",
    "The output of `pulumi preview --json`",
)
@_files("--errors", "The errors of a failed preview")
@_files("--settings-before", "The stack file before the change")
@_files("--policy", "The findings of the policy pack")
@click.option("--allow-destructive", is_flag=True, help="Don't fail if the change is destructive.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the report to a file.")
def command(
    preview: Sequence[tuple[str, Path]],
    errors: Sequence[tuple[str, Path]],
    settings_before: Sequence[tuple[str, Path]],
    policy: Sequence[tuple[str, Path]],
    *,
    allow_destructive: bool,
    output: Path | None,
) -> int:
    """Write a report on what a change does to each environment."""
    found = environments(project_dir(), dict(preview), dict(errors), dict(settings_before), dict(policy))
    page = render(found, approved=allow_destructive)
    if output is None:
        print(page.text, end="")
    else:
        cli.write_text(output, page.text)
    if page.has_failed:
        return cli.FAILED
    return DESTRUCTIVE if page.is_destructive and not allow_destructive else 0
