"""The workflows' decisions: environments to preview, checks of their settings, the text about drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from common.progress import Progress
from model.settings import PREFIX
from model.settings_file import written
from report.page import MAX_CHARACTERS
from tests.fast.checkout import commit, git
from tests.fast.fake_programs import toolbox
from tests.fast.forge_server import GITHUB_BOT, GITLAB_USER, FakeForge
from tests.stacks import HOST_KEY, PROJECT
from tools import ci, env, lint
from tools.__main__ import main
from tools.engine import Tool
from tools.provider_plugins import STAND_IN


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout with the environments prod and staging, and stack files of two labs, one of them ignored."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    (root / ".gitignore").write_text("/Pulumi.lab-*.yaml\n")
    (root / "Pulumi.lab-mine.yaml").write_text("config: {}\n")
    commit(root, Pulumi_yaml="name: a", Pulumi_dev_yaml="1", Pulumi_prod_yaml="1", Pulumi_staging_yaml="1")
    return root


def test_environments_are_committed_stacks_except_labs(repository: Path) -> None:
    assert ci.environments(repository) == ["prod", "staging"]


def test_environment_name_may_contain_a_dot(repository: Path) -> None:
    base = commit(repository, Pulumi_prod_eu_yaml="1", Pulumi_dev_eu_yaml="1")
    assert ci.environments(repository) == ["dev.eu", "prod", "prod.eu", "staging"]
    commit(repository, Pulumi_prod_eu_yaml="2")
    assert ci.touched(repository, base) == ["prod.eu"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"Pulumi_prod_yaml": "2"}, ["prod"]),
        ({"Pulumi_prod_yaml": "2", "docs__a_md": "x"}, ["prod"]),
        ({"Pulumi_prod_yaml": "2", "Pulumi_staging_yaml": "2"}, ["prod", "staging"]),
        ({"Pulumi_dev_yaml": "2"}, []),
        ({"docs__a_md": "x", "tests__t_py": "x", "README_md": "x", "tools__t_py": "x"}, []),
        ({"Pulumi_yaml": "2"}, ["prod", "staging"]),
        ({"components__a_py": "x"}, ["prod", "staging"]),
        ({"scripts__a_sh": "x"}, ["prod", "staging"]),
        ({"a__new__folder_txt": "x"}, ["prod", "staging"]),
        ({"Pulumi_qa_yaml": "1"}, ["qa"]),
        ({"Pulumi_prod_yaml": None}, []),
    ],
    ids=str,
)
def test_change_touches_the_right_environments(
    repository: Path, files: dict[str, str | None], expected: list[str]
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    commit(repository, **files)
    assert ci.touched(repository, base) == expected


def test_moving_shared_code_touches_all(repository: Path) -> None:
    base = commit(repository, manifests__a_yaml="a text long enough to be recognized as the same file\n")
    (repository / "docs").mkdir()
    git(repository, "mv", "manifests/a.yaml", "docs/a.yaml")
    commit(repository)
    assert ci.touched(repository, base) == ["prod", "staging"]


def test_changes_on_the_base_branch_touch_nothing(repository: Path) -> None:
    git(repository, "switch", "--quiet", "--create", "feature")
    commit(repository, Pulumi_staging_yaml="2")
    git(repository, "switch", "--quiet", "main")
    base = commit(repository, Pulumi_prod_yaml="2")
    git(repository, "switch", "--quiet", "feature")
    assert ci.touched(repository, base) == ["staging"]


@pytest.mark.parametrize("base", ["", "0" * 40, "1" * 40, "no-such-branch"])
def test_unknown_base_touches_all(repository: Path, base: str) -> None:
    assert ci.touched(repository, base) == ["prod", "staging"]


@pytest.mark.parametrize(
    "path",
    [
        *("components/cluster.py", "model/kubeadm.py", "scripts/steps/kernel.sh", "manifests/flannel.yaml"),
        *("Pulumi.yaml", "requirements.txt", "__main__.py", "policy/rules.py"),
    ],
)
def test_cluster_code_affects_all_environments(path: str) -> None:
    assert (PROJECT / path).exists()
    assert ci.affects_all(path)


def test_files_that_affect_no_cluster_exist() -> None:
    known = {str(path.relative_to(PROJECT)) for path in lint.project_files(PROJECT)}
    assert known >= ci.APART_FILES
    assert all(any(path.startswith(folder) for path in known) for folder in ci.APART_FOLDERS)


def stack_file(**changes: Any) -> str:
    hosts = [{"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": HOST_KEY}}]
    config = {"hosts": hosts, "ssh": {"privateKeyFile": "/nowhere/id", "knownHostsFile": "/nowhere/known"}}
    return json.dumps({"config": {f"kubeadm-ipvs:{name}": v for name, v in {**config, **changes}.items()}})


def test_settings_are_checked_without_key_files(repository: Path) -> None:
    commit(repository, Pulumi_prod_yaml=stack_file())
    assert ci.settings_problems(repository, "prod") == []


def test_every_settings_problem_is_printed(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = stack_file(proxy={"mode": "ipvz"}, ssh={"privateKeyFile": 5}, colour="red")
    commit(repository, Pulumi_prod_yaml=bad, Pulumi_staging_yaml=stack_file())
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    assert main(["ci", "settings"]) == 1
    output = capsys.readouterr().out
    assert "Pulumi.staging.yaml: ok" in output
    for path in ("proxy.mode", "ssh.privateKeyFile", "colour"):
        assert f"  {path}: " in output


def test_invalid_yaml_is_a_settings_problem(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, Pulumi_prod_yaml="a: [", Pulumi_staging_yaml=stack_file())
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    assert main(["ci", "settings"]) == 1
    output = capsys.readouterr().out
    assert "Pulumi.prod.yaml: 1 problem\n  isn't valid YAML: while parsing" in output
    assert "Pulumi.staging.yaml: ok" in output


def test_errors_come_from_json_or_raw_output() -> None:
    plan = {
        "diagnostics": [{"message": "info", "severity": "info"}, {"message": "bad\n", "severity": "error"}]
    }
    assert ci.preview_errors(json.dumps(plan, indent=4), "") == "bad\n"
    assert (
        ci.preview_errors("", "error: no stack named 'prod' found\n")
        == "error: no stack named 'prod' found\n"
    )
    assert ci.preview_errors("{\n half", "error: killed") == "error: killed\n"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A stand-in for a provider plugin, which every run in this test finds instead of Pulumi's own."""
    tool = Tool("pulumi-resource-command", "for 1", STAND_IN, Path("/cache/pulumi-resource-command"))
    monkeypatch.setattr(env, "toolbox", lambda *_, **__: toolbox(tool))
    monkeypatch.delenv(ci.STAND_INS, raising=False)
    return tool


