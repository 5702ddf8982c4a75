"""The workflows: pinned, allowed little, no secret for a fork, one update of a stack at a time."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.report import MEANT
from tools import ci, lint

PROJECT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
OWN = "github.event.pull_request.head.repo.full_name == github.repository"
PINNED = re.compile(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# What is of use to somebody who may not write to the repository.
SECRETS = re.compile(r"\bsecrets\b|github\.token")
Yaml = dict[str, Any]


def parsed(path: Path) -> Yaml:
    # YAML 1.1 reads a bare `on` as true.
    document: Yaml = {
        ("on" if key is True else key): value for key, value in yaml.safe_load(path.read_text()).items()
    }
    return document


def jobs() -> Iterator[tuple[str, Yaml, str, Yaml]]:
    for path in WORKFLOWS:
        workflow = parsed(path)
        for name, job in workflow["jobs"].items():
            yield path.stem, workflow, name, job


JOBS = [pytest.param(whole, name, job, id=f"{file}-{name}") for file, whole, name, job in jobs()]


def job(workflow: str, name: str) -> Yaml:
    found: Yaml = parsed(PROJECT / f".github/workflows/{workflow}.yml")["jobs"][name]
    return found


def gitlab() -> Yaml:
    """The example's jobs with what they extend; hidden ones and settings left out."""
    document = yaml.safe_load((PROJECT / lint.GITLAB).read_text())
    settings = {"stages", "workflow", "default", "variables"}

    def whole(entry: Yaml) -> Yaml:
        parent = whole(document[entry["extends"]]) if "extends" in entry else {}
        return {**parent, **entry, "variables": {**parent.get("variables", {}), **entry.get("variables", {})}}

    return {
        name: whole(entry)
        for name, entry in document.items()
        if name not in settings and not name.startswith(".")
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_commit_with_its_version_beside_it(path: Path) -> None:
    used = re.findall(r"\buses: *(.+)$", path.read_text(), re.MULTILINE)
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_an_action_has_one_version_in_all_workflows() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.+)$", path.read_text(), re.MULTILINE)}
    assert len(used) == len({line.partition("@")[0] for line in used})


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_a_job_may_read_the_code_and_write_only_what_it_is_for(workflow: Yaml, name: str, job: Yaml) -> None:
    assert workflow["permissions"] in ({}, {"contents": "read"})
    granted = job.get("permissions", workflow["permissions"])
    extra = {"report": {"pull-requests": "write"}, "issue": {"issues": "write"}}.get(name, {})
    assert granted == {"contents": "read", **extra}


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_a_job_that_a_fork_can_start_has_no_secret_no_environment_and_no_runner_of_ours(
    workflow: Yaml, name: str, job: Yaml
) -> None:
    assert "pull_request_target" not in workflow["on"]
    assert "workflow_run" not in workflow["on"]
    if "pull_request" not in workflow["on"] or OWN in str(job.get("if", "")):
        return
    open_steps = [step for step in job["steps"] if OWN not in str(step.get("if", ""))]
    outside = {key: value for key, value in job.items() if key != "steps"}
    assert not SECRETS.search(str(open_steps) + str(outside) + str(workflow.get("env", "")))
    assert "environment" not in job
    # The report must end for a fork too, as failed; GitHub's own token of a fork's run can only read.
    if name != "report":
        assert "write" not in str(job.get("permissions", workflow["permissions"]))
    runner = job["runs-on"]
    assert "vars." not in runner or re.search(
        rf"{re.escape(OWN)}\) && vars\.\w+ \|\| 'ubuntu-[\d.]+'", runner
    )


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_a_condition_on_the_pull_requests_origin_holds_whatever_else_is_true(
    workflow: Yaml, name: str, job: Yaml
) -> None:
    for entry in (job, *job["steps"]):
        condition = str(entry.get("if", ""))
        assert OWN not in condition or "||" not in condition


def test_the_required_check_is_never_skipped() -> None:
    # GitHub counts a skipped job as a passed check; `!cancelled()` skips it where a run is cancelled.
    assert job("preview", "report")["if"] == "always()"


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
def test_without_the_list_of_environments_the_report_fails_first_of_all_and_says_why(result: str) -> None:
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
    assert "whoever takes it over pushes the branch here" in done.stdout
    # What comes after it runs only where it didn't.
    assert not [step for step in rest if re.search(r"always|failure|cancelled", str(step.get("if", "")))]
    [writes] = [step for step in rest if SECRETS.search(str(step))]
    assert writes["if"] == f"needs.touched.result == 'success' && {OWN}"


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_a_job_ends_leaves_no_token_behind_and_puts_no_value_into_a_script(
    workflow: Yaml, name: str, job: Yaml
) -> None:
    assert job["timeout-minutes"] <= 360
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
            assert "ref" not in step["with"]
        assert "${{" not in step.get("run", ""), "values reach a script by its environment"
        assert len(step.get("run", "").splitlines()) <= 3, "logic belongs into tools/ci.py"


