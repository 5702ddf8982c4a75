"""A fake forge on 127.0.0.1, with the parts of GitHub's and GitLab's REST APIs that CI uses."""

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
class FakeForge:
    """The forge's data, in the format of its API."""

    url: str = ""
    head: str = ""  # the pull request's current head commit
    comments: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)  # method and path
    read_only: bool = False  # whether the token lacks write access

    def github(self, **more: str) -> dict[str, str]:
        """A job's variables on GitHub."""
        return {
            "GITHUB_REPOSITORY": "me/cluster",
            "GITHUB_API_URL": self.url,
            "GITHUB_TOKEN": TOKEN,
            "PULL_REQUEST": "5",
            **more,
        }

    def gitlab(self, **more: str) -> dict[str, str]:
        """A job's variables on GitLab."""
        return {
            "CI_API_V4_URL": self.url,
            "CI_PROJECT_ID": "3",
            "CI_MERGE_REQUEST_IID": "5",
            "GITLAB_TOKEN": TOKEN,
            **more,
        }


# Paths of the lists and entries, for both APIs. The last group is an entry's number.
_COMMENTS = re.compile(
    r"/repos/me/cluster/issues/(?:5/comments|comments/(\d+))|/projects/3/merge_requests/5/notes(?:/(\d+))?"
)
_ISSUES = re.compile(r"/(?:repos/me/cluster|projects/3)/issues(?:/(\d+))?")


@contextmanager
def serving() -> Iterator[FakeForge]:
    """Run the server during the block."""
    forge = FakeForge()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            given = str(self.headers.get("PRIVATE-TOKEN") or self.headers.get("Authorization"))
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            method = self.command
            if given.removeprefix("Bearer ") != TOKEN or (forge.read_only and method != "GET"):
                return self._send(403, {"message": "Forbidden"})
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            if parts.path == "/user":
                return self._send(200, GITLAB_USER)
            if parts.path == "/repos/me/cluster/pulls/5":
                return self._send(200, {"number": 5, "head": {"sha": forge.head}})
            if parts.path == "/projects/3/merge_requests/5":
                return self._send(200, {"iid": 5, "sha": forge.head})
            own = {"author": GITLAB_USER} if "/projects/" in parts.path else {"user": GITHUB_BOT}
            entries = forge.comments
            match = _COMMENTS.fullmatch(parts.path)
            if match is None:
                entries = forge.issues
                match = _ISSUES.fullmatch(parts.path)
            if match is None:
                return self._send(404, {"message": "Not Found"})
            if method == "GET":
                size, page = int(query["per_page"][0]), int(query["page"][0])
                shown = [entry for entry in entries if entry.get("state", "open") not in ("closed", "close")]
                return self._send(200, shown[(page - 1) * size : page * size])
            forge.writes.append(f"{method} {parts.path}")
            if method == "POST":
                new = len(entries) + 1
                entries.append({"id": 100 + new, "number": new, "iid": new, **own, **body})
                return self._send(201, entries[-1])
            key = "id" if entries is forge.comments else "iid"
            entry = next(entry for entry in entries if entry[key] == int(match[match.lastindex or 0]))
            entry.update(body)
            if "state_event" in body:
                entry["state"] = body["state_event"]
            return self._send(200, entry)

        do_GET = do_POST = do_PATCH = do_PUT = _respond  # noqa: N815 - names from http.server

        def _send(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    forge.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield forge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
