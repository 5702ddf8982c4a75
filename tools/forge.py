"""The one comment on a pull request and the one issue that CI keeps up to date, on GitHub or GitLab.

Both are found again by a marker at the start of their text, and only among what CI itself has written:
a marker in somebody else's text is not followed.

GitHub's REST API: https://docs.github.com/en/rest. GitLab's, version 4: https://docs.gitlab.com/api/rest/.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError

_TIMEOUT_SECONDS = 60
_PAGE = 100  # the most that either hands out at once


@dataclass(frozen=True)
class Texts:
    """The comments of a pull request, or the issues of a repository, in the words of a site's API."""

    path: str  # where they are listed, and new ones made
    one: str  # where one of them is changed, by its number
    number: str  # the field that holds it
    text: str  # the field that holds the text
    query: Mapping[str, str] = field(default_factory=dict)  # of the list
    new: Mapping[str, Any] = field(default_factory=dict)  # fields of a new one, besides the text
    closed: Mapping[str, str] = field(default_factory=dict)  # fields that close one


@dataclass(frozen=True)
class Forge:
    """The site that holds the repository, as far as CI writes there."""

    url: str
    header: tuple[str, str] = field(repr=False)  # with the token
    change: str  # the method that changes an entry
    author: tuple[
        str, str, str | int
    ]  # two fields of an entry, one in the other, and what CI's own has there
    comments: Texts
    issues: Texts
    request: str  # where the pull request is
    sha: tuple[str, ...]  # the fields, one in the other, that hold its head there

    def head(self) -> str:
        """The pull request's newest commit, as the site knows it now.

        :raises UserError: the site refuses or doesn't answer.
        """
        found: Any = _request(self.url, self.header, "GET", self.request)
        for name in self.sha:
            found = found[name]
        return str(found)

    def find(self, texts: Texts, marker: str) -> int | None:
        """The number of CI's own entry with the marker; None where there is none.

        :raises UserError: the site refuses or doesn't answer.
        """
        outer, inner, own = self.author
        for entry in self._all(texts):
            whose = (entry.get(outer) or {}).get(inner)
            if whose == own and (entry.get(texts.text) or "").startswith(_line(marker)):
                return int(entry[texts.number])
        return None

    def write(self, texts: Texts, marker: str, text: str, number: int | None, *, close: bool = False) -> None:
        """Write a new entry, or the one of that number anew.

        :raises UserError: the site refuses or doesn't answer.
        """
        body = {texts.text: f"{_line(marker)}\n{text}", **(texts.closed if close else {})}
        if number is None:
            _request(self.url, self.header, "POST", texts.path, {**texts.new, **body})
        else:
            _request(self.url, self.header, self.change, f"{texts.one}/{number}", body)

    def _all(self, texts: Texts) -> Iterator[Mapping[str, Any]]:
        page = 1
        while True:
            query = urllib.parse.urlencode({**texts.query, "per_page": _PAGE, "page": page})
            entries = _request(self.url, self.header, "GET", f"{texts.path}?{query}")
            yield from entries
            if len(entries) < _PAGE:
                return
            page += 1


def keep_comment(forge: Forge, text: str, *, only_update: bool = False) -> None:
    """Make `text` CI's one comment on the pull request.

    :param only_update: where there is no such comment, write none.
    :raises UserError: the site refuses or doesn't answer.
    """
    number = forge.find(forge.comments, "preview")
    if number is not None or not only_update:
        forge.write(forge.comments, "preview", text, number)


def keep_issue(forge: Forge, text: str, *, wanted: bool) -> None:
    """Make `text` the one open issue about drift; close it where none is wanted.

    :raises UserError: the site refuses or doesn't answer.
    """
    number = forge.find(forge.issues, "drift")
    if number is not None or wanted:
        forge.write(forge.issues, "drift", text, number, close=not wanted)


def _line(marker: str) -> str:
    return f"<!-- kubeadm-ipvs: {marker} -->"


def of_run(variables: Mapping[str, str]) -> Forge:
    """The site whose job this is, from the variables that it gives to one.

    :raises UserError: it is neither, or a variable that a workflow must pass is missing.
    """
    if "GITHUB_REPOSITORY" in variables:
        return _github(variables)
    if "CI_API_V4_URL" in variables:
        return _gitlab(variables)
    raise UserError("this is no job of GitHub's or GitLab's", "nothing is written from elsewhere")


def _github(variables: Mapping[str, str]) -> Forge:
    token = _token(variables, "GITHUB_TOKEN", "pass ${{ github.token }} in the step's env")
    repository = f"repos/{variables['GITHUB_REPOSITORY']}"
    return Forge(
        url=variables["GITHUB_API_URL"],
        header=("Authorization", f"Bearer {token}"),
        change="PATCH",
        author=("user", "login", "github-actions[bot]"),
        comments=Texts(
            path=f"{repository}/issues/{variables.get('PULL_REQUEST')}/comments",
            one=f"{repository}/issues/comments",
            number="id",
            text="body",
        ),
        issues=Texts(
            path=f"{repository}/issues",
            one=f"{repository}/issues",
            number="number",
            text="body",
            query={"state": "open", "labels": "drift"},
            new={"title": "Hosts are not as they were set up", "labels": ["drift"]},
            closed={"state": "closed"},
        ),
        request=f"{repository}/pulls/{variables.get('PULL_REQUEST')}",
        sha=("head", "sha"),
    )


def _gitlab(variables: Mapping[str, str]) -> Forge:
    token = _token(variables, "GITLAB_TOKEN", "make a project access token and put it into this CI variable")
    url, header = variables["CI_API_V4_URL"], ("PRIVATE-TOKEN", token)
    project = f"projects/{variables['CI_PROJECT_ID']}"
    request = f"{project}/merge_requests/{variables.get('CI_MERGE_REQUEST_IID')}"
    notes = f"{request}/notes"
    return Forge(
        url=url,
        header=header,
        change="PUT",
        # The token has a user of its own.
        author=("author", "id", _request(url, header, "GET", "user")["id"]),
        comments=Texts(path=notes, one=notes, number="id", text="body"),
        issues=Texts(
            path=f"{project}/issues",
            one=f"{project}/issues",
            number="iid",
            text="description",
            query={"state": "opened", "labels": "drift"},
            new={"title": "Hosts are not as they were set up", "labels": "drift"},
            closed={"state_event": "close"},
        ),
        request=request,
        sha=("sha",),
    )


def _token(variables: Mapping[str, str], name: str, next_move: str) -> str:
    if not variables.get(name):
        raise UserError(f"{name} isn't set", next_move)
    return variables[name]


def _request(
    url: str, header: tuple[str, str], method: str, path: str, body: Mapping[str, Any] | None = None
) -> Any:
    request = urllib.request.Request(
        f"{url.rstrip('/')}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={header[0]: header[1], "Content-Type": "application/json", "User-Agent": "kubeadm-ipvs"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{method} {path}: {error.code} {error.reason}",
            "may the token write here? docs/ci.md lists what each needs",
        ) from None
    except OSError as error:
        raise UserError(f"{method} {path}: {error}") from None