@pytest.mark.parametrize(("workflow", "name", "job"), JOBS)
def test_secrets_reach_only_the_step_that_needs_them(workflow: Yaml, name: str, job: Yaml) -> None:
    outside = {key: value for key, value in job.items() if key != "steps"}
    assert not SECRETS.search(str(outside) + str(workflow.get("env", "")))
    for step in job["steps"]:
        if SECRETS.search(str(step)):
            assert " -m tools.ci " in step["run"]


def test_one_update_of_a_stack_runs_at_a_time_and_none_is_cancelled_in_the_middle() -> None:
    for workflow, kind in (("up", "up"), ("preview", "preview"), ("drift", "check")):
        group = job(workflow, kind)["concurrency"]
        assert group["cancel-in-progress"] is False
        assert "${{ matrix.environment }}" in group["group"]
    assert job("up", "up")["concurrency"]["group"] == "up-${{ matrix.environment }}"
    assert "concurrency" not in parsed(PROJECT / ".github/workflows/up.yml")


def test_updates_previews_and_drift_checks_have_environments_of_their_own() -> None:
    assert job("up", "up")["environment"] == "${{ matrix.environment }}"
    assert job("preview", "preview")["environment"] == "${{ matrix.environment }}-preview"
    # Reviewers of the previews must not be waited for by night.
    assert job("drift", "check")["environment"] == "${{ matrix.environment }}-drift"
    page = (PROJECT / "docs/ci.md").read_text()
    for name in ("prod", "prod-preview", "prod-drift"):
        assert f"   - `{name}`: " in page
    assert parsed(PROJECT / ".github/workflows/up.yml")["on"] == {
        "push": {"branches": ["main"]},
        "workflow_dispatch": None,
    }


def test_a_branchs_code_runs_on_another_runner_than_what_logs_in_to_the_hosts() -> None:
    def runners(text: str) -> set[str]:
        return set(re.findall(r"\w+_RUNNER|self-hosted", text))

    log_in = {job("up", "up")["runs-on"], job("drift", "check")["runs-on"]}
    assert len(log_in) == 1
    assert not runners(job("preview", "preview")["runs-on"]) & runners(str(log_in))
    found = gitlab()
    for stack in ("staging", "prod"):
        assert found[f"up {stack}"]["tags"] == found[f"drift {stack}"]["tags"] == ["$HOSTS_RUNNER"]
        assert found[f"preview {stack}"]["tags"] == ["$PREVIEW_RUNNER"]


def test_the_report_knows_which_commit_it_is_about() -> None:
    [step] = [step for step in job("preview", "report")["steps"] if "tools.ci report" in step.get("run", "")]
    assert step["env"]["HEAD"] == "${{ github.event.pull_request.head.sha }}"
    assert ' --head "$HEAD"' in step["run"]
    # In a pipeline for merged results CI_COMMIT_SHA is the merge, and only there the other is set.
    [line] = gitlab()["report"]["script"]
    assert ' --head "${CI_MERGE_REQUEST_SOURCE_BRANCH_SHA:-$CI_COMMIT_SHA}"' in line


def test_the_state_is_named_by_the_same_variables_everywhere() -> None:
    for workflow, name in (("preview", "preview"), ("up", "up"), ("drift", "check")):
        [given] = [step["env"] for step in job(workflow, name)["steps"] if "STACK" in step.get("env", {})]
        assert given.keys() == {"STACK", *ci.STATE}
        assert all(
            given[variable] in (f"${{{{ secrets.{variable} }}}}", f"${{{{ vars.{variable} }}}}")
            for variable in ci.STATE
        )


def test_the_gitlab_example_runs_the_same_commands() -> None:
    def commands(scripts: list[str]) -> set[str]:
        return {
            found
            for script in scripts
            for found in re.findall(r"tools\.ci (\w+)|(make \w+|\.ci/run)", script)
        }

    def flat(pairs: set[Any]) -> set[str]:
        return {first or second for first, second in pairs}

    here = [step["run"] for _, _, _, job in jobs() for step in job["steps"] if "run" in step]
    there = [line for job in gitlab().values() for line in job["script"]]
    # GitLab has no matrix that a job could write: each environment's jobs ask whether they are touched.
    assert flat(commands(here)) - {"touched", "environments"} == flat(commands(there))


def test_the_gitlab_example_keeps_what_github_keeps() -> None:
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


def test_ci_md_names_every_secret_variable_and_label() -> None:
    page = (PROJECT / "docs/ci.md").read_text()
    files = [*WORKFLOWS, PROJECT / lint.GITLAB]
    used = {name for path in files for name in re.findall(r"\b(?:secrets|vars)\.([A-Z_]+)", path.read_text())}
    for name in sorted({*used, "GITLAB_TOKEN", "HOSTS_RUNNER", "PREVIEW_RUNNER", "LAB_RUNNER", MEANT}):
        assert f"`{name}`" in page, f"docs/ci.md doesn't say what {name} is"
