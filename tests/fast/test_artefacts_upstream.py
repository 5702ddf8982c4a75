"""Downloading packages from upstream."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import upstream
from tests.fast.upstream_server import FakeUpstream, endpoints, publish_packages
from tests.local_ports import closed_port

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)


def fetch(fake: FakeUpstream, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "fetched"
    folder.mkdir()
    fetched = upstream.fetch_packages(endpoints(fake), "1.37.2", folder, QUIET)
    return {path.name: path.read_bytes() for path in fetched}


def test_reachable_upstream_has_no_problems(fake: FakeUpstream, tmp_path: Path) -> None:
    publish_packages(fake, tmp_path)
    assert upstream.probe(endpoints(fake), "1.37") == {}


def test_each_failing_address_is_reported_with_its_reason(fake: FakeUpstream) -> None:
    gone = f"http://127.0.0.1:{closed_port()}"
    ends = upstream.Endpoints(
        packages=f"{fake.url}/v{{minor}}/deb", registries={"ghcr.io": gone, "docker.io": fake.url}
    )
    problems = upstream.probe(ends, "1.37")
    assert problems == {
        f"{fake.url}/v1.37/deb/InRelease": "status 404",
        f"{gone}/v2/": "Connection refused",
    }
    assert upstream.summary({"https://a.io/v2/": "gone", "https://b.io/v2/": "gone"}) == "a.io, b.io: gone"


def test_silent_upstream_times_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        problems = upstream.probe(upstream.Endpoints(url, {"ghcr.io": url}), "1.37", timeout=0.2)
    assert len(problems) == 2
    assert all("timed out" in reason for reason in problems.values())


def test_release_packages_and_newest_others_are_downloaded(fake: FakeUpstream, tmp_path: Path) -> None:
    folder = publish_packages(fake, tmp_path)
    fetched = fetch(fake, tmp_path)
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
        (
            "Packages",
            b"Package: kubectl",
            b"Package: kubectI",
            "doesn't match the checksum in the signed InRelease",
        ),
        (
            "amd64/kubelet_1.37.2-1.1_amd64.deb",
            b"debian-binary",
            b"debian-BINARY",
            "doesn't match the checksum in the signed index",
        ),
    ],
)
def test_content_changed_in_transit_is_refused(
    fake: FakeUpstream, tmp_path: Path, path: str, old: bytes, new: bytes, message: str
) -> None:
    publish_packages(fake, tmp_path)
    content = fake.files[f"/v1.37/deb/{path}"]
    assert old in content
    fake.files[f"/v1.37/deb/{path}"] = content.replace(old, new)
    with pytest.raises(UserError, match=message):
        fetch(fake, tmp_path)


def test_release_missing_upstream_is_named(fake: FakeUpstream, tmp_path: Path) -> None:
    publish_packages(fake, tmp_path)
    with pytest.raises(UserError, match=r"kubeadm 1\.37\.9"):
        upstream.fetch_packages(endpoints(fake), "1.37.9", tmp_path, QUIET)
