"""Reads images from container registries, and fills the storage of the mirror's own registry."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import oci
from lab.artefacts.command import need
from lab.ports import LOOPBACK

_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_INDEXES = (oci.INDEX, _DOCKER_INDEX)
_ACCEPT = ", ".join((oci.MANIFEST, _DOCKER_MANIFEST, *_INDEXES))

_START_SECONDS = 30.0
_CONFIG = """\
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {data}
http:
  addr: {address}:{port}
"""


@dataclass(frozen=True)
class Name:
    """The parts of a full image reference."""

    registry: str  # registry.k8s.io
    repository: str  # coredns/coredns
    tag: str  # v1.14.6

    @classmethod
    def parse(cls, reference: str) -> Name:
        """Parse a reference.

        Raises:
            UserError: It lacks the registry or the tag.
        """
        found = re.fullmatch(r"([\w.-]+(?::\d+)?)/([\w./-]+):([\w.-]+)", reference)
        if not found:
            raise UserError(f"'{reference}' isn't an image reference with registry and tag")
        return cls(*found.groups())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to a blob's storage without sending the registry's token to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        hosts = {urllib.parse.urlsplit(url).netloc for url in (req.full_url, newurl)}
        if request is not None and len(hosts) > 1:
            request.remove_header("Authorization")
        return request


class Client:
    """Reads from a registry anonymously."""

    def __init__(self, base: str, *, timeout: float = 60.0) -> None:
        """Create a client. It connects on first use.

        Args:
            base: The registry's address, such as `https://registry.k8s.io`.
            timeout: How long to wait for each response, in seconds.
        """
        self._base = base.rstrip("/")
        self._timeout = timeout
        self._tokens: dict[str, str] = {}
        self._opener = urllib.request.build_opener(_Redirects)

    def open(self, path: str, repository: str = "", accept: str = "*/*") -> http.client.HTTPResponse:
        """Send a GET request, with an anonymous token if the registry requires one.

        Args:
            path: The path below the registry's address.
            repository: The repository that the token must cover.
            accept: The accepted media types.

        Raises:
            OSError: There is no response, or its status is an error. urllib's errors are subclasses.
        """
        request = urllib.request.Request(f"{self._base}{path}", headers={"Accept": accept})
        token = self._tokens.get(repository)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout)
            return response
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != 401 or token or not challenge.lower().startswith("bearer "):
                raise
        self._tokens[repository] = self._token(challenge, repository)
        return self.open(path, repository, accept)

    def _token(self, challenge: str, repository: str) -> str:
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        scope = parameters.get("scope", f"repository:{repository}:pull")
        query = urllib.parse.urlencode({"service": parameters.get("service", ""), "scope": scope})
        url = f"{parameters['realm']}?{query}"
        with self._opener.open(url, timeout=self._timeout) as response:
            answer = json.load(response)
        token: str = answer.get("token") or answer["access_token"]
        return token

    def manifest(self, repository: str, reference: str) -> tuple[str, bytes]:
        """Download a manifest. From an index, follow the entry for linux/amd64.

        Args:
            repository: The image's repository.
            reference: A tag or a digest. Content is verified against a digest.

        Returns:
            The manifest's media type and content.

        Raises:
            UserError: It can't be downloaded, or doesn't match its digest.
        """
        where = f"{self._base}/{repository}:{reference}"
        try:
            with self.open(f"/v2/{repository}/manifests/{reference}", repository, _ACCEPT) as response:
                media_type = response.headers.get_content_type()
                content = response.read()
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            raise UserError(f"{where}: the manifest can't be downloaded: {error}") from None
        if reference.startswith("sha256:") and f"sha256:{hashlib.sha256(content).hexdigest()}" != reference:
            raise UserError(f"{where}: the manifest doesn't match its digest")
        if media_type not in _INDEXES:
            return media_type, content
        for entry in json.loads(content)["manifests"]:
            platform = entry.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
                return self.manifest(repository, entry["digest"])
        raise UserError(f"{where} has no image for linux/amd64")

    def blob(self, repository: str, digest: str, target: Path) -> None:
        """Download a blob to a file, which appears complete and verified or not at all.

        Raises:
            UserError: It can't be downloaded, or doesn't match its digest.
        """
        draft = target.with_name(f".{target.name}.draft")
        sha256 = hashlib.sha256()
        try:
            opened = self.open(f"/v2/{repository}/blobs/{digest}", repository)
            with opened as response, draft.open("wb") as file:
                while block := response.read(1 << 20):
                    sha256.update(block)
                    file.write(block)
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            raise UserError(f"{self._base}/{repository}: {digest} can't be downloaded: {error}") from None
        if f"sha256:{sha256.hexdigest()}" != digest:
            draft.unlink()
            raise UserError(f"{self._base}/{repository}: the blob {digest} doesn't match its digest")
        draft.rename(target)


def copy(client: Client, reference: str, layout: oci.Layout) -> None:
    """Copy an image for linux/amd64 to a layout. Blobs that the layout already has aren't downloaded.

    Raises:
        UserError: Part of the image can't be downloaded.
    """
    name = Name.parse(reference)
    media_type, content = client.manifest(name.repository, name.tag)
    digest = layout.add(content)
    for blob in layout.blobs_of(digest):
        target = layout.blob(blob)
        if not target.exists():
            client.blob(name.repository, blob, target)
    layout.tag(reference, media_type, digest, len(content))


@contextlib.contextmanager
def serving(data: Path) -> Iterator[tuple[str, int]]:
    """Serve a storage folder with docker-registry, writable, on a free port of 127.0.0.1.

    Yields:
        The address and port.

    Raises:
        UserError: docker-registry isn't installed or doesn't start.
    """
    program = need("docker-registry")
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        config, log = Path(name) / "config.yaml", Path(name) / "log"
        port = _free_port()
        config.write_text(_CONFIG.format(data=data, address=LOOPBACK, port=port))
        with log.open("wb") as output:
            # Environment variables named REGISTRY_* would override the configuration.
            environment = {key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")}
            process = subprocess.Popen(
                [program, "serve", str(config)], stdout=output, stderr=output, env=environment
            )
        try:
            _wait_until_ready(process, port, log)
            yield LOOPBACK, port
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            _request((LOOPBACK, port), "GET", "/v2/", (200,))
            return
        except (OSError, http.client.HTTPException):
            if process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise UserError(f"docker-registry didn't start on {LOOPBACK}:{port}:\n{last}") from None
            time.sleep(0.05)


def _request(
    address: tuple[str, int],
    method: str,
    path: str,
    expected: Sequence[int],
    body: bytes | IO[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status not in expected:
        detail = content[:500].decode(errors="replace")
        raise UserError(f"docker-registry returned status {response.status} for {method} {path}: {detail}")
    return response


def _push_blob(address: tuple[str, int], repository: str, digest: str, source: Path) -> None:
    started = _request(address, "POST", f"/v2/{repository}/blobs/uploads/", (202,))
    location = urllib.parse.urlsplit(started.headers["Location"])
    query = f"{location.query}&" if location.query else ""
    path = f"{location.path}?{query}digest={urllib.parse.quote(digest)}"
    headers = {"Content-Length": str(source.stat().st_size), "Content-Type": "application/octet-stream"}
    with source.open("rb") as file:
        _request(address, "PUT", path, (201,), file, headers)


def push(layout: oci.Layout, reference: str, address: tuple[str, int], pushed: set[tuple[str, str]]) -> None:
    """Push an image to a registry over HTTP, under its name without the upstream registry.

    Args:
        layout: Holds the image.
        reference: The image's full upstream reference.
        address: The registry's address and port.
        pushed: Repository and digest of all blobs that the registry has. New ones are added.

    Raises:
        UserError: The registry rejects a request.
    """
    name = Name.parse(reference)
    digest = layout.references()[reference]
    for blob in layout.blobs_of(digest):
        if (name.repository, blob) not in pushed:
            _push_blob(address, name.repository, blob, layout.blob(blob))
            pushed.add((name.repository, blob))
    manifest = layout.blob(digest).read_bytes()
    media_type = json.loads(manifest).get("mediaType", oci.MANIFEST)
    path = f"/v2/{name.repository}/manifests/{name.tag}"
    _request(address, "PUT", path, (201,), manifest, {"Content-Type": media_type})


def fill(layout: oci.Layout, data: Path, progress: Progress) -> None:
    """Fill docker-registry's storage folder with all images of a layout.

    Raises:
        UserError: docker-registry isn't installed, doesn't start, or rejects an image.
    """
    data.mkdir(parents=True, exist_ok=True)
    with progress.step("filling the registry"), serving(data) as address:
        pushed: set[tuple[str, str]] = set()

        def push_one(reference: str) -> None:
            try:
                push(layout, reference, address, pushed)
            except (OSError, http.client.HTTPException) as error:
                raise UserError(f"{reference} can't be pushed to docker-registry: {error}") from None

        _for_each(push_one, sorted(layout.references()))


def _for_each(work: Callable[[str], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        for future in [pool.submit(work, name) for name in names]:
            future.result()
