"""The workflows' steps, run as on a runner: in their own checkout, with the workflow's variables.

Only GitHub and GitLab are simulated. The environment is `trial`; its state is in a folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fast.checkout import commit, git
from tests.fast.forge_server import TOKEN, FakeForge, serving
from tests.fast.workflows import gitlab, job, jobs
from tests.stacks import HOST_KEY, PROJECT
from tools import bootstrap, ci, env, lint

LIMIT_SECONDS = 1200  # lint and the fast tests together
PASSPHRASE = "open-sesame"
EXCLUDED = {
    "make engine": "runs these tests",
    ".ci/run": "runs these tests too",
    ".venv/bin/python -m pytest tests/fleet": "takes minutes, and `make test` runs it too",
    "test ! -e /dev/kvm || sudo chmod a+rw /dev/kvm": "changes the computer",
    job("preview", "report")["steps"][0]["run"]: "covered by tests/fast/test_workflows.py",
}
SETTINGS = {
    "kubeadm-ipvs:hosts": [
        # Nothing listens there, so connections to the host fail at once.
        {"name": "a", "role": "control-plane", "address": "10.0.0.11"}
        | {"ssh": {"host": "127.0.0.1", "port": 1, "hostKey": HOST_KEY}},
    ]
}


@dataclass
class Runner:
    """A checkout of a change, and the values of the workflow's expressions."""

    checkout: Path
    base: str
    service: FakeForge
    values: dict[str, str]
    variables: dict[str, str]

    def step(self, workflow: str, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the workflow's step whose script contains this text, with the step's variables."""
        [(script, given)] = {
            (step["run"], tuple(step.get("env", {}).items()))
            for file, _, _, job in jobs()
            for step in job["steps"]
            if file == workflow and text in step.get("run", "")
        }
        return self.run(
            script, {**self.service.github(), **{name: self.value(v) for name, v in given}, **more}
        )

    def value(self, text: str) -> str:
        """The value of a variable, which is a literal or an expression in `values`."""
        expression = re.fullmatch(r"\$\{\{ (.+) \}\}", text)
        return self.values[expression[1]] if expression else text

    def gitlab(self, job: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the script of a job in the GitLab example."""
        given = {
            "CI_MERGE_REQUEST_DIFF_BASE_SHA": self.base,
            "CI_COMMIT_SHA": self.service.head,
            "CI_COMMIT_BEFORE_SHA": self.base,
            "CI_DEFAULT_BRANCH": "main",
            "CI_MERGE_REQUEST_LABELS": "",
            "STACK": "trial",
            **{name: self.values[f"secrets.{name}"] for name in ci.STATE if f"secrets.{name}" in self.values},
        }
        return self.run("\n".join(gitlab()[job]["script"]), {**self.service.gitlab(), **given, **more})

    def run(self, script: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.checkout,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )


def stack_file(**more: Any) -> str:
    return yaml.safe_dump({"config": {**SETTINGS, **more}}, sort_keys=False)


@pytest.fixture
def runner(tmp_path: Path, toolbox: env.Toolbox) -> Iterator[Runner]:
    if not bootstrap.is_current():
        pytest.fail(".venv isn't up to date, and a step would rebuild it -> python3 tools/bootstrap.py")
    checkout, backend = tmp_path / "checkout", tmp_path / "backend"
    backend.mkdir()
    for path in lint.project_files(PROJECT):
        copy = checkout / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    git(checkout, "init", "--quiet", "--initial-branch=main")
    (checkout / ".venv").symlink_to(PROJECT / ".venv")
    (checkout / ".git/info/exclude").write_text("/.venv\n")

    # The stack is created by hand once, as in docs/ci.md. Pulumi writes its salt to the file.
    (checkout / "Pulumi.trial.yaml").write_text(stack_file())
    state = {"PULUMI_BACKEND_URL": backend.as_uri(), "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
    made = subprocess.run(
        ["pulumi", "stack", "init", "trial", "--no-select", "--non-interactive"],
        cwd=checkout,
        env={**env.applied(env.programs(toolbox)), **state},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    base = commit(checkout)
    salt = (checkout / "Pulumi.trial.yaml").read_text().splitlines()[-1]
    changed = stack_file(**{"kubeadm-ipvs:proxy": {"scheduler": "wrr"}})
    head = commit(checkout, Pulumi_trial_yaml=f"{changed}{salt}\n")
    git(checkout, "update-ref", "refs/remotes/origin/main", head)
    git(checkout, "remote", "add", "origin", str(checkout))

    values = {
        "github.event.pull_request.base.sha": base,
        "github.event.pull_request.head.sha": head,
        "github.event.before": base,
        "github.event.pull_request.number": "5",
        "join(github.event.pull_request.labels.*.name, ',')": "",
        "github.token": TOKEN,
        "matrix.environment": "trial",
        "vars.AWS_REGION": "",
        **{f"secrets.{name}": state.get(name, "") for name in ci.STATE if name != "AWS_REGION"},
    }
    # MAKEFLAGS would pass the PYTEST_ARGS of an outer `make test` on to a step's `make`.
    removed = ("GITHUB_", "CI_", "PULUMI_", "AWS_", "PYTEST_", "MAKE")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    variables["no_proxy"] = "127.0.0.1"
    variables[ci.STAND_INS] = "1"
    # The runner's python3 is the Python that created .venv.
    python = str(Path(sys.executable).resolve().parent)
    variables["PATH"] = os.pathsep.join([python, *os.get_exec_path()])
    with serving() as service:
        service.head = head
        yield Runner(checkout, base, service, values, variables)


def test_every_step_is_covered_or_excluded() -> None:
    covered = {
        *("make lint", "make fast", "python3 tools/bootstrap.py"),
        *(f".venv/bin/python -m tools ci {name}" for name in ("settings", "preview", "report")),
        *(f".venv/bin/python -m tools ci {name}" for name in ("up", "check", "issue")),
        *(f"environments=$(.venv/bin/python -m tools ci {name}" for name in ("touched", "environments")),
    }
    steps = {step["run"] for _, _, _, job in jobs() for step in job["steps"] if "run" in step}
    assert {step for step in steps if not step.startswith(tuple(covered))} == set(EXCLUDED)


def test_bootstrap_lint_and_fast_steps_succeed(runner: Runner) -> None:
    made = runner.step("preview", "tools/bootstrap.py")
    assert made.returncode == 0, made.stderr
    # The files are the same as in this checkout, so mypy can reuse its cache.
    linted = runner.step("test", "make lint", MYPY_CACHE_DIR=str(PROJECT / ".mypy_cache"))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    # This only collects the tests; running them is covered elsewhere.
    fast = runner.step("test", "make fast", PYTEST_ARGS="--collect-only --quiet")
    assert fast.returncode == 0, fast.stdout + fast.stderr
    assert "tests/fast/test_settings.py::" in fast.stdout


def test_committed_settings_are_valid(runner: Runner) -> None:
    done = runner.step("test", "tools ci settings")
    assert done.returncode == 0, done.stdout
    assert "Pulumi.trial.yaml: ok" in done.stdout


@pytest.mark.parametrize(
    ("workflow", "command", "found"),
    [
        ("preview", "touched", ["trial"]),
        ("up", "touched", ["trial"]),
        ("drift", "environments", sorted(["trial", *ci.environments(PROJECT)])),
    ],
)
def test_environments_are_passed_to_the_next_job(
    runner: Runner, tmp_path: Path, workflow: str, command: str, found: list[str]
) -> None:
    output = tmp_path / "output"
    output.touch()
    done = runner.step(workflow, f"tools ci {command}", GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    name, _, value = output.read_text().strip().partition("=")
    assert (name, json.loads(value)) == ("environments", found)


def test_preview_writes_its_file_for_the_report(runner: Runner) -> None:
    done = runner.step("preview", "tools ci preview")
    assert done.returncode == 0, done.stderr
    written = (runner.checkout / "previews/trial.json").read_text()
    assert PASSPHRASE not in written + done.stdout + done.stderr
    plan = json.loads(written)
    assert plan["changeSummary"]["create"] > 20
    assert "wrr" in plan["config"]["kubeadm-ipvs:proxy"]


def test_failed_preview_writes_its_errors(runner: Runner) -> None:
    file = runner.checkout / "Pulumi.trial.yaml"
    file.write_text(file.read_text().replace("wrr", "wrong"))
    done = runner.step("preview", "tools ci preview")
    assert done.returncode == 1
    errors = (runner.checkout / "previews/trial.errors").read_text()
    assert "proxy.scheduler: " in errors
    assert not (runner.checkout / "previews/trial.json").exists()


def test_missing_stack_is_reported(runner: Runner) -> None:
    assert runner.step("preview", "tools ci preview", STACK="missing").returncode == 1
    assert "no stack named 'missing'" in (runner.checkout / "previews/missing.errors").read_text()


@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_broken_mandatory_rule_fails_preview_and_report(runner: Runner, service: str) -> None:
    def step(github: str, gitlab: str) -> subprocess.CompletedProcess[str]:
        return runner.step("preview", github) if service == "github" else runner.gitlab(gitlab)

    with (runner.checkout / "__main__.py").open("a") as program:
        program.write('\nimport pulumi\n\npulumi.export("password", "plain")\n')

    previewed = step("tools ci preview", "preview prod")
    assert previewed.returncode == 1
    assert "policy no-plain-secrets rejects kubeadm-ipvs-trial" in previewed.stderr
    reported = step("tools ci report", "report")
    assert reported.returncode == 1, reported.stderr
    [comment] = runner.service.comments
    assert "**This change violates mandatory policy rules in trial.**" in comment["body"]
    assert "`no-plain-secrets` fails for `kubeadm-ipvs-trial`: output password" in comment["body"]
    assert "Fix: wrap it in pulumi.Output.secret." in comment["body"]
    assert "+ create a-init" in comment["body"], "the changes are listed anyway"


def test_broken_advisory_rule_is_a_warning(runner: Runner) -> None:
    manifest = runner.checkout / "manifests/nginx.yaml"
    manifest.write_text(manifest.read_text().replace("kubeadm-ipvs/node-port", "example.com/other"))
    assert runner.step("preview", "tools ci preview").returncode == 0
    done = runner.step("preview", "tools ci report")
    assert done.returncode == 0, done.stderr
    [comment] = runner.service.comments
    assert (
        "- Advisory rule `node-ports-documented` fails for `Service/default/nginx-nodeport`"
        in comment["body"]
    )


def test_report_updates_its_one_comment(runner: Runner) -> None:
    assert runner.step("preview", "tools ci preview").returncode == 0
    for _ in range(2):
        done = runner.step("preview", "tools ci report")
        assert done.returncode == 0, done.stderr
    [comment] = runner.service.comments
    assert "trial" in comment["body"]
    assert "wrr" in comment["body"], "the changed setting is shown"
    assert "olicy" not in comment["body"], "no rule is broken"


def test_gitlab_example_previews_and_reports(runner: Runner) -> None:
    previewed = runner.gitlab("preview prod")
    assert previewed.returncode == 0, previewed.stderr
    reported = runner.gitlab("report")
    assert reported.returncode == 0, reported.stderr
    [note] = runner.service.comments
    assert "wrr" in note["body"]


def test_update_applies_the_committed_program(runner: Runner) -> None:
    # The real program needs hosts, so this uses a small one.
    (runner.checkout / "__main__.py").write_text("import pulumi\n\npulumi.export('merged', True)\n")
    done = runner.step("up", "tools ci up")
    assert done.returncode == 0, done.stderr
    assert "trial: changed: 1 create" in done.stdout
    again = runner.gitlab("up prod")
    assert again.returncode == 0, again.stderr
    assert "trial: changed: nothing" in again.stdout


def test_update_with_broken_mandatory_rule_changes_nothing(runner: Runner) -> None:
    (runner.checkout / "__main__.py").write_text("import pulumi\n\npulumi.export('password', 'plain')\n")
    for done in (runner.step("up", "tools ci up"), runner.gitlab("up prod")):
        assert done.returncode == 1
        assert "policy no-plain-secrets rejects kubeadm-ipvs-trial" in done.stderr
        assert "trial: changed" not in done.stdout
    (runner.checkout / "__main__.py").write_text("")
    fixed = runner.step("up", "tools ci up")
    assert "trial: changed: 1 create" in fixed.stdout, "the stack itself is new"


def test_unreachable_hosts_are_in_the_issue(runner: Runner) -> None:
    checked = runner.step("drift", "tools ci check")
    assert checked.returncode == 1
    assert "no SSH server answers at 127.0.0.1:1" in checked.stdout
    done = runner.step("drift", "tools ci issue")
    assert done.returncode == 0, done.stderr
    [issue] = runner.service.issues
    assert "no SSH server answers at 127.0.0.1:1" in issue["body"]
    assert "## trial: check incomplete" in issue["body"]
