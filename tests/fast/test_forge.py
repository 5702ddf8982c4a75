"""The comment and the issue that CI keeps up to date on GitHub and GitLab."""

from __future__ import annotations

import pytest

from common.errors import UserError
from tests.fast.forge_server import GITHUB_BOT, GITLAB_USER, TOKEN, FakeForge
from tools import forge

MARK = "<!-- kubeadm-ipvs: preview -->\n"


@pytest.fixture(params=["github", "gitlab"])
def variables(request: pytest.FixtureRequest, service: FakeForge) -> dict[str, str]:
    found: dict[str, str] = getattr(service, request.param)()
    return found


def author(variables: dict[str, str], *, own: bool = True) -> dict[str, object]:
    if "GITHUB_REPOSITORY" in variables:
        return {"user": GITHUB_BOT if own else {"login": "mallory"}}
    return {"author": GITLAB_USER if own else {"id": 8}}


def test_comment_is_created_once_then_updated(service: FakeForge, variables: dict[str, str]) -> None:
    for text in ("one", "two", "three"):
        forge.keep_comment(forge.of_run(variables), text)
    assert [comment["body"] for comment in service.comments] == [f"{MARK}three"]
    assert [write.split()[0] == "POST" for write in service.writes] == [True, False, False]


def test_other_authors_comment_with_marker_is_left_alone(
    service: FakeForge, variables: dict[str, str]
) -> None:
    service.comments.append({"id": 1, "body": f"{MARK}no changes", **author(variables, own=False)})
    forge.keep_comment(forge.of_run(variables), "two")
    assert [comment["body"] for comment in service.comments] == [f"{MARK}no changes", f"{MARK}two"]


def test_bots_comment_without_leading_marker_is_left_alone(
    service: FakeForge, variables: dict[str, str]
) -> None:
    service.comments.append({"id": 1, "body": f"quoted: {MARK}", **author(variables)})
    forge.keep_comment(forge.of_run(variables), "two")
    assert len(service.comments) == 2


def test_comment_is_found_on_later_pages(service: FakeForge, variables: dict[str, str]) -> None:
    service.comments += [{"id": n, "body": "+1", **author(variables, own=False)} for n in range(250)]
    service.comments.append({"id": 999, "body": MARK, **author(variables)})
    forge.keep_comment(forge.of_run(variables), "new")
    assert len(service.comments) == 251
    assert service.comments[-1]["body"] == f"{MARK}new"


def test_nothing_is_created_if_not_wanted(service: FakeForge, variables: dict[str, str]) -> None:
    forge.keep_comment(forge.of_run(variables), "no environment", only_update=True)
    forge.keep_issue(forge.of_run(variables), "no drift", wanted=False)
    assert service.writes == []


def test_issue_is_opened_updated_and_closed(service: FakeForge, variables: dict[str, str]) -> None:
    text = "description" if "CI_PROJECT_ID" in variables else "body"
    for found in ("swap is on", "swap is on, and a module is gone"):
        forge.keep_issue(forge.of_run(variables), found, wanted=True)
    [issue] = service.issues
    assert issue[text].endswith("a module is gone")
    assert issue["title"]
    assert "drift" in issue["labels"]
    forge.keep_issue(forge.of_run(variables), "no drift", wanted=False)
    assert issue["state"] in ("closed", "close")
    forge.keep_issue(forge.of_run(variables), "swap is on again", wanted=True)
    assert len(service.issues) == 2


def test_head_is_read_from_the_service(service: FakeForge, variables: dict[str, str]) -> None:
    service.head = "a" * 40
    assert forge.of_run(variables).head() == "a" * 40


def test_read_only_token_is_reported_but_not_shown(service: FakeForge, variables: dict[str, str]) -> None:
    service.read_only = True
    with pytest.raises(UserError, match=r"403 Forbidden\n.*docs/ci\.md") as caught:
        forge.keep_comment(forge.of_run(variables), "one")
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(forge.of_run(variables))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "isn't a job on GitHub or GitLab"),
        ({"GITHUB_REPOSITORY": "me/cluster", "GITHUB_TOKEN": ""}, "GITHUB_TOKEN isn't set"),
        ({"CI_API_V4_URL": "http://127.0.0.1:1"}, "GITLAB_TOKEN isn't set"),
    ],
)
def test_missing_variables_are_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        forge.of_run(variables)


def test_unreachable_service_is_reported() -> None:
    unreachable = FakeForge(url="http://127.0.0.1:1").github()
    with pytest.raises(UserError, match="GET repos/me/cluster/issues/5/comments"):
        forge.keep_comment(forge.of_run(unreachable), "one")
