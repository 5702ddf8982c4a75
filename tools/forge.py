"""The comment on a pull request and the drift issue, which CI keeps up to date on GitHub or GitLab.

CI finds both by a marker at the start of their text, but only among its own entries. It ignores a marker that
anybody else wrote.

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
_PAGE_SIZE = 100  # the maximum of both APIs


@dataclass(frozen=True)
class Collection:
    """The comments of a pull request or the issues of a repository, in a service's API.

    Attributes:
        path: Where entries are listed and created.
        entry_path: Where an entry is changed; its number follows.
        number: The field with an entry's number.
        text: The field with its text.
        query: Query parameters of the list.
        new: Fields of a new entry, besides the text.
        closed: Fields that close an entry.
    """

    path: str
    entry_path: str
    number: str
    text: str
    query: Mapping[str, str] = field(default_factory=dict)
    new: Mapping[str, Any] = field(default_factory=dict)
    closed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Forge:
    """The service that hosts the repository.

    Attributes:
        url: The API's URL.
        header: The header with the token: name and value.
        change: The method that changes an entry.
        author: The nested fields that identify an entry's author, and their value for CI.
        comments: The pull request's comments.
        issues: The repository's issues.
        request: The path of the pull request.
        sha: The nested fields of the pull request with its head commit.
    """

    url: str
    header: tuple[str, str] = field(repr=False)
    change: str
    author: tuple[str, str, str | int]
    comments: Collection
    issues: Collection
    request: str
    sha: tuple[str, ...]

    def head(self) -> str:
        """The current head commit of the pull request.

        Raises:
            UserError: The service refuses the request or doesn't respond.
        """
        found: Any = _request(self.url, self.header, "GET", self.request)
        for name in self.sha:
            found = found[name]
        return str(found)

    def find(self, collection: Collection, marker: str) -> int | None:
        """The number of CI's own entry with the marker; None if there isn't one.

        Raises:
            UserError: The service refuses the request or doesn't respond.
        """
        outer, inner, own = self.author
        for entry in self._all(collection):
            author = (entry.get(outer) or {}).get(inner)
            if author == own and (entry.get(collection.text) or "").startswith(_line(marker)):
                return int(entry[collection.number])
        return None

    def write(
        self, collection: Collection, marker: str, text: str, number: int | None, *, close: bool = False
    ) -> None:
        """Create an entry, or change the one with this number.

        Raises:
            UserError: The service refuses the request or doesn't respond.
        """
        body = {collection.text: f"{_line(marker)}\n{text}", **(collection.closed if close else {})}
        if number is None:
            _request(self.url, self.header, "POST", collection.path, {**collection.new, **body})
        else:
            _request(self.url, self.header, self.change, f"{collection.entry_path}/{number}", body)

    def _all(self, collection: Collection) -> Iterator[Mapping[str, Any]]:
        page = 1
        while True:
            query = urllib.parse.urlencode({**collection.query, "per_page": _PAGE_SIZE, "page": page})
            entries = _request(self.url, self.header, "GET", f"{collection.path}?{query}")
            yield from entries
            if len(entries) < _PAGE_SIZE:
                return
            page += 1


def keep_comment(forge: Forge, text: str, *, only_update: bool = False) -> None:
    """Create or update CI's comment on the pull request.

    Args:
        forge: The service.
        text: The comment.
        only_update: Don't create a comment if there is none.

    Raises:
        UserError: The service refuses the request or doesn't respond.
    """
    number = forge.find(forge.comments, "preview")
    if number is not None or not only_update:
        forge.write(forge.comments, "preview", text, number)


def keep_issue(forge: Forge, text: str, *, wanted: bool) -> None:
    """Create or update the drift issue; close it unless it is `wanted`.

    Raises:
        UserError: The service refuses the request or doesn't respond.
    """
    number = forge.find(forge.issues, "drift")
    if number is not None or wanted:
        forge.write(forge.issues, "drift", text, number, close=not wanted)


def _line(marker: str) -> str:
    return f"<!-- kubeadm-ipvs: {marker} -->"


def of_run(variables: Mapping[str, str]) -> Forge:
    """The service that runs this job, from the job's variables.

    Raises:
        UserError: This isn't a job on GitHub or GitLab, or a variable that the workflow must set is missing.
    """
    if "GITHUB_REPOSITORY" in variables:
        return _github(variables)
    if "CI_API_V4_URL" in variables:
        return _gitlab(variables)
    raise UserError(
        "this isn't a job on GitHub or GitLab",
        "run it in a workflow; it writes comments and issues only there",
    )


def _github(variables: Mapping[str, str]) -> Forge:
    token = _token(variables, "GITHUB_TOKEN", "set it to ${{ github.token }} in the step's env")
    repository = f"repos/{variables['GITHUB_REPOSITORY']}"
    return Forge(
        url=variables["GITHUB_API_URL"],
        header=("Authorization", f"Bearer {token}"),
        change="PATCH",
        author=("user", "login", "github-actions[bot]"),
        comments=Collection(
            path=f"{repository}/issues/{variables.get('PULL_REQUEST')}/comments",
            entry_path=f"{repository}/issues/comments",
            number="id",
            text="body",
        ),
        issues=Collection(
            path=f"{repository}/issues",
            entry_path=f"{repository}/issues",
            number="number",
            text="body",
            query={"state": "open", "labels": "drift"},
            new={"title": "Hosts have drifted from their configuration", "labels": ["drift"]},
            closed={"state": "closed"},
        ),
        request=f"{repository}/pulls/{variables.get('PULL_REQUEST')}",
        sha=("head", "sha"),
    )


def _gitlab(variables: Mapping[str, str]) -> Forge:
    token = _token(variables, "GITLAB_TOKEN", "create a project access token and set it as this CI variable")
    url, header = variables["CI_API_V4_URL"], ("PRIVATE-TOKEN", token)
    project = f"projects/{variables['CI_PROJECT_ID']}"
    request = f"{project}/merge_requests/{variables.get('CI_MERGE_REQUEST_IID')}"
    notes = f"{request}/notes"
    return Forge(
        url=url,
        header=header,
        change="PUT",
        # The token belongs to its own user.
        author=("author", "id", _request(url, header, "GET", "user")["id"]),
        comments=Collection(path=notes, entry_path=notes, number="id", text="body"),
        issues=Collection(
            path=f"{project}/issues",
            entry_path=f"{project}/issues",
            number="iid",
            text="description",
            query={"state": "opened", "labels": "drift"},
            new={"title": "Hosts have drifted from their configuration", "labels": "drift"},
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
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{method} {path}: {error.code} {error.reason}",
            "check that the token has write access; docs/ci.md lists the permissions",
        ) from None
    except OSError as error:
        raise UserError(f"{method} {path}: {error}") from None
