"""Image references, and copying images from a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from lab.artefacts import oci, registry
from lab.artefacts.registry import Name
from tests.fast.upstream_server import FakeUpstream


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("registry.k8s.io/kube-proxy:v1.37.2", Name("registry.k8s.io", "kube-proxy", "v1.37.2")),
        ("registry.k8s.io/coredns/coredns:v1.14.6", Name("registry.k8s.io", "coredns/coredns", "v1.14.6")),
        ("docker.io/library/nginx:1.29", Name("docker.io", "library/nginx", "1.29")),
        ("127.0.0.1:5000/a/b:c", Name("127.0.0.1:5000", "a/b", "c")),
    ],
)
def test_reference_is_split_into_its_parts(reference: str, expected: Name) -> None:
    assert Name.parse(reference) == expected


@pytest.mark.parametrize("reference", ["nginx", "docker.io/library/nginx", "nginx:1.29"])
def test_reference_without_registry_or_tag_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match="registry and tag"):
        Name.parse(reference)


def test_copy_hides_the_token_from_the_blob_host(fake: FakeUpstream, tmp_path: Path) -> None:
    layer = fake.add_image("coredns/coredns", "v1.14.6", b"content")
    layout = oci.Layout(tmp_path / "layout")
    reference = "registry.k8s.io/coredns/coredns:v1.14.6"
    registry.copy(registry.Client(fake.url), reference, layout)
    digest = layout.references()[reference]
    assert [part["digest"] for part in layout.manifest(digest)["layers"]] == [layer]
    assert layout.blob(layer).read_bytes() == b"contentamd64"
    assert (
        "/v2/coredns/coredns/manifests/v1.14.6",
        "Bearer for repository:coredns/coredns:pull",
    ) in fake.requests
    assert fake.blob_host is not None
    assert fake.blob_host.requests
    assert {token for _, token in fake.blob_host.requests} == {None}


def test_existing_blobs_are_not_downloaded_again(fake: FakeUpstream, tmp_path: Path) -> None:
    fake.add_image("pause", "3.10.2", b"content")
    layout = oci.Layout(tmp_path / "layout")
    for _ in range(2):
        registry.copy(registry.Client(fake.url), "registry.k8s.io/pause:3.10.2", layout)
    assert fake.blob_host is not None
    paths = [path for path, _ in fake.blob_host.requests]
    assert len(paths) == len(set(paths)) == 2


def test_corrupt_blob_is_refused_and_deleted(fake: FakeUpstream, tmp_path: Path) -> None:
    layer = fake.add_image("pause", "3.10.2", b"content")
    assert fake.blob_host is not None
    fake.blob_host.files[f"/v2/pause/blobs/{layer}"] = b"something else"
    layout = oci.Layout(tmp_path / "layout")
    with pytest.raises(UserError, match="doesn't match its digest"):
        registry.copy(registry.Client(fake.url), "registry.k8s.io/pause:3.10.2", layout)
    assert not layout.blob(layer).exists()
    assert not layout.references()
