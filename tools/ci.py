"""`python -m tools.ci`: what the workflows do, in .github/workflows and docs/examples/gitlab-ci.yml.

An environment is a committed `Pulumi.<name>.yaml`, except the lab's: no runner reaches a lab. Its state
and its passphrase are where this process's own environment says (PULUMI_BACKEND_URL or
PULUMI_ACCESS_TOKEN, PULUMI_CONFIG_PASSPHRASE), never in this project's local backend.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.paths import DEFAULT_LAB, project_dir, stack_name
from common.progress import Progress
from model.policy_findings import findings_in
from model.report import LIMIT_CHARACTERS, MEANT
from model.settings import PREFIX, SettingsError, config_of, joined, load, own_settings
from tools import engine, env, forge, policy, watch
from tools.__main__ import table
from tools.plugins import install
from tools.report import findings_text

# Folders and files that no cluster is made from. Whatever is in neither list concerns all of them:
# a preview too many costs a minute, one too few hides a change.
APART_FOLDERS = (".ci/", ".github/", "docs/", "lab/", "tests/", "tools/")
APART_FILES = frozenset(
    {
        *(".gitattributes", ".gitignore", ".pre-commit-config.yaml", "Makefile", "README.md"),
        *("pyproject.toml", "requirements-dev.txt"),
    }
)

_STACK_FILE = re.compile(r"Pulumi\.([A-Za-z0-9_.-]+)\.yaml")
_FAILED = "error: preview failed"  # the engine's last words, whatever the cause
_CUT = "\n\nThe job's log has the rest."
_FILES = ("ssh.privateKeyFile", "ssh.knownHostsFile", "packages.key")
# A secret that isn't set arrives as an empty variable, which for most of these means something else.
STATE = (
    "PULUMI_BACKEND_URL",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_CONFIG_PASSPHRASE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
)

STAND_INS = "KUBEADM_IPVS_STAND_INS"
"""1 where this project's stand-ins for Pulumi's providers will do, as in the tests."""


def environments(root: Path) -> list[str]:
    """The environments' names, sorted."""
    listed = _git(root, "ls-files", "-z", "--", "Pulumi.*.yaml").split("\0")
    found = {match[1] for name in listed if (match := _STACK_FILE.fullmatch(name)) and (root / name).exists()}
    return sorted(found - {stack_name(DEFAULT_LAB)})


def touched(root: Path, base: str, head: str = "HEAD") -> list[str]:
    """The environments that the change from `base` to `head` concerns, sorted.

    :param base: a commit; all environments are touched where git doesn't know it, as after a push
        that made the branch or wrote its history anew, and where none is given.
    """
    names = environments(root)
    if not _is_commit(root, base):
        return names
    changed = _git(root, "diff", "--name-only", "--no-renames", "-z", f"{base}...{head}").split("\0")
    if any(concerns_all(path) for path in changed if path):
        return names
    return [name for name in names if f"Pulumi.{name}.yaml" in changed]


def concerns_all(path: str) -> bool:
    """Whether a changed file, by its path in the checkout, changes what every environment is made of."""
    if _STACK_FILE.fullmatch(path):
        return False
    return not path.startswith(APART_FOLDERS) and path not in APART_FILES


def settings_problems(root: Path, stack: str) -> list[str]:
    """What is wrong with a stack's settings, as far as that can be seen without its keys and its state.

    A file that the settings name, such as the login key, need not be here.
    """
    try:
        config = config_of((root / f"Pulumi.{stack}.yaml").read_text())
        load(own_settings(config), root)
    except yaml.YAMLError as error:
        return [f"is no YAML: {' '.join(str(error).split())}"]
    except SettingsError as error:
        return [
            f"{problem.path}: {problem.text}"
            for problem in error.problems
            if not (problem.path in _FILES and "which is not there" in problem.text)
        ]
    return []


