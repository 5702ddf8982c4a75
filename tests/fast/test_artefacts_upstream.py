"""Taking packages and images from upstream, tried against a small upstream of our own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import aptrepo, command, debian, gobuild, images, mirror, oci, registry, upstream
from lab.artefacts.debs import Deb, pack

QUIET = Progress(quiet=True)
PACKAGES = {
    "kubeadm": ("1.37.2-1.1", "1.37.3-1.1"),
    "kubelet": ("1.37.2-1.1",),
    "kubectl": ("1.37.2-1.1",),
    "cri-tools": ("1.36.0-1.1", "1.9.0-1.1"),
    "kubernetes-cni": ("1.7.1-1.1",),
}


@dataclass
class Upstream:
    """Answers by path; a path that isn't there is a 404."""

    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Authorization
    needs_token: bool = True
    other: Upstream | None = None  # where blobs lie
    url: str = ""

    def add_image(self, repository: str, tag: str, content: bytes) -> str:
        """An image for two architectures behind one tag; returns the digest of the amd64 one's layer."""
        entries = []
        for architecture in ("arm64", "amd64"):
            layer = self.blob(repository, content + architecture.encode())
            config = self.blob(repository, json.dumps({"architecture": architecture}).encode())
            manifest = self.manifest(
                repository,
                {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": [layer]},
            )
            entries.append({**manifest, "platform": {"os": "linux", "architecture": architecture}})
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": entries}
        path = f"/v2/{repository}/manifests/{tag}"
        self.files[path], self.types[path] = json.dumps(index).encode(), oci.INDEX
        return str(layer["digest"])

    def manifest(self, repository: str, manifest: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        path = f"/v2/{repository}/manifests/{digest}"
        self.files[path], self.types[path] = content, oci.MANIFEST
        return {"mediaType": oci.MANIFEST, "digest": digest, "size": len(content)}

    def blob(self, repository: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        (self.other or self).files[f"/v2/{repository}/blobs/{digest}"] = content
        return {"mediaType": oci.LAYER_ZSTD, "digest": digest, "size": len(content)}


def handler(answers: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            token = self.headers.get("Authorization")
            answers.asked.append((url.path, token))
            if url.path == "/token":
                scope = parse_qs(url.query)["scope"][0]
                self.reply(200, json.dumps({"token": f"for {scope}"}).encode())
            elif url.path.startswith("/v2/") and answers.needs_token and not token:
                realm = f'Bearer realm="{answers.url}/token",service="test"'
                self.reply(401, b"", {"WWW-Authenticate": realm})
            elif url.path == "/v2/":
                self.reply(200, b"{}")
            elif answers.other and "/blobs/" in url.path:
                self.reply(307, b"", {"Location": f"{answers.other.url}{url.path}"})
            elif url.path in answers.files:
                kind = answers.types.get(url.path, "application/octet-stream")
                self.reply(200, answers.files[url.path], {"Content-Type": kind})
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


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def places() -> Iterator[Upstream]:
    """An upstream whose blobs lie on another host."""
    stores = Upstream(needs_token=False)
    answers = Upstream(other=stores)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(each)) for each in (stores, answers)]
    for each, server in zip((stores, answers), servers, strict=True):
        each.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield answers
    for server in servers:
        server.shutdown()
        server.server_close()


def packages(places: Upstream, tmp_path: Path) -> Path:
    """Publish a package repository below /v1.37/deb; returns its folder."""
    folder = tmp_path / "published"
    (folder / "amd64").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    debs = [
        Deb(name, version, name.title(), {f"usr/bin/{name}": tmp_path / "file"})
        for name, versions in PACKAGES.items()
        for version in versions
    ]
    aptrepo.write_index(folder, pack(debs, folder / "amd64"), "Upstream", aptrepo.Signer(QUIET))
    publish(places, folder)
    return folder


def publish(places: Upstream, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            places.files[f"/v1.37/deb/{path.relative_to(folder)}"] = path.read_bytes()


def endpoints(places: Upstream) -> upstream.Endpoints:
    return upstream.Endpoints(
        packages=f"{places.url}/v{{minor}}/deb",
        registries=dict.fromkeys(("registry.k8s.io", "ghcr.io", "docker.io"), places.url),
    )


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(places: Upstream, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "fetched"
    folder.mkdir()
    fetched = upstream.fetch_packages(endpoints(places), "1.37.2", folder, QUIET)
    return {path.name: path.read_bytes() for path in fetched}


def test_an_upstream_that_answers_everywhere_has_no_problem(places: Upstream, tmp_path: Path) -> None:
    packages(places, tmp_path)
    assert upstream.probe(endpoints(places), "1.37") == {}


def test_each_place_that_does_not_answer_is_named_with_the_reason(places: Upstream) -> None:
    gone = f"http://127.0.0.1:{closed_port()}"
    ends = upstream.Endpoints(
        packages=f"{places.url}/v{{minor}}/deb", registries={"ghcr.io": gone, "docker.io": places.url}
    )
    problems = upstream.probe(ends, "1.37")
    assert problems == {
        f"{places.url}/v1.37/deb/InRelease": "status 404",
        f"{gone}/v2/": "Connection refused",
    }
    assert upstream.in_words({"https://a.io/v2/": "gone", "https://b.io/v2/": "gone"}) == "a.io, b.io: gone"


def test_an_upstream_that_accepts_and_says_nothing_is_given_up_after_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        problems = upstream.probe(upstream.Endpoints(url, {"ghcr.io": url}), "1.37", timeout=0.2)
    assert len(problems) == 2
    assert all("timed out" in reason for reason in problems.values())


def test_the_releases_packages_and_the_newest_of_the_rest_are_fetched(
    places: Upstream, tmp_path: Path
) -> None:
    folder = packages(places, tmp_path)
    fetched = fetch(places, tmp_path)
    assert sorted(fetched) == [
        "cri-tools_1.36.0-1.1_amd64.deb",
        "kubeadm_1.37.2-1.1_amd64.deb",
        "kubectl_1.37.2-1.1_amd64.deb",
        "kubelet_1.37.2-1.1_amd64.deb",
        "kubernetes-cni_1.7.1-1.1_amd64.deb",
    ]
    for name, content in fetched.items():
        assert content == (folder / "amd64" / name).read_bytes()


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("InRelease", b"Upstream", b"Downstream", "verifying the signature"),
        ("Packages", b"Package: kubectl", b"Package: kubectI", "isn't what its signed Release says"),
        (
            "amd64/kubelet_1.37.2-1.1_amd64.deb",
            b"debian-binary",
            b"debian-BINARY",
            "isn't what the signed index",
        ),
    ],
)
def test_what_was_changed_on_the_way_is_refused(
    places: Upstream, tmp_path: Path, path: str, old: bytes, new: bytes, message: str
) -> None:
    packages(places, tmp_path)
    content = places.files[f"/v1.37/deb/{path}"]
    assert old in content
    places.files[f"/v1.37/deb/{path}"] = content.replace(old, new)
    with pytest.raises(UserError, match=message):
        fetch(places, tmp_path)


def test_a_release_that_upstream_does_not_have_is_named(places: Upstream, tmp_path: Path) -> None:
    packages(places, tmp_path)
    with pytest.raises(UserError, match=r"kubeadm 1\.37\.9"):
        upstream.fetch_packages(endpoints(places), "1.37.9", tmp_path, QUIET)


def test_an_image_is_copied_for_amd64_with_a_token_that_its_blobs_host_never_sees(
    places: Upstream, tmp_path: Path
) -> None:
    layer = places.add_image("coredns/coredns", "v1.14.6", b"content")
    layout = oci.Layout(tmp_path / "layout")
    reference = "registry.k8s.io/coredns/coredns:v1.14.6"
    registry.copy(registry.Client(places.url), reference, layout)
    digest = layout.references()[reference]
    assert [part["digest"] for part in layout.manifest(digest)["layers"]] == [layer]
    assert layout.blob(layer).read_bytes() == b"contentamd64"
    assert (
        "/v2/coredns/coredns/manifests/v1.14.6",
        "Bearer for repository:coredns/coredns:pull",
    ) in places.asked
    assert places.other is not None
    assert places.other.asked
    assert {token for _, token in places.other.asked} == {None}


def test_blobs_that_are_there_are_not_fetched_again(places: Upstream, tmp_path: Path) -> None:
    places.add_image("pause", "3.10.2", b"content")
    layout = oci.Layout(tmp_path / "layout")
    for _ in range(2):
        registry.copy(registry.Client(places.url), "registry.k8s.io/pause:3.10.2", layout)
    assert places.other is not None
    paths = [path for path, _ in places.other.asked]
    assert len(paths) == len(set(paths)) == 2


def test_a_blob_that_is_not_what_its_digest_says_is_refused_and_not_kept(
    places: Upstream, tmp_path: Path
) -> None:
    layer = places.add_image("pause", "3.10.2", b"content")
    assert places.other is not None
    places.other.files[f"/v2/pause/blobs/{layer}"] = b"something else"
    layout = oci.Layout(tmp_path / "layout")
    with pytest.raises(UserError, match="isn't what the digest says"):
        registry.copy(registry.Client(places.url), "registry.k8s.io/pause:3.10.2", layout)
    assert not layout.blob(layer).exists()
    assert not layout.references()


@pytest.fixture
def little_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's mirror isn't what is tested here."""
    folder = tmp_path / "debian"
    folder.mkdir()
    (tmp_path / "file").write_text("x")
    deb = pack([Deb("ipvsadm", "1.31-1", "Ipvsadm", {"usr/sbin/ipvsadm": tmp_path / "file"})], folder)

    def fetched(release: str, sets: dict[str, tuple[str, ...]], progress: Progress) -> debian.Packages:
        return debian.Packages(folder, dict.fromkeys(sets, deb))

    monkeypatch.setattr(debian, "fetch", fetched)


def publish_all(places: Upstream, tmp_path: Path) -> None:
    packages(places, tmp_path)
    for reference in images.references("1.37.2").values():
        name = registry.Name.parse(reference)
        places.add_image(name.repository, name.tag, reference.encode())


@pytest.mark.usefixtures("little_debian")
def test_auto_takes_a_reachable_upstream_whole_says_so_and_stays_with_it(
    places: Upstream, tmp_path: Path
) -> None:
    publish_all(places, tmp_path)
    made = mirror.ensure_mirror(QUIET, "auto", endpoints=endpoints(places))
    assert made.source == "upstream, since all of it can be reached"
    assert sorted(made.images) == sorted(images.references("1.37.2").values())
    names = {path.name for path in (made.root / "kubernetes/v1.37/deb/amd64").iterdir()}
    assert "kubelet_1.37.2-1.1_amd64.deb" in names
    assert (made.root / "debian/trixie/InRelease").exists()
    assert made.key.read_bytes() == (made.root / "kubernetes/v1.37/deb/Release.key").read_bytes()
    repositories = made.registry_data / "docker/registry/v2/repositories"
    assert (repositories / "coredns/coredns/_manifests/tags/v1.14.6/current/link").exists()
    assert [path.name for path in made.preload.iterdir()] == ["images.tar"]
    assert "registry.k8s.io/kube-proxy:v1.37.2" in mirror.table(made)
    places.asked.clear()
    assert mirror.ensure_mirror(QUIET, "auto", endpoints=endpoints(places)) == made
    assert not places.asked, "what is in the cache needs nobody to be asked"


@pytest.mark.usefixtures("little_debian")
@pytest.mark.parametrize("fault", ["unreachable", "incomplete"])
def test_auto_builds_when_upstream_cannot_give_everything_and_says_why(
    places: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    packages(places, tmp_path)  # but no image
    gone = f"http://127.0.0.1:{closed_port()}"
    ends = upstream.Endpoints(gone, {"ghcr.io": gone}) if fault == "unreachable" else endpoints(places)

    def build(target: gobuild.Target, progress: Progress) -> Path:
        raise UserError("building has begun")

    monkeypatch.setattr(gobuild, "build", build)
    monkeypatch.setattr(command, "check", lambda building: None)
    monkeypatch.setattr(images, "compile_pause", lambda target: None)
    said = tmp_path / "said"
    with said.open("w") as stream, pytest.raises(UserError, match="building has begun"):
        mirror.ensure_mirror(Progress(stream), "auto", endpoints=ends)
    (line,) = [line for line in said.read_text().splitlines() if "source: built" in line]
    assert ("can't be reached" if fault == "unreachable" else "doesn't give everything") in line


def test_missing_programs_are_named_by_their_packages_before_the_work_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "find", lambda name: None if name in ("gcc", "zstd") else f"/usr/bin/{name}")
    with pytest.raises(UserError, match=r"apt install zstd gcc libc6-dev"):
        command.check(building=True)
    with pytest.raises(UserError, match=r"apt install zstd$"):
        command.check(building=False)
