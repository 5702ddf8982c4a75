"""`python -m tools ci`: the steps of the workflows in .github/workflows and docs/examples/gitlab-ci.yml.

Every committed `Pulumi.<name>.yaml` is an environment, except the lab's, because no runner reaches a lab. The
job's variables say where its state is and how it is encrypted (PULUMI_BACKEND_URL or PULUMI_ACCESS_TOKEN,
PULUMI_CONFIG_PASSPHRASE). This project's local backend is never used.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from common import cli
from common.errors import UserError
from common.paths import DEFAULT_LAB, project_dir, stack_name, unqualified
from common.progress import Progress
from model.settings import PREFIX
from model.settings_file import config_of, joined, load, own_settings
from model.settings_problems import SettingsError
from report.page import DESTRUCTIVE_LABEL, MAX_CHARACTERS
from report.policy_findings import findings_in
from report.text import count
from tools import engine, env, forge, policy, provider_plugins, watch
from tools.programs import table
from tools.report import findings_text

# Files that no cluster depends on. A change anywhere else touches every environment: an unnecessary preview
# costs a minute, a missing one hides a change.
APART_FOLDERS = (".ci/", ".github/", "docs/", "lab/", "report/", "standins/", "tests/", "tools/")
APART_FILES = frozenset(
    {
        *(".gitattributes", ".gitignore", ".pre-commit-config.yaml", "Makefile"),
        *("CONTRIBUTING.md", "README.md"),
        *("pyproject.toml", "requirements-dev.txt"),
    }
)

_STACK_FILE = re.compile(r"Pulumi\.([A-Za-z0-9_.-]+)\.yaml")
_PREVIEW_FAILED = "error: preview failed"  # the engine's last message, whatever the cause
_CUT = "\n\nThe job's log has the rest."
_FILES = ("ssh.privateKeyFile", "ssh.knownHostsFile", "packages.key")
# A secret that isn't set arrives as an empty variable. Most of these mean something else if empty.
STATE = (
    "PULUMI_BACKEND_URL",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_CONFIG_PASSPHRASE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
)

STAND_INS = "KUBEADM_IPVS_STAND_INS"
"""Set to 1 to allow this project's stand-ins for Pulumi's provider plugins, as the tests do."""


def environments(root: Path) -> list[str]:
    """The environments' names, sorted."""
    listed = _git(root, "ls-files", "-z", "--", "Pulumi.*.yaml").split("\0")
    found = {match[1] for name in listed if (match := _STACK_FILE.fullmatch(name)) and (root / name).exists()}
    return sorted(found - {stack_name(DEFAULT_LAB)})


def touched(root: Path, base: str, head: str = "HEAD") -> list[str]:
    """The environments that the change from `base` to `head` affects, sorted.

    Args:
        root: The checkout.
        base: A commit. If it is empty or git doesn't know it, as after a push that created the branch or
            rewrote its history, all environments are affected.
        head: A commit.
    """
    names = environments(root)
    if not _is_commit(root, base):
        return names
    changed = _git(root, "diff", "--name-only", "--no-renames", "-z", f"{base}...{head}").split("\0")
    if any(affects_all(path) for path in changed if path):
        return names
    return [name for name in names if f"Pulumi.{name}.yaml" in changed]


def affects_all(path: str) -> bool:
    """Whether a change of this file, given by its path in the checkout, affects every environment."""
    if _STACK_FILE.fullmatch(path):
        return False
    return not path.startswith(APART_FOLDERS) and path not in APART_FILES


def settings_problems(root: Path, stack: str) -> list[str]:
    """Check a stack's settings as far as possible without its keys and its state.

    Files that the settings name, such as the login key, may be missing.
    """
    try:
        config = config_of((root / f"Pulumi.{stack}.yaml").read_text())
        load(own_settings(config), root)
    except yaml.YAMLError as error:
        return [f"isn't valid YAML: {' '.join(str(error).split())}"]
    except SettingsError as error:
        return [
            f"{problem.path}: {problem.text}"
            for problem in error.problems
            if not (problem.path in _FILES and "which doesn't exist" in problem.text)
        ]
    return []


def official_tools(progress: Progress) -> env.Toolbox:
    """Pulumi and its provider plugins, for previews and updates of an environment.

    Raises:
        UserError: The engine or a plugin is missing. Stand-ins are accepted only if `STAND_INS` allows them.
    """
    tools = env.toolbox(progress, ask_upstream=True)
    progress.say(table(tools))
    missing = [tool.name for tool in tools.plugins if tool.source == provider_plugins.STAND_IN]
    if missing and os.environ.get(STAND_INS) != "1":
        raise UserError(
            f"{' and '.join(missing)} can't be installed, and this project's stand-ins must not change an "
            "environment",
            f"let the runner reach {engine.UPSTREAM_HOST}, or put Pulumi's own plugins on its PATH",
        )
    return tools


