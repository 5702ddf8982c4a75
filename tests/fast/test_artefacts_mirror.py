"""Creating a mirror: downloading, building, pruning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import cache, gobuild
from common.errors import UserError
from common.progress import Progress
from lab.__main__ import mirror_text
from lab.artefacts import command, debian, images, mirror, registry, upstream
from lab.artefacts.debs import Deb, pack
from tests.fast.upstream_server import FakeUpstream, endpoints, publish_packages
from tests.local_ports import closed_port

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)


@pytest.fixture
def debian_with_one_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's mirror, reduced to one package."""
    folder = tmp_path / "debian"
    folder.mkdir()
    (tmp_path / "file").write_text("x")
    deb = pack([Deb("ipvsadm", "1.31-1", "Ipvsadm", {"usr/sbin/ipvsadm": tmp_path / "file"})], folder)

    def fetch(release: str, sets: dict[str, tuple[str, ...]], progress: Progress) -> debian.Packages:
        return debian.Packages(folder, dict.fromkeys(sets, deb))

    monkeypatch.setattr(debian, "fetch", fetch)


def publish_everything(fake: FakeUpstream, tmp_path: Path) -> None:
    publish_packages(fake, tmp_path)
    for reference in images.references("1.37.2").values():
        name = registry.Name.parse(reference)
        fake.add_image(name.repository, name.tag, reference.encode())


@pytest.mark.usefixtures("debian_with_one_package")
def test_auto_downloads_a_complete_upstream_once(fake: FakeUpstream, tmp_path: Path) -> None:
    publish_everything(fake, tmp_path)
    made = mirror.ensure_mirror(QUIET, "auto", endpoints=endpoints(fake))
    assert made.source == "upstream, because all of it is reachable"
    assert sorted(made.images) == sorted(images.references("1.37.2").values())
    names = {path.name for path in (made.root / "kubernetes/v1.37/deb/amd64").iterdir()}
    assert "kubelet_1.37.2-1.1_amd64.deb" in names
    assert (made.root / "debian/trixie/InRelease").exists()
    assert made.key.read_bytes() == (made.root / "kubernetes/v1.37/deb/Release.key").read_bytes()
    repositories = made.registry_data / "docker/registry/v2/repositories"
    assert (repositories / "coredns/coredns/_manifests/tags/v1.14.6/current/link").exists()
    assert [path.name for path in made.preload.iterdir()] == ["images.tar"]
    assert "registry.k8s.io/kube-proxy:v1.37.2" in mirror_text(made)
    fake.requests.clear()
    assert mirror.ensure_mirror(QUIET, "auto", endpoints=endpoints(fake)) == made
    assert not fake.requests, "a cached mirror needs no requests"


@pytest.mark.usefixtures("debian_with_one_package")
@pytest.mark.parametrize("fault", ["unreachable", "incomplete"])
def test_auto_builds_without_a_complete_upstream(
    fake: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    publish_packages(fake, tmp_path)  # but no images
    url = f"http://127.0.0.1:{closed_port()}"
    unreachable = upstream.Endpoints(url, {"ghcr.io": url})
    ends = unreachable if fault == "unreachable" else endpoints(fake)

    def build(target: gobuild.Target, progress: Progress) -> Path:
        raise UserError("build started")

    monkeypatch.setattr(gobuild, "build", build)
    monkeypatch.setattr(command, "check", lambda building: None)
    monkeypatch.setattr(images, "compile_pause", lambda target: None)
    log = tmp_path / "log"
    with log.open("w") as stream, pytest.raises(UserError, match="build started"):
        mirror.ensure_mirror(Progress(stream), "auto", endpoints=ends)
    (line,) = [line for line in log.read_text().splitlines() if "source: built" in line]
    assert ("isn't reachable" if fault == "unreachable" else "incomplete") in line


def fill(folder: Path) -> dict[str, str]:
    (folder / "file").write_text("content")
    return {}


def test_pruning_keeps_mirrors_in_use_and_newest_ones(tmp_path: Path) -> None:
    keys = [
        "1.37.2-trixie-built-01",
        "1.37.2-trixie-built-02",
        "1.37.2-trixie-built-03",
        "1.37.2-bookworm-built-04",
    ]
    folders = [cache.cached("mirror", key, QUIET, fill) for key in keys]
    for age, folder in enumerate(folders):
        os.utime(folder, (age, age))
    mirror.prune(QUIET, [folders[0] / "www", tmp_path / "elsewhere"])
    assert [folder.exists() for folder in folders] == [True, False, True, True]
