"""A fake upstream on 127.0.0.1: a package repository and a container registry."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from common.progress import Progress
from lab.artefacts import aptrepo, oci, upstream
from lab.artefacts.debs import Deb, pack

PACKAGES = {
    "kubeadm": ("1.37.2-1.1", "1.37.3-1.1"),
    "kubelet": ("1.37.2-1.1",),
    "kubectl": ("1.37.2-1.1",),
    "cri-tools": ("1.36.0-1.1", "1.9.0-1.1"),
    "kubernetes-cni": ("1.7.1-1.1",),
}


@dataclass
class FakeUpstream:
    """What a fake upstream serves, and the requests it received.

    Attributes:
        files: Content by path. Other paths are not found.
        types: Media types by path.
        requests: The path and the Authorization header of each request.
        needs_token: Whether the registry requires a token.
        blob_host: The server to which requests for blobs are redirected.
        url: Its address.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    needs_token: bool = True
    blob_host: FakeUpstream | None = None
    url: str = ""

    def add_image(self, repository: str, tag: str, content: bytes) -> str:
        """Add an image for two architectures under one tag.

        Returns:
            The digest of the layer for amd64.
        """
        entries = []
        for architecture in ("arm64", "amd64"):
            layer = self._add_blob(repository, content + architecture.encode())
            config = self._add_blob(repository, json.dumps({"architecture": architecture}).encode())
            manifest = self._add_manifest(
                repository,
                {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": [layer]},
            )
            entries.append({**manifest, "platform": {"os": "linux", "architecture": architecture}})
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": entries}
        path = f"/v2/{repository}/manifests/{tag}"
        self.files[path], self.types[path] = json.dumps(index).encode(), oci.INDEX
        return str(layer["digest"])

    def _add_manifest(self, repository: str, manifest: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        path = f"/v2/{repository}/manifests/{digest}"
        self.files[path], self.types[path] = content, oci.MANIFEST
        return {"mediaType": oci.MANIFEST, "digest": digest, "size": len(content)}

    def _add_blob(self, repository: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        (self.blob_host or self).files[f"/v2/{repository}/blobs/{digest}"] = content
        return {"mediaType": oci.LAYER_ZSTD, "digest": digest, "size": len(content)}


def _handler(upstream: FakeUpstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            token = self.headers.get("Authorization")
            upstream.requests.append((url.path, token))
            if url.path == "/token":
                scope = parse_qs(url.query)["scope"][0]
                self.reply(200, json.dumps({"token": f"for {scope}"}).encode())
            elif url.path.startswith("/v2/") and upstream.needs_token and not token:
                realm = f'Bearer realm="{upstream.url}/token",service="test"'
                self.reply(401, b"", {"WWW-Authenticate": realm})
            elif url.path == "/v2/":
                self.reply(200, b"{}")
            elif upstream.blob_host and "/blobs/" in url.path:
                self.reply(307, b"", {"Location": f"{upstream.blob_host.url}{url.path}"})
            elif url.path in upstream.files:
                kind = upstream.types.get(url.path, "application/octet-stream")
                self.reply(200, upstream.files[url.path], {"Content-Type": kind})
            else:
                self.reply(404, b"")

        def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@contextmanager
def fake_upstream() -> Iterator[FakeUpstream]:
    """Run a fake upstream on 127.0.0.1 that keeps its blobs on a second server."""
    blobs = FakeUpstream(needs_token=False)
    upstream = FakeUpstream(blob_host=blobs)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(each)) for each in (blobs, upstream)]
    for each, server in zip((blobs, upstream), servers, strict=True):
        each.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield upstream
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def publish_packages(fake: FakeUpstream, tmp_path: Path) -> Path:
    """Publish a package repository at /v1.37/deb.

    Returns:
        The folder with its files.
    """
    folder = tmp_path / "published"
    (folder / "amd64").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    debs = [
        Deb(name, version, name.title(), {f"usr/bin/{name}": tmp_path / "file"})
        for name, versions in PACKAGES.items()
        for version in versions
    ]
    signer = aptrepo.Signer(Progress(quiet=True))
    aptrepo.write_index(folder, pack(debs, folder / "amd64"), "Upstream", signer)
    for path in folder.rglob("*"):
        if path.is_file():
            fake.files[f"/v1.37/deb/{path.relative_to(folder)}"] = path.read_bytes()
    return folder


def endpoints(fake: FakeUpstream) -> upstream.Endpoints:
    """The addresses of everything that the fake upstream serves."""
    return upstream.Endpoints(
        packages=f"{fake.url}/v{{minor}}/deb",
        registries=dict.fromkeys(("registry.k8s.io", "ghcr.io", "docker.io"), fake.url),
    )
