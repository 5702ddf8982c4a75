"""What the workflows decide: which environments, which settings, what is said of drift."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from common.progress import Progress
from model.report import LIMIT_CHARACTERS
from model.settings import PREFIX, written
from tests.fast.forge_server import GITHUB_BOT, GITLAB_USER, Site, serving
from tools import ci, env, lint
from tools.engine import Tool
from tools.plugins import install

PROJECT = Path(__file__).resolve().parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx1BZx8x1Ch1v0mVRy2F1S7ZrYHn3bQJtY4Q5o1V8pK"


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false"]
    argv = ["git", *identity, *arguments]
    return subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, **files: str | None) -> str:
    """Write files (`None` removes one; `__` is a slash in a name, `_` a dot), and commit; the commit."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "change")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout with the environments prod and staging, the lab's stack, and another lab's file."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    (root / ".gitignore").write_text("/Pulumi.lab-*.yaml\n")
    (root / "Pulumi.lab-mine.yaml").write_text("config: {}\n")
    commit(root, Pulumi_yaml="name: a", Pulumi_dev_yaml="1", Pulumi_prod_yaml="1", Pulumi_staging_yaml="1")
    return root


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as site:
        yield site


def test_an_environment_is_a_committed_stack_that_is_no_labs(repository: Path) -> None:
    assert ci.environments(repository) == ["prod", "staging"]


def test_an_environment_may_have_a_dot_in_its_name(repository: Path) -> None:
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
def test_a_change_touches_the_environments_that_it_concerns(
    repository: Path, files: dict[str, str | None], expected: list[str]
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    commit(repository, **files)
    assert ci.touched(repository, base) == expected


def test_shared_code_that_moves_away_touches_all(repository: Path) -> None:
    base = commit(repository, manifests__a_yaml="a long enough text to be found as the same file\n")
    (repository / "docs").mkdir()
    git(repository, "mv", "manifests/a.yaml", "docs/a.yaml")
    commit(repository)
    assert ci.touched(repository, base) == ["prod", "staging"]


def test_what_only_the_base_branch_has_changed_touches_nothing(repository: Path) -> None:
    git(repository, "switch", "--quiet", "--create", "feature")
    commit(repository, Pulumi_staging_yaml="2")
    git(repository, "switch", "--quiet", "main")
    base = commit(repository, Pulumi_prod_yaml="2")
    git(repository, "switch", "--quiet", "feature")
    assert ci.touched(repository, base) == ["staging"]


@pytest.mark.parametrize("base", ["", "0" * 40, "1" * 40, "no-such-branch"])
def test_without_a_known_base_all_are_touched(repository: Path, base: str) -> None:
    assert ci.touched(repository, base) == ["prod", "staging"]


@pytest.mark.parametrize(
    "path",
    [
        *("components/cluster.py", "model/kubeadm.py", "scripts/lib.sh", "manifests/flannel.yaml"),
        *("Pulumi.yaml", "requirements.txt", "__main__.py", "policy/rules.py"),
    ],
)
def test_what_a_cluster_is_made_of_concerns_all(path: str) -> None:
    assert (PROJECT / path).exists()
    assert ci.concerns_all(path)


def test_what_is_said_to_concern_no_cluster_is_there() -> None:
    known = {str(path.relative_to(PROJECT)) for path in lint.project_files(PROJECT)}
    assert known >= ci.APART_FILES
    assert all(any(path.startswith(folder) for path in known) for folder in ci.APART_FOLDERS)


def stack_file(**changes: Any) -> str:
    hosts = [{"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": KEY}}]
    config = {"hosts": hosts, "ssh": {"privateKeyFile": "/nowhere/id", "knownHostsFile": "/nowhere/known"}}
    return json.dumps({"config": {f"kubeadm-ipvs:{name}": v for name, v in {**config, **changes}.items()}})


def test_settings_are_checked_without_the_keys_that_they_name(repository: Path) -> None:
    commit(repository, Pulumi_prod_yaml=stack_file())
    assert ci.settings_problems(repository, "prod") == []


