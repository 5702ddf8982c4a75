"""The workflows: pinned actions, minimal permissions, no secrets for forks, no concurrent updates."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from report.page import DESTRUCTIVE_LABEL
from tests.fast.workflows import WORKFLOWS, Yaml, gitlab, job, jobs, parsed
from tests.stacks import PROJECT
from tools import ci, lint

OWN = "github.event.pull_request.head.repo.full_name == github.repository"
PINNED = re.compile(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# Somebody without write access could abuse these.
SECRETS = re.compile(r"\bsecrets\b|github\.token")
JOBS = [pytest.param(whole, name, job, id=f"{file}-{name}") for file, whole, name, job in jobs()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_with_their_version(path: Path) -> None:
    used = re.findall(r"\buses: *(.+)$", path.read_text(), re.MULTILINE)
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_workflows_use_the_same_version_of_an_action() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.+)$", path.read_text(), re.MULTILINE)}
    assert len(used) == len({line.partition("@")[0] for line in used})


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_jobs_have_minimal_permissions(workflow: Yaml, name: str, job: Yaml) -> None:
    assert workflow["permissions"] in ({}, {"contents": "read"})
    granted = job.get("permissions", workflow["permissions"])
    extra = {"report": {"pull-requests": "write"}, "issue": {"issues": "write"}}.get(name, {})
    assert granted == {"contents": "read", **extra}


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_forks_get_no_secrets_environments_or_own_runners(workflow: Yaml, name: str, job: Yaml) -> None:
    assert "pull_request_target" not in workflow["on"]
    assert "workflow_run" not in workflow["on"]
    if "pull_request" not in workflow["on"] or OWN in str(job.get("if", "")):
        return
    open_steps = [step for step in job["steps"] if OWN not in str(step.get("if", ""))]
    outside = {key: value for key, value in job.items() if key != "steps"}
    assert not SECRETS.search(str(open_steps) + str(outside) + str(workflow.get("env", "")))
    assert "environment" not in job
    # The report must run for forks too, and fail. GitHub's token is read-only in a fork's run.
    if name != "report":
        assert "write" not in str(job.get("permissions", workflow["permissions"]))
    runner = job["runs-on"]
    assert "vars." not in runner or re.search(
        rf"{re.escape(OWN)}\) && vars\.\w+ \|\| 'ubuntu-[\d.]+'", runner
    )


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_origin_condition_has_no_alternative(workflow: Yaml, name: str, job: Yaml) -> None:
    for entry in (job, *job["steps"]):
        condition = str(entry.get("if", ""))
        assert OWN not in condition or "||" not in condition


def test_required_check_is_never_skipped() -> None:
    # GitHub counts a skipped job as passed, and `!cancelled()` would skip it in a cancelled run.
    assert job("preview", "report")["if"] == "always()"


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
def test_report_fails_first_without_list_of_environments(result: str) -> None:
    first, *rest = job("preview", "report")["steps"]
    assert first["if"] == "needs.touched.result != 'success'"
    assert first["env"] == {"RESULT": "${{ needs.touched.result }}"}
    done = subprocess.run(
        ["bash", "-e", "-c", first["run"]],
        env={"RESULT": result},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"`touched`: {result}" in done.stdout
    assert "a maintainer has to push the branch to this repository" in done.stdout
    # The other steps run only if this one didn't.
    assert not [step for step in rest if re.search(r"always|failure|cancelled", str(step.get("if", "")))]
    [writes] = [step for step in rest if SECRETS.search(str(step))]
    assert writes["if"] == f"needs.touched.result == 'success' && {OWN}"


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_jobs_have_timeouts_and_no_values_in_scripts(workflow: Yaml, name: str, job: Yaml) -> None:
    assert job["timeout-minutes"] <= 360
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
            assert "ref" not in step["with"]
        assert "${{" not in step.get("run", ""), "pass values through the environment"
        assert len(step.get("run", "").splitlines()) <= 3, "move logic to tools/ci.py"


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_only_tools_ci_steps_get_secrets(workflow: Yaml, name: str, job: Yaml) -> None:
    outside = {key: value for key, value in job.items() if key != "steps"}
    assert not SECRETS.search(str(outside) + str(workflow.get("env", "")))
    for step in job["steps"]:
        if SECRETS.search(str(step)):
            assert " -m tools ci " in step["run"]


def test_updates_of_a_stack_never_overlap() -> None:
    for workflow, kind in (("up", "up"), ("preview", "preview"), ("drift", "check")):
        group = job(workflow, kind)["concurrency"]
        assert group["cancel-in-progress"] is False
        assert "${{ matrix.environment }}" in group["group"]
    assert job("up", "up")["concurrency"]["group"] == "up-${{ matrix.environment }}"
    assert "concurrency" not in parsed(PROJECT / ".github/workflows/up.yml")


def test_updates_previews_and_drift_checks_have_separate_environments() -> None:
    assert job("up", "up")["environment"] == "${{ matrix.environment }}"
    assert job("preview", "preview")["environment"] == "${{ matrix.environment }}-preview"
    # A nightly run must not wait for the reviewers of previews.
    assert job("drift", "check")["environment"] == "${{ matrix.environment }}-drift"
    page = (PROJECT / "docs/ci.md").read_text()
    for name in ("prod", "prod-preview", "prod-drift"):
        assert f"   - `{name}`: " in page
    assert parsed(PROJECT / ".github/workflows/up.yml")["on"] == {
        "push": {"branches": ["main"]},
        "workflow_dispatch": None,
    }


def test_previews_dont_run_on_the_hosts_runner() -> None:
    def runners(text: str) -> set[str]:
        return set(re.findall(r"\w+_RUNNER|self-hosted", text))

    log_in = {job("up", "up")["runs-on"], job("drift", "check")["runs-on"]}
    assert len(log_in) == 1
    assert not runners(job("preview", "preview")["runs-on"]) & runners(str(log_in))
    found = gitlab()
    for stack in ("staging", "prod"):
        assert found[f"up {stack}"]["tags"] == found[f"drift {stack}"]["tags"] == ["$HOSTS_RUNNER"]
        assert found[f"preview {stack}"]["tags"] == ["$PREVIEW_RUNNER"]


def test_report_gets_the_head_commit() -> None:
    [step] = [step for step in job("preview", "report")["steps"] if "tools ci report" in step.get("run", "")]
    assert step["env"]["HEAD"] == "${{ github.event.pull_request.head.sha }}"
    assert ' --head "$HEAD"' in step["run"]
    # In a merged results pipeline, CI_COMMIT_SHA is the merge commit; the other variable is set only there.
    [line] = gitlab()["report"]["script"]
    assert ' --head "${CI_MERGE_REQUEST_SOURCE_BRANCH_SHA:-$CI_COMMIT_SHA}"' in line


def test_workflows_pass_all_state_variables() -> None:
    for workflow, name in (("preview", "preview"), ("up", "up"), ("drift", "check")):
        [given] = [step["env"] for step in job(workflow, name)["steps"] if "STACK" in step.get("env", {})]
        assert given.keys() == {"STACK", *ci.STATE}
        assert all(
            given[variable] in (f"${{{{ secrets.{variable} }}}}", f"${{{{ vars.{variable} }}}}")
            for variable in ci.STATE
        )


def test_gitlab_example_runs_the_same_commands() -> None:
    def commands(scripts: list[str]) -> set[str]:
        return {
            found for script in scripts for found in re.findall(r"tools ci (\w+)|(make \w+|\.ci/run)", script)
        }

    def flat(pairs: set[Any]) -> set[str]:
        return {first or second for first, second in pairs}

    here = [step["run"] for _, _, _, job in jobs() for step in job["steps"] if "run" in step]
    there = [line for job in gitlab().values() for line in job["script"]]
    # GitLab has no dynamic matrix, so the jobs of each environment check whether it is touched.
    assert flat(commands(here)) - {"touched", "environments"} == flat(commands(there))


def test_gitlab_example_has_the_same_restrictions() -> None:
    found = gitlab()
    for stack in ("staging", "prod"):
        up, preview, drift = (found[f"{kind} {stack}"] for kind in ("up", "preview", "drift"))
        assert up["environment"] == {"name": stack}
        assert up["resource_group"] == stack
        assert up["interruptible"] is False
        assert [rule["when"] for rule in up["rules"]] == ["manual"]
        for kind, reading in (("preview", preview), ("drift", drift)):
            assert reading["environment"] == {"name": f"{stack}-{kind}", "action": "access"}
        assert {job["variables"]["STACK"] for job in (up, preview, drift)} == {stack}
    own = "$CI_MERGE_REQUEST_SOURCE_PROJECT_PATH == $CI_PROJECT_PATH"
    assert all(own in rule["if"] for name in ("preview prod", "report") for rule in found[name]["rules"])
    stages = yaml.safe_load((PROJECT / lint.GITLAB).read_text())["stages"]
    assert all(job["stage"] in stages and job["timeout"] and "when" not in job for job in found.values())


def test_docs_list_every_secret_variable_and_label() -> None:
    page = (PROJECT / "docs/ci.md").read_text()
    files = [*WORKFLOWS, PROJECT / lint.GITLAB]
    used = {name for path in files for name in re.findall(r"\b(?:secrets|vars)\.([A-Z_]+)", path.read_text())}
    for name in sorted(
        {*used, "GITLAB_TOKEN", "HOSTS_RUNNER", "PREVIEW_RUNNER", "LAB_RUNNER", DESTRUCTIVE_LABEL}
    ):
        assert f"`{name}`" in page, f"docs/ci.md doesn't explain {name}"