def test_stand_ins_cant_preview_or_update_environments(
    repository: Path, tmp_path: Path, stand_in: Tool
) -> None:
    for run in (
        lambda: ci.preview(repository, "prod", tmp_path / "previews"),
        lambda: ci.up(repository, "prod", "main"),
    ):
        with pytest.raises(UserError, match=r"pulumi-resource-command.*\n.*get\.pulumi\.com"):
            run()


def test_stand_ins_work_if_allowed(stand_in: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ci.STAND_INS, "1")
    assert ci.official_tools(Progress()).plugins == (stand_in,)


def test_pulumi_gets_the_state_without_unset_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://state")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "secret")
    monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    found = ci.pulumi_environment(toolbox())
    assert found["PULUMI_BACKEND_URL"] == "s3://state"
    assert found["PULUMI_CONFIG_PASSPHRASE"] == "secret"
    assert not found.keys() & {"PULUMI_ACCESS_TOKEN", "AWS_ACCESS_KEY_ID", "PULUMI_CONFIG_PASSPHRASE_FILE"}


def test_missing_state_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ci.STATE:
        monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match="PULUMI_BACKEND_URL nor PULUMI_ACCESS_TOKEN"):
        ci.pulumi_environment(toolbox())


def test_report_gets_the_files_of_every_preview(repository: Path, tmp_path: Path) -> None:
    base = commit(repository, Pulumi_lost_yaml="1", Pulumi_prod_yaml="old")
    commit(repository, Pulumi_yaml="2", Pulumi_prod_yaml="new", Pulumi_fresh_yaml="1")
    previews = tmp_path / "previews"
    previews.mkdir()
    for name in ("prod.json", "prod.policy.json", "fresh.json", "staging.errors"):
        (previews / name).write_text(name)
    arguments = ci.report_arguments(repository, base, previews, ["bug"])
    pairs = dict(zip(arguments[1::2], arguments[::2], strict=True))
    assert pairs == {
        f"fresh={previews}/fresh.json": "--preview",
        f"lost={previews}/lost.errors": "--errors",
        f"lost={previews}/lost.before.yaml": "--settings-before",
        f"prod={previews}/prod.json": "--preview",
        f"prod={previews}/prod.policy.json": "--policy",
        f"prod={previews}/prod.before.yaml": "--settings-before",
        f"staging={previews}/staging.errors": "--errors",
        f"staging={previews}/staging.before.yaml": "--settings-before",
    }
    assert (previews / "prod.before.yaml").read_text() == "old"
    assert "ended before Pulumi did" in (previews / "lost.errors").read_text()
    approved = ci.report_arguments(repository, base, previews, ["bug", "destructive"])
    assert approved == [*arguments, "--allow-destructive"]