def own_programs(progress: Progress) -> env.Toolbox:
    """Pulumi's own programs, for what is previewed or changed in an environment.

    :raises UserError: the engine or a provider plugin is missing; stand-ins are used only where `STAND_INS` asks.
    """
    tools = env.toolbox(progress, ask_upstream=True)
    progress.say(table(tools))
    missing = [tool.name for tool in tools.plugins if tool.source == install.STAND_IN]
    if missing and os.environ.get(STAND_INS) != "1":
        raise UserError(
            f"{' and '.join(missing)} can't be had, and no environment is left to this project's stand-ins",
            f"let the runner reach {engine.UPSTREAM_HOST}, or put Pulumi's own plugins on its PATH",
        )
    return tools


def pulumi_environment(tools: env.Toolbox) -> dict[str, str]:
    """The environment for Pulumi: our programs, and the state that the job's secrets name.

    :raises UserError: they name none.
    """
    variables = env.applied(env.programs(tools))
    for name in STATE:
        if not variables.get(name):
            variables.pop(name, None)
    if not variables.keys() & {"PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN"}:
        raise UserError(
            "neither PULUMI_BACKEND_URL nor PULUMI_ACCESS_TOKEN is set: there is no place of the state",
            "set one of them as a secret of the environment; docs/ci.md lists them",
        )
    return variables


def preview(root: Path, stack: str, output: Path) -> bool:
    """Preview the stack with the policy pack, for the report.

    :returns: whether there is a preview that breaks no mandatory rule.
    :raises UserError: Pulumi or the pack's environment can't be had.
    """
    progress = Progress()
    tools = own_programs(progress)
    return previewed(root, stack, output, policy.with_pack(pulumi_environment(tools), progress))