def test_every_problem_of_the_settings_is_told(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = stack_file(proxy={"mode": "ipvz"}, ssh={"privateKeyFile": 5}, colour="red")
    commit(repository, Pulumi_prod_yaml=bad, Pulumi_staging_yaml=stack_file())
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    assert ci.main(["settings"]) == 1
    said = capsys.readouterr().out
    assert "Pulumi.staging.yaml: ok" in said
    for path in ("proxy.mode", "ssh.privateKeyFile", "colour"):
        assert f"  {path}: " in said


def test_a_stack_file_that_is_no_yaml_is_a_problem_of_its_own(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, Pulumi_prod_yaml="a: [", Pulumi_staging_yaml=stack_file())
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    assert ci.main(["settings"]) == 1
    said = capsys.readouterr().out
    assert "Pulumi.prod.yaml: 1 problems\n  is no YAML: while parsing" in said
    assert "Pulumi.staging.yaml: ok" in said


def test_the_errors_of_a_preview_are_its_own_words() -> None:
    plan = {
        "diagnostics": [{"message": "info", "severity": "info"}, {"message": "bad\n", "severity": "error"}]
    }
    assert ci.errors(json.dumps(plan, indent=4), "") == "bad\n"
    assert ci.errors("", "error: no stack named 'prod' found\n") == "error: no stack named 'prod' found\n"
    assert ci.errors("{\n half", "error: killed") == "error: killed\n"


def toolbox() -> env.Toolbox:
    tool = Tool("pulumi", "3", "PATH", Path("/usr/bin/pulumi"))
    return env.Toolbox(tool, tool, ())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A provider of this project's, which every run of this test has in place of Pulumi's own."""
    tool = Tool("pulumi-resource-command", "for 1", install.STAND_IN, Path("/cache/pulumi-resource-command"))
    monkeypatch.setattr(env, "toolbox", lambda *_, **__: replace(toolbox(), plugins=(tool,)))
    monkeypatch.delenv(ci.STAND_INS, raising=False)
    return tool


def test_no_environment_is_previewed_or_updated_by_a_stand_in(
    repository: Path, tmp_path: Path, stand_in: Tool
) -> None:
    for run in (
        lambda: ci.preview(repository, "prod", tmp_path / "previews"),
        lambda: ci.up(repository, "prod", "main"),
    ):
        with pytest.raises(UserError, match=r"pulumi-resource-command.*\n.*get\.pulumi\.com"):
            run()


def test_a_stand_in_serves_where_the_runner_allows_it(
    stand_in: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ci.STAND_INS, "1")
    assert ci.own_programs(Progress()).plugins == (stand_in,)


def test_pulumi_runs_with_the_jobs_state_and_without_secrets_that_are_not_set(
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


def test_without_a_place_of_the_state_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ci.STATE:
        monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match="PULUMI_BACKEND_URL nor PULUMI_ACCESS_TOKEN"):
        ci.pulumi_environment(toolbox())


def test_the_report_is_asked_for_with_what_each_preview_left(repository: Path, tmp_path: Path) -> None:
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
    meant = ci.report_arguments(repository, base, previews, ["bug", "destructive"])
    assert meant == [*arguments, "--allow-destructive"]


def test_the_settings_before_a_change_are_with_what_they_extended_then(
    repository: Path, tmp_path: Path
) -> None:
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
def test_a_change_that_mends_a_file_that_is_no_yaml_is_reported(
    repository: Path, tmp_path: Path, broken: str
) -> None:
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


def test_a_change_that_touches_no_environment_any_more_says_so_in_the_comment_that_is_there(
    repository: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in site.github().items():
        monkeypatch.setenv(name, value)
    base = site.head = git(repository, "rev-parse", "HEAD")
    assert ci.report(repository, base, base, tmp_path, []) == 0
    assert site.comments == []
    old = {"id": 1, "body": "<!-- kubeadm-ipvs: preview -->\nold", "user": {"login": "github-actions[bot]"}}
    site.comments.append(old)
    assert ci.report(repository, base, base, tmp_path, []) == 0
    assert "touches no environment" in site.comments[0]["body"]


@pytest.mark.parametrize("kind", ["github", "gitlab"])
@pytest.mark.parametrize("touches", [True, False])
def test_a_run_of_an_older_head_leaves_the_comment_alone_and_ends_with_its_status(
    repository: Path,
    tmp_path: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    touches: bool,
) -> None:
    for name, value in getattr(site, kind)().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # tools.report is started in the checkout's folder
    base = head = git(repository, "rev-parse", "HEAD")
    if touches:
        head = commit(repository, Pulumi_prod_yaml="2")
    site.head = "b" * 40
    who = {"user": GITHUB_BOT, "author": GITLAB_USER}
    site.comments.append({"id": 1, "body": "<!-- kubeadm-ipvs: preview -->\nof the newer head", **who})
    assert ci.report(repository, base, head, tmp_path, []) == (1 if touches else 0)
    assert site.writes == []
    said = capsys.readouterr().out
    assert head in said
    assert site.head in said


def test_an_approval_of_an_old_change_is_refused_while_a_newer_one_of_the_stack_is_there(
    repository: Path,
) -> None:
    approved = git(repository, "rev-parse", "HEAD")
    commit(repository, Pulumi_prod_yaml="2")
    git(repository, "switch", "--quiet", "--detach", approved)
    with pytest.raises(UserError, match="main holds a newer change of prod"):
        ci.up(repository, "prod", "main")


def test_an_environment_that_the_change_does_not_touch_is_left_out(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    commit(repository, Pulumi_prod_yaml="2")
    monkeypatch.setattr(ci, "project_dir", lambda: repository)
    output = tmp_path / "previews"
    assert ci.main(["preview", "--stack", "staging", "--output", str(output), "--since", base]) == 0
    assert "staging is not touched" in capsys.readouterr().out
    assert not output.exists()


def finding(folder: Path, stack: str, status: int, text: str = "") -> None:
    (folder / f"{stack}.json").write_text(json.dumps({"status": status, "text": text}))


def test_drift_is_told_for_each_environment_and_nothing_in_it_ends_the_block(tmp_path: Path) -> None:
    finding(tmp_path, "prod", 2, "node1  swap on\n```\n# not a title\n")
    finding(tmp_path, "staging", 0)
    text, found = ci.drift_text(["prod", "staging"], tmp_path)
    assert found
    assert "## prod: not as it was set up\n\n    node1  swap on\n    ```\n    # not a title\n" in text
    assert "## staging: as it was set up" in text


@pytest.mark.parametrize("line", ["x" * 79 + "\n", "x" * 80], ids=["many lines", "one line"])
def test_a_finding_that_no_issue_holds_is_cut_and_each_environment_named(tmp_path: Path, line: str) -> None:
    finding(tmp_path, "prod", 2, line * 2500)
    finding(tmp_path, "qa", 2, "node1  swap on\n")
    finding(tmp_path, "staging", 1, line * 2500)
    text, found = ci.drift_text(["prod", "qa", "staging"], tmp_path)
    assert found
    assert len(text) <= LIMIT_CHARACTERS
    for title in ("prod: not as it was set up", "qa: not as it was set up", "staging: not looked at wholly"):
        assert f"## {title}\n" in text
    assert "## qa: not as it was set up\n\n    node1  swap on\n\n## staging" in text
    assert text.count("\n\nThe job's log has the rest.") == 2


@pytest.mark.parametrize("looked", [True, False])
def test_hosts_that_were_not_looked_at_are_not_said_to_be_well(tmp_path: Path, looked: bool) -> None:
    if looked:
        finding(tmp_path, "prod", 1, "node1: no SSH server answers")
    text, found = ci.drift_text(["prod"], tmp_path)
    assert found
    assert "## prod: not looked at wholly" in text


def test_no_drift_anywhere_needs_no_issue(tmp_path: Path) -> None:
    finding(tmp_path, "prod", 0)
    assert ci.drift_text(["prod"], tmp_path) == ("## prod: as it was set up\n", False)