def test_settings_before_include_what_they_extended(repository: Path, tmp_path: Path) -> None:
    def shared(scheduler: str) -> str:
        return yaml.safe_dump({"config": {f"{PREFIX}proxy": {"scheduler": scheduler}}})

    own = yaml.safe_dump({"config": {f"{PREFIX}extends": "common.yaml", f"{PREFIX}firewall": "open"}})
    base = commit(repository, Pulumi_prod_yaml=own, common_yaml=shared("rr"))
    commit(repository, common_yaml=shared("wrr"))
    previews = tmp_path / "previews"
    previews.mkdir()
    (previews / "prod.json").write_text("{}")
    ci.report_arguments(repository, base, previews, [])
    before = yaml.safe_load((previews / "prod.before.yaml").read_text())
    assert written(before["config"], repository) == {"proxy": {"scheduler": "rr"}, "firewall": "open"}


@pytest.mark.parametrize("broken", ["Pulumi_prod_yaml", "common_yaml"])
def test_fix_of_invalid_yaml_is_reported(repository: Path, tmp_path: Path, broken: str) -> None:
    good = {
        "Pulumi_prod_yaml": yaml.safe_dump({"config": {f"{PREFIX}extends": "common.yaml"}}),
        "common_yaml": yaml.safe_dump({"config": {f"{PREFIX}firewall": "open"}}),
    }
    base = commit(repository, **{**good, broken: "a: ["})
    commit(repository, **good)
    arguments = ci.report_arguments(repository, base, tmp_path, [])
    before = tmp_path / "prod.before.yaml"
    assert f"prod={before}" in arguments
    assert before.read_text() == ("a: [" if broken == "Pulumi_prod_yaml" else good["Pulumi_prod_yaml"])