def previewed(root: Path, stack: str, output: Path, variables: Mapping[str, str]) -> bool:
    """Write the stack's preview to `STACK.json`, or why there is none to `STACK.errors`.

    What the policy pack has found goes to `STACK.policy.json`.

    :param variables: the environment for Pulumi and the pack.
    :returns: whether there is a preview that breaks no mandatory rule.
    """
    with tempfile.TemporaryDirectory(prefix="kubeadm-ipvs-preview-") as folder:
        events = Path(folder) / "events"
        # The JSON says nothing of policies: the events do.
        judged = ["--policy-pack", str(root / policy.PACK.name), "--event-log", str(events)]
        done = subprocess.run(
            ["pulumi", "preview", "--stack", stack, "--json", "--non-interactive", *judged],
            cwd=root,
            # The flag is only known where commands for debugging are.
            env={**variables, "PULUMI_DEBUG_COMMANDS": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        found = findings_in(_events(events))
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stack}.policy.json").write_text(findings_text(found))
    for finding in found:
        print(finding, file=sys.stderr)
    refused = any(finding.mandatory for finding in found)
    # A broken rule fails the preview at its end: all of the plan is there, and worth being shown.
    if done.returncode == 0 or (refused and not _failed_otherwise(done.stdout)):
        (output / f"{stack}.json").write_text(done.stdout)
        return not refused
    text = errors(done.stdout, done.stderr)
    (output / f"{stack}.errors").write_text(text)
    print(text, file=sys.stderr)
    return False


def _events(log: Path) -> list[Any]:
    """The engine's events; none where it ended before its first. Of a killed one the last is cut short."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _failed_otherwise(stdout: str) -> bool:
    """Whether a preview has an error beside the last one, which only says that it failed."""
    try:
        plan = json.loads(stdout[stdout.index("{\n") :])
    except ValueError:
        return True
    said = [str(entry.get("message", "")) for entry in plan.get("diagnostics") or [] if _is_error(entry)]
    return "steps" not in plan or any(message.strip() != _FAILED for message in said)


def _is_error(diagnostic: Mapping[str, Any]) -> bool:
    return diagnostic.get("severity") == "error"


def errors(stdout: str, stderr: str) -> str:
    """Why a preview failed: the errors in its JSON, or what it printed where it didn't get that far."""
    start = stdout.find("{\n")
    try:
        said = json.loads(stdout[start:])["diagnostics"] if start >= 0 else []
    except (ValueError, KeyError):
        said = []
    messages = [entry["message"].strip() for entry in said if _is_error(entry)]
    return "\n".join(messages or [(stderr.strip() or stdout.strip())]) + "\n"


def report_arguments(root: Path, base: str, previews: Path, labels: Sequence[str]) -> list[str]:
    """The arguments of `python -m tools.report` for the environments touched since `base`.

    An environment whose preview has left nothing is one that failed. Without environments there are
    no arguments.
    """
    arguments: list[str] = []
    for stack in touched(root, base):
        planned, failed = previews / f"{stack}.json", previews / f"{stack}.errors"
        if planned.exists():
            arguments += ["--preview", f"{stack}={planned}"]
        else:
            if not failed.exists():
                failed.parent.mkdir(parents=True, exist_ok=True)
                failed.write_text("The preview's job ended before Pulumi did: see its log.\n")
            arguments += ["--errors", f"{stack}={failed}"]
        findings = previews / f"{stack}.policy.json"
        if findings.exists():
            arguments += ["--policy", f"{stack}={findings}"]
        before = previews / f"{stack}.before.yaml"
        if _is_commit(root, base) and _has(root, base, f"Pulumi.{stack}.yaml"):
            before.write_text(_settings_at(root, base, stack))
            arguments += ["--settings-before", f"{stack}={before}"]
    return [*arguments, "--allow-destructive"] if arguments and MEANT in labels else arguments


def _settings_at(root: Path, commit: str, stack: str) -> str:
    """A stack file as it was, with what it extended as that was: the checkout has only what it is now.

    Where one of the two was no YAML, the file's text: a change that mends it must have a report.
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
    """Keep the pull request's comment up to date; the status of `tools.report`.

    :param head: the pull request's newest commit, as this run knows it. Where there is a newer one by now,
        the comment is left to that one's run, which may have been faster.
    :raises UserError: there is no report, or it can't be written there.
    """
    site = forge.of_run(os.environ)
    arguments = report_arguments(root, base, previews, labels)
    if not arguments:
        _comment(site, head, "This change touches no environment.", only_update=True)
        return 0
    text = previews / "report.md"
    argv = [sys.executable, "-m", "tools.report", *arguments, "--output", str(text)]
    status = subprocess.run(argv, cwd=root, check=False).returncode
    if not text.exists():
        raise UserError(f"tools.report wrote nothing and ended with status {status}")
    _comment(site, head, text.read_text())
    return status


def _comment(site: forge.Forge, head: str, text: str, *, only_update: bool = False) -> None:
    now = site.head()
    if now == head:
        forge.keep_comment(site, text, only_update=only_update)
    else:
        print(f"the comment is left as it is: this run is of {head}, and the pull request is at {now} by now")


def up(root: Path, stack: str, newest: str) -> None:
    """`pulumi up` with the policy pack, unless a newer change of this environment waits for its own run.

    Approvals may come in any order, and an older one must not undo what is newer.

    :param newest: the branch as it is now.
    :raises UserError: there is a newer change, the update failed, or a mandatory rule is broken: nearly always
        cases the engine finds that in the preview with which an update begins, and touches nothing.
    """
    if stack in touched(root, "HEAD", newest):
        raise UserError(f"{newest} holds a newer change of {stack}", "approve that one's run instead")
    progress = Progress()
    tools = own_programs(progress)
    variables = policy.with_pack(pulumi_environment(tools), progress)
    pack = ["--policy-pack", str(root / policy.PACK.name)]
    seen = watch.run(["up", "--yes", "--stack", stack, *pack], variables, root, progress)
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.changes.items()))
    print(f"{stack}: changed: {summary or 'nothing'}")


def check(root: Path, stack: str, output: Path) -> int:
    """Look for drift; the finding goes to `STACK.json`. Returns the status of `tools.check`.

    :raises UserError: Pulumi can't be had.
    """
    progress = Progress()
    tools = env.toolbox(progress, ask_upstream=True)
    done = subprocess.run(
        [sys.executable, "-m", "tools.check", "--stack", stack],
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
    (output / f"{stack}.json").write_text(json.dumps({"status": done.returncode, "text": done.stdout}))
    return done.returncode


def drift_text(stacks: Sequence[str], findings: Path) -> tuple[str, bool]:
    """The issue's text, and whether anything is to be done. A stack without a finding wasn't looked at.

    Each stack has an equal part of what an issue holds.
    """
    room = LIMIT_CHARACTERS // max(len(stacks), 1) - len("\n\n")
    parts: list[str] = []
    found = False
    for stack in stacks:
        file = findings / f"{stack}.json"
        finding: dict[str, Any] = (
            json.loads(file.read_text()) if file.exists() else {"status": 1, "text": "no runner looked at it"}
        )
        if finding["status"] == 0:
            parts.append(f"## {stack}: as it was set up")
            continue
        found = True
        words = "not as it was set up" if finding["status"] == 2 else "not looked at wholly"
        # Indented, and so a code block that nothing in it can end.
        lines = [f"    {line}" for line in finding["text"].splitlines()]
        part = "\n".join([f"## {stack}: {words}", "", *lines])
        parts.append(part if len(part) <= room else part[: room - len(_CUT)] + _CUT)
    return "\n\n".join(parts) + "\n", found


def issue(root: Path, findings: Path) -> None:
    """Keep the one issue about drift up to date, and close it when all is as it was set up.

    :raises UserError: it can't be written.
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
    what = f"{commit}:{path}" if path else f"{commit}^{{commit}}"
    argv = ["git", "cat-file", "-e", what]
    return subprocess.run(argv, cwd=root, capture_output=True, check=False).returncode == 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.ci", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    command("environments", "Print all environments, as JSON.")
    command("settings", "Check every environment's settings, without keys and state.")
    of_change = command("touched", "Print the environments that a change touches, as JSON.")
    of_report = command("report", "Write the previews of a change as the pull request's one comment.")
    for asked in (of_change, of_report):
        asked.add_argument("--base", required=True, help="the commit before the change")
    of_report.add_argument("--head", required=True, help="the pull request's newest commit then")
    of_report.add_argument("--previews", required=True, type=Path, help="the folder that preview has written")
    of_report.add_argument("--labels", default="", help="the pull request's, with commas between them")
    of_preview = command("preview", "Write an environment's preview, or its errors, into a folder.")
    of_up = command("up", "Bring an environment to what is committed.")
    of_check = command("check", "Look for drift and write the finding into a folder.")
    for run in (of_preview, of_up, of_check):
        run.add_argument("--stack", required=True)
    for change in (of_preview, of_up):
        change.add_argument(
            "--since", metavar="BASE", help="do nothing unless the change since that commit touches it"
        )
    for writer in (of_preview, of_check):
        writer.add_argument("--output", required=True, type=Path)
    of_up.add_argument("--newest", required=True, help="the branch that is deployed, as it is now")
    of_issue = command("issue", "Keep the one issue about drift up to date.")
    of_issue.add_argument("--findings", required=True, type=Path, help="the folder that check has written")
    return parser


def _run(chosen: argparse.Namespace, root: Path) -> int:
    since = getattr(chosen, "since", None)
    if since is not None and chosen.stack not in touched(root, since):
        print(f"{chosen.stack} is not touched by the change since {since}")
        return 0
    match chosen.command:
        case "environments":
            print(json.dumps(environments(root)))
        case "touched":
            print(json.dumps(touched(root, chosen.base)))
        case "settings":
            return _print_problems({stack: settings_problems(root, stack) for stack in environments(root)})
        case "preview":
            return 0 if preview(root, chosen.stack, chosen.output) else 1
        case "report":
            return report(root, chosen.base, chosen.head, chosen.previews, chosen.labels.split(","))
        case "up":
            up(root, chosen.stack, chosen.newest)
        case "check":
            return check(root, chosen.stack, chosen.output)
        case "issue":
            issue(root, chosen.findings)
    return 0


def _print_problems(problems: Mapping[str, Sequence[str]]) -> int:
    for stack, found in problems.items():
        print(f"Pulumi.{stack}.yaml: {f'{len(found)} problems' if found else 'ok'}")
        for problem in found:
            print(f"  {problem}")
    return 1 if any(problems.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry: expected failures become a message and status 1."""
    chosen = _parser().parse_args(argv)
    try:
        return _run(chosen, project_dir())
    except UserError as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
