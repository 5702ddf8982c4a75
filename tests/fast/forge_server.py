"""GitHub's and GitLab's REST API on this machine, as far as CI uses it.

A pull request's head, and comments and issues in lists.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "t0ken"
GITHUB_BOT = {"login": "github-actions[bot]"}
GITLAB_USER = {"id": 7}


@dataclass
class Site:
    """What the site holds; entries as its API shows them."""

    url: str = ""
    head: str = ""  # of the pull request, as it is now
    comments: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)  # method and path
    refuses: bool = False  # the token may not write

    def github(self, **more: str) -> dict[str, str]:
        """The variables of a job on GitHub."""
        return {
            "GITHUB_REPOSITORY": "me/cluster",
            "GITHUB_API_URL": self.url,
            "GITHUB_TOKEN": TOKEN,
            "PULL_REQUEST": "5",
            **more,
        }

    def gitlab(self, **more: str) -> dict[str, str]:
        """The variables of a job on GitLab."""
        return {
            "CI_API_V4_URL": self.url,
            "CI_PROJECT_ID": "3",
            "CI_MERGE_REQUEST_IID": "5",
            "GITLAB_TOKEN": TOKEN,
            **more,
        }


# Which list a path means, on either site; the last group is an entry's number.
_COMMENTS = re.compile(
    r"/repos/me/cluster/issues/(?:5/comments|comments/(\d+))|/projects/3/merge_requests/5/notes(?:/(\d+))?"
)
_ISSUES = re.compile(r"/(?:repos/me/cluster|projects/3)/issues(?:/(\d+))?")


@contextmanager
def serving() -> Iterator[Site]:
    """Serve a site while the block runs."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            given = str(self.headers.get("PRIVATE-TOKEN") or self.headers.get("Authorization"))
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            method = self.command
            if given.removeprefix("Bearer ") != TOKEN or (site.refuses and method != "GET"):
                return self._send(403, {"message": "Forbidden"})
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            if parts.path == "/user":
                return self._send(200, GITLAB_USER)
            if parts.path == "/repos/me/cluster/pulls/5":
                return self._send(200, {"number": 5, "head": {"sha": site.head}})
            if parts.path == "/projects/3/merge_requests/5":
                return self._send(200, {"iid": 5, "sha": site.head})
            own = {"author": GITLAB_USER} if "/projects/" in parts.path else {"user": GITHUB_BOT}
            entries = site.comments
            match = _COMMENTS.fullmatch(parts.path)
            if match is None:
                entries = site.issues
                match = _ISSUES.fullmatch(parts.path)
            if match is None:
                return self._send(404, {"message": "Not Found"})
            if method == "GET":
                size, page = int(query["per_page"][0]), int(query["page"][0])
                shown = [entry for entry in entries if entry.get("state", "open") not in ("closed", "close")]
                return self._send(200, shown[(page - 1) * size : page * size])
            site.writes.append(f"{method} {parts.path}")
            if method == "POST":
                new = len(entries) + 1
                entries.append({"id": 100 + new, "number": new, "iid": new, **own, **body})
                return self._send(201, entries[-1])
            key = "id" if entries is site.comments else "iid"
            entry = next(entry for entry in entries if entry[key] == int(match[match.lastindex or 0]))
            entry.update(body)
            if "state_event" in body:
                entry["state"] = body["state_event"]
            return self._send(200, entry)

        do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815 - the library's names

        def _send(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