def test_comment_is_updated_if_nothing_is_touched(
    repository: Path, tmp_path: Path, service: FakeForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in service.github().items():
        monkeypatch.setenv(name, value)
    base = service.head = git(repository, "rev-parse", "HEAD")
    assert ci.report(repository, base, base, tmp_path, []) == 0
    assert service.comments == []
    old = {"id": 1, "body": "<!-- kubeadm-ipvs: preview -->\nold", "user": {"login": "github-actions[bot]"}}
    service.comments.append(old)
    assert ci.report(repository, base, base, tmp_path, []) == 0
    assert "touches no environment" in service.comments[0]["body"]


@pytest.mark.parametrize("kind", ["github", "gitlab"])
@pytest.mark.parametrize("touches", [True, False])
def test_outdated_run_leaves_the_comment_alone(
    repository: Path,
    tmp_path: Path,
    service: FakeForge,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    touches: bool,
) -> None:
    for name, value in getattr(service, kind)().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # `tools report` runs in the checkout
    base = head = git(repository, "rev-parse", "HEAD")
    if touches:
        head = commit(repository, Pulumi_prod_yaml="2")
    service.head = "b" * 40
    who = {"user": GITHUB_BOT, "author": GITLAB_USER}
    service.comments.append({"id": 1, "body": "<!-- kubeadm-ipvs: preview -->\nof the newer head", **who})
    assert ci.report(repository, base, head, tmp_path, []) == (1 if touches else 0)
    assert service.writes == []
    output = capsys.readouterr().out
    assert head in output
    assert service.head in output


def test_update_is_refused_after_a_newer_change(
    repository: Path,
) -> None:
    approved = git(repository, "rev-parse", "HEAD")
    commit(repository, Pulumi_prod_yaml="2")
    git(repository, "switch", "--quiet", "--detach", approved)
    for stack in ("prod", "org/kubeadm-ipvs/prod"):
        with pytest.raises(UserError, match=r"main has a newer change of .*prod"):
            ci.up(repository, stack, "main")


def test_untouched_environment_isnt_previewed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    commit(repository, Pulumi_prod_yaml="2")
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    output = tmp_path / "previews"
    for stack in ("staging", "org/kubeadm-ipvs/staging"):
        assert main(["ci", "preview", "--stack", stack, "--output", str(output), "--since", base]) == 0
        assert f"doesn't touch {stack}" in capsys.readouterr().out
    assert not output.exists()


def finding(folder: Path, stack: str, status: int, text: str = "") -> None:
    (folder / f"{stack}.json").write_text(json.dumps({"status": status, "text": text}))


def test_drift_is_listed_by_environment_in_code_blocks(tmp_path: Path) -> None:
    finding(tmp_path, "prod", 2, "node1  swap on\n```\n# not a title\n")
    finding(tmp_path, "staging", 0)
    text, found = ci.drift_text(["prod", "staging"], tmp_path)
    assert found
    assert "## prod: drift\n\n    node1  swap on\n    ```\n    # not a title\n" in text
    assert "## staging: no drift" in text


@pytest.mark.parametrize("line", ["x" * 79 + "\n", "x" * 80], ids=["many lines", "one line"])
def test_long_drift_text_is_cut_per_environment(tmp_path: Path, line: str) -> None:
    finding(tmp_path, "prod", 2, line * 2500)
    finding(tmp_path, "qa", 2, "node1  swap on\n")
    finding(tmp_path, "staging", 1, line * 2500)
    text, found = ci.drift_text(["prod", "qa", "staging"], tmp_path)
    assert found
    assert len(text) <= MAX_CHARACTERS
    for title in ("prod: drift", "qa: drift", "staging: check incomplete"):
        assert f"## {title}\n" in text
    assert "## qa: drift\n\n    node1  swap on\n\n## staging" in text
    assert text.count("\n\nThe job's log has the rest.") == 2


@pytest.mark.parametrize("checked", [True, False])
def test_unchecked_hosts_count_as_drift(tmp_path: Path, checked: bool) -> None:
    if checked:
        finding(tmp_path, "prod", 1, "node1: no SSH server answers")
    text, found = ci.drift_text(["prod"], tmp_path)
    assert found
    assert "## prod: check incomplete" in text


def test_no_drift_needs_no_issue(tmp_path: Path) -> None:
    finding(tmp_path, "prod", 0)
    assert ci.drift_text(["prod"], tmp_path) == ("## prod: no drift\n", False)
