"""One comment and one issue, on either site, and only CI's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.errors import UserError
from tests.fast.forge_server import GITHUB_BOT, GITLAB_USER, TOKEN, Site, serving
from tools import forge

MARK = "<!-- kubeadm-ipvs: preview -->\n"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as site:
        yield site


@pytest.fixture(params=["github", "gitlab"])
def variables(request: pytest.FixtureRequest, site: Site) -> dict[str, str]:
    found: dict[str, str] = getattr(site, request.param)()
    return found


def author(variables: dict[str, str], *, own: bool = True) -> dict[str, object]:
    if "GITHUB_REPOSITORY" in variables:
        return {"user": GITHUB_BOT if own else {"login": "mallory"}}
    return {"author": GITLAB_USER if own else {"id": 8}}


def test_the_first_report_is_a_new_comment_and_the_next_ones_change_it(
    site: Site, variables: dict[str, str]
) -> None:
    for text in ("one", "two", "three"):
        forge.keep_comment(forge.of_run(variables), text)
    assert [comment["body"] for comment in site.comments] == [f"{MARK}three"]
    assert [write.split()[0] for write in site.writes[:1]] == ["POST"]


def test_a_comment_of_somebody_else_with_the_marker_is_left_alone(
    site: Site, variables: dict[str, str]
) -> None:
    site.comments.append({"id": 1, "body": f"{MARK}all is well", **author(variables, own=False)})
    forge.keep_comment(forge.of_run(variables), "two")
    assert [comment["body"] for comment in site.comments] == [f"{MARK}all is well", f"{MARK}two"]


def test_another_comment_of_the_same_bot_is_left_alone(site: Site, variables: dict[str, str]) -> None:
    site.comments.append({"id": 1, "body": f"it said: {MARK}", **author(variables)})
    forge.keep_comment(forge.of_run(variables), "two")
    assert len(site.comments) == 2


def test_the_comment_is_found_behind_a_hundred_others(site: Site, variables: dict[str, str]) -> None:
    site.comments += [{"id": n, "body": "+1", **author(variables, own=False)} for n in range(250)]
    site.comments.append({"id": 999, "body": MARK, **author(variables)})
    forge.keep_comment(forge.of_run(variables), "new")
    assert len(site.comments) == 251
    assert site.comments[-1]["body"] == f"{MARK}new"


def test_nothing_is_written_where_there_is_nothing_to_bring_up_to_date(
    site: Site, variables: dict[str, str]
) -> None:
    forge.keep_comment(forge.of_run(variables), "no environment", only_update=True)
    forge.keep_issue(forge.of_run(variables), "all well", wanted=False)
    assert site.writes == []


def test_drift_opens_one_issue_changes_it_and_closes_it_when_it_is_gone(
    site: Site, variables: dict[str, str]
) -> None:
    text = "description" if "CI_PROJECT_ID" in variables else "body"
    for found in ("swap is on", "swap is on, and a module is gone"):
        forge.keep_issue(forge.of_run(variables), found, wanted=True)
    [issue] = site.issues
    assert issue[text].endswith("a module is gone")
    assert issue["title"]
    assert "drift" in issue["labels"]
    forge.keep_issue(forge.of_run(variables), "all well", wanted=False)
    assert issue["state"] in ("closed", "close")
    forge.keep_issue(forge.of_run(variables), "swap is on again", wanted=True)
    assert len(site.issues) == 2


def test_the_head_of_the_pull_request_is_the_one_that_the_site_has_now(
    site: Site, variables: dict[str, str]
) -> None:
    site.head = "a" * 40
    assert forge.of_run(variables).head() == "a" * 40


def test_a_token_that_may_not_write_is_said_with_what_to_look_at_and_not_shown(
    site: Site, variables: dict[str, str]
) -> None:
    site.refuses = True
    with pytest.raises(UserError, match=r"403 Forbidden\n.*docs/ci\.md") as caught:
        forge.keep_comment(forge.of_run(variables), "one")
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(forge.of_run(variables))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no job of GitHub's or GitLab's"),
        ({"GITHUB_REPOSITORY": "me/cluster", "GITHUB_TOKEN": ""}, "GITHUB_TOKEN isn't set"),
        ({"CI_API_V4_URL": "http://127.0.0.1:1"}, "GITLAB_TOKEN isn't set"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        forge.of_run(given)


def test_a_site_that_does_not_answer_is_said() -> None:
    nobody = Site(url="http://127.0.0.1:1").github()
    with pytest.raises(UserError, match="GET repos/me/cluster/issues/5/comments"):
        forge.keep_comment(forge.of_run(nobody), "one")