def pulumi_environment(tools: env.Toolbox) -> dict[str, str]:
    """The variables for Pulumi: our programs, and the state that the job's secrets name.

    Raises:
        UserError: They name no state.
    """
    variables = env.applied(env.programs(tools))
    for name in STATE:
        if not variables.get(name):
            variables.pop(name, None)
    if not variables.keys() & {"PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN"}:
        raise UserError(
            "neither PULUMI_BACKEND_URL nor PULUMI_ACCESS_TOKEN is set, so the state can't be found",
            "set one of them as a secret of the environment; docs/ci.md lists them",
        )
    return variables


def preview(root: Path, stack: str, output: Path) -> bool:
    """Preview the stack with the policy pack, for the report.

    Returns:
        Whether the preview succeeded and breaks no mandatory rule.

    Raises:
        UserError: Pulumi or the pack's environment can't be installed.
    """
    progress = Progress()
    tools = official_tools(progress)
    return write_preview(root, stack, output, policy.with_pack(pulumi_environment(tools), progress))


def write_preview(root: Path, stack: str, output: Path, variables: Mapping[str, str]) -> bool:
    """Write the stack's preview to `STACK.json`, or the reason why it failed to `STACK.errors`.

    The findings of the policy pack go to `STACK.policy.json`.

    Args:
        root: The checkout.
        stack: The stack's name.
        output: The folder for the files.
        variables: The environment variables for Pulumi and the pack.

    Returns:
        Whether the preview succeeded and breaks no mandatory rule.
    """
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-preview-") as folder:
        log = Path(folder) / "events"
        # The JSON output leaves policies out, so they are read from the event log.
        options = ["--policy-pack", str(root / policy.PACK.name), "--event-log", str(log)]
        done = subprocess.run(
            ["pulumi", "preview", "--stack", stack, "--json", "--non-interactive", *options],
            cwd=root,
            # --event-log exists only with the debugging commands.
            env={**variables, "PULUMI_DEBUG_COMMANDS": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        findings = findings_in(_events(log))
    output.mkdir(parents=True, exist_ok=True)
    name = unqualified(stack)
    (output / f"{name}.policy.json").write_text(findings_text(findings))
    for finding in findings:
        print(finding, file=sys.stderr)
    violated = any(finding.mandatory for finding in findings)
    # A violation fails the preview only at its end, so the plan is complete and worth showing.
    if done.returncode == 0 or (violated and not _has_other_errors(done.stdout)):
        (output / f"{name}.json").write_text(done.stdout)
        return not violated
    text = preview_errors(done.stdout, done.stderr)
    (output / f"{name}.errors").write_text(text)
    print(text, file=sys.stderr)
    return False


def _events(log: Path) -> list[Any]:
    """The engine's events. If it was killed, the last line is incomplete and left out."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _has_other_errors(stdout: str) -> bool:
    """Whether a preview has errors besides the final one, which only reports that it failed."""
    try:
        plan = json.loads(stdout[stdout.index("{\n") :])
    except ValueError:
        return True
    errors = [str(entry.get("message", "")) for entry in plan.get("diagnostics") or [] if _is_error(entry)]
    return "steps" not in plan or any(message.strip() != _PREVIEW_FAILED for message in errors)


def _is_error(diagnostic: Mapping[str, Any]) -> bool:
    return diagnostic.get("severity") == "error"


def preview_errors(stdout: str, stderr: str) -> str:
    """The errors in a preview's JSON, or its raw output if it has no JSON."""
    start = stdout.find("{\n")
    try:
        diagnostics = json.loads(stdout[start:])["diagnostics"] if start >= 0 else []
    except (ValueError, KeyError):
        diagnostics = []
    messages = [entry["message"].strip() for entry in diagnostics if _is_error(entry)]
    return "\n".join(messages or [(stderr.strip() or stdout.strip())]) + "\n"


def report_arguments(root: Path, base: str, previews: Path, labels: Sequence[str]) -> list[str]:
    """The arguments of `python -m tools report` for the environments touched since `base`.

    An environment without any file in `previews` counts as failed. The list is empty if no environment is
    touched.
    """
    arguments: list[str] = []
    for stack in touched(root, base):
        planned, failed = previews / f"{stack}.json", previews / f"{stack}.errors"
        if planned.exists():
            arguments += ["--preview", f"{stack}={planned}"]
        else:
            if not failed.exists():
                failed.parent.mkdir(parents=True, exist_ok=True)
                failed.write_text("The preview job ended before Pulumi did. See the job's log.\n")
            arguments += ["--errors", f"{stack}={failed}"]
        findings = previews / f"{stack}.policy.json"
        if findings.exists():
            arguments += ["--policy", f"{stack}={findings}"]
        before = previews / f"{stack}.before.yaml"
        if _is_commit(root, base) and _has(root, base, f"Pulumi.{stack}.yaml"):
            before.write_text(_settings_at(root, base, stack))
            arguments += ["--settings-before", f"{stack}={before}"]
    return [*arguments, "--allow-destructive"] if arguments and DESTRUCTIVE_LABEL in labels else arguments


def _settings_at(root: Path, commit: str, stack: str) -> str:
    """A stack file at a commit, merged with the file that it extended at that commit.

    If one of the two isn't valid YAML, this is the stack file alone, so that a fix of it gets a report.
    """
    text = _git(root, "show", f"{commit}:Pulumi.{stack}.yaml")
    try:
        own = config_of(text)
        extends = own.get(f"{PREFIX}extends")
        if not isinstance(extends, str) or not _has(root, commit, extends):
            return text
        shared = config_of(_git(root, "show", f"{commit}:{extends}"))
    except yaml.YAMLError:
        return text
    return yaml.safe_dump({"config": joined(shared, own) | {f"{PREFIX}extends": None}}, sort_keys=False)


def report(root: Path, base: str, head: str, previews: Path, labels: Sequence[str]) -> int:
    """Create or update the comment on the pull request; returns the status of `tools report`.

    Args:
        root: The checkout.
        base: The commit before the change.
        head: The newest commit of the pull request when this run started. If there is a newer one now, its
            run may already have commented, so this run leaves the comment alone.
        previews: The folder that `preview` wrote.
        labels: The labels of the pull request.

    Raises:
        UserError: There is no report, or the comment can't be written.
    """
    service = forge.of_run(os.environ)
    arguments = report_arguments(root, base, previews, labels)
    if not arguments:
        _comment(service, head, "This change touches no environment.", only_update=True)
        return 0
    page = previews / "report.md"
    argv = [sys.executable, "-m", "tools", "report", *arguments, "--output", str(page)]
    status = subprocess.run(argv, cwd=root, check=False).returncode
    if not page.exists():
        raise UserError(f"`tools report` wrote no report and exited with status {status}")
    _comment(service, head, page.read_text())
    return status


def _comment(service: forge.Forge, head: str, text: str, *, only_update: bool = False) -> None:
    newest = service.head()
    if newest == head:
        forge.keep_comment(service, text, only_update=only_update)
    else:
        print(f"The comment isn't updated: this run is for {head}, but the pull request is now at {newest}")


def up(root: Path, stack: str, newest: str) -> None:
    """Run `pulumi up` with the policy pack, unless a newer change of this environment waits for approval.

    Approvals may come in any order, and an older one must not undo a newer change.

    Args:
        root: The checkout.
        stack: The stack's name.
        newest: The current head of the deployed branch.

    Raises:
        UserError: There is a newer change, the update failed, or a mandatory rule is broken. The preview at
            the start of an update almost always finds a broken rule, so nothing has changed yet.
    """
    if unqualified(stack) in touched(root, "HEAD", newest):
        raise UserError(f"{newest} has a newer change of {stack}", "approve the run of that change instead")
    progress = Progress()
    tools = official_tools(progress)
    variables = policy.with_pack(pulumi_environment(tools), progress)
    pack = ["--policy-pack", str(root / policy.PACK.name)]
    seen = watch.run(["up", "--yes", "--stack", stack, *pack], variables, root, progress)
    summary = ", ".join(f"{number} {kind}" for kind, number in sorted(seen.changes.items()))
    print(f"{stack}: changed: {summary or 'nothing'}")


def check(root: Path, stack: str, output: Path) -> int:
    """Check for drift and write the result to `STACK.json`; returns the status of `tools check`.

    Raises:
        UserError: Pulumi can't be installed.
    """
    progress = Progress()
    tools = env.toolbox(progress, ask_upstream=True)
    done = subprocess.run(
        [sys.executable, "-m", "tools", "check", "--stack", stack],
        cwd=root,
        env=pulumi_environment(tools),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{unqualified(stack)}.json").write_text(
        json.dumps({"status": done.returncode, "text": done.stdout})
    )
    return done.returncode


def drift_text(stacks: Sequence[str], findings: Path) -> tuple[str, bool]:
    """The text of the drift issue, and whether there is anything to do.

    A stack without a result counts as not checked. Each stack gets an equal share of the space in an issue.
    """
    room = MAX_CHARACTERS // max(len(stacks), 1) - len("\n\n")
    parts: list[str] = []
    found = False
    for stack in stacks:
        file = findings / f"{stack}.json"
        finding: dict[str, Any] = (
            json.loads(file.read_text()) if file.exists() else {"status": 1, "text": "No runner checked it."}
        )
        if finding["status"] == 0:
            parts.append(f"## {stack}: no drift")
            continue
        found = True
        title = "drift" if finding["status"] == 2 else "check incomplete"
        # Nothing in an indented code block can end it.
        block = textwrap.indent(finding["text"].rstrip("\n"), "    ", lambda _: True)
        part = f"## {stack}: {title}\n\n{block}"
        parts.append(part if len(part) <= room else part[: room - len(_CUT)] + _CUT)
    return "\n\n".join(parts) + "\n", found


def issue(root: Path, findings: Path) -> None:
    """Create or update the drift issue, and close it when there is no drift.

    Raises:
        UserError: The issue can't be written.
    """
    text, found = drift_text(environments(root), findings)
    forge.keep_issue(forge.of_run(os.environ), text, wanted=found)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _is_commit(root: Path, name: str) -> bool:
    return bool(name) and _has(root, name)


def _has(root: Path, commit: str, path: str = "") -> bool:
    object_name = f"{commit}:{path}" if path else f"{commit}^{{commit}}"
    argv = ["git", "cat-file", "-e", object_name]
    return subprocess.run(argv, cwd=root, capture_output=True, check=False).returncode == 0


@click.group(cls=cli.Group)
def commands() -> None:
    """Run a step of a CI workflow."""


_base = click.option("--base", required=True, metavar="COMMIT", help="The commit before the change.")
_since = click.option(
    "--since", metavar="COMMIT", help="Do nothing unless the change since this commit touches the stack."
)


def _folder(option: str, text: str) -> Callable[[Any], Any]:
    return click.option(option, required=True, type=click.Path(path_type=Path), metavar="FOLDER", help=text)


@commands.command("environments")
def _print_environments() -> None:
    """Print all environments as JSON."""
    print(json.dumps(environments(project_dir())))


@commands.command("touched")
@_base
def _print_touched(base: str) -> None:
    """Print the environments that a change touches as JSON."""
    print(json.dumps(touched(project_dir(), base)))


@commands.command("settings")
def _check_settings() -> int:
    """Check every environment's settings, without keys and state."""
    root = project_dir()
    problems = {stack: settings_problems(root, stack) for stack in environments(root)}
    for stack, found in problems.items():
        print(f"Pulumi.{stack}.yaml: {count(len(found), 'problem') if found else 'ok'}")
        for problem in found:
            print(f"  {problem}")
    return 1 if any(problems.values()) else 0


@commands.command("preview")
@cli.stack_option
@_folder("--output", "The folder for the preview or its errors.")
@_since
def _preview(stack: str, output: Path, since: str | None) -> int:
    """Write an environment's preview, or its errors, to a folder."""
    return 0 if _is_untouched(stack, since) or preview(project_dir(), stack, output) else 1


@commands.command("report")
@_base
@click.option("--head", required=True, metavar="COMMIT", help="The pull request's newest commit.")
@_folder("--previews", "The folder that `preview` wrote.")
@click.option("--labels", default="", help="The pull request's labels, separated by commas.")
def _report(base: str, head: str, previews: Path, labels: str) -> int:
    """Create or update the comment on the pull request."""
    return report(project_dir(), base, head, previews, labels.split(","))


@commands.command("up")
@cli.stack_option
@click.option("--newest", required=True, metavar="COMMIT", help="The current head of the deployed branch.")
@_since
def _up(stack: str, newest: str, since: str | None) -> None:
    """Update an environment to the committed state."""
    if not _is_untouched(stack, since):
        up(project_dir(), stack, newest)


@commands.command("check")
@cli.stack_option
@_folder("--output", "The folder for the result.")
def _check(stack: str, output: Path) -> int:
    """Check for drift and write the result to a folder."""
    return check(project_dir(), stack, output)


@commands.command("issue")
@_folder("--findings", "The folder that `check` wrote.")
def _issue(findings: Path) -> None:
    """Create, update or close the drift issue."""
    issue(project_dir(), findings)


def _is_untouched(stack: str, since: str | None) -> bool:
    if since is None or unqualified(stack) in touched(project_dir(), since):
        return False
    print(f"The change since {since} doesn't touch {stack}")
    return True
