"""Image layers, manifests and archives: the same bytes from the same input, and nothing of the machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from lab.artefacts import images, oci
from lab.artefacts.debs import Deb, pack
from lab.artefacts.registry import Name


def unpacked(layout: oci.Layout, layer: oci.Layer) -> tarfile.TarFile:
    packed = layout.blob(layer.digest).read_bytes()
    content = subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(content))


def sample(program: Path, *, backwards: bool = False) -> oci.Tree:
    tree = oci.Tree()
    work: list[Callable[[], None]] = [
        lambda: tree.file("usr/local/bin/program", program, 0o755),
        lambda: tree.file("etc/settings", b"a = 1\n"),
        lambda: tree.link("usr/local/bin/other", "program"),
        lambda: tree.folder("tmp", 0o1777),
    ]
    for step in reversed(work) if backwards else work:
        step()
    return tree


def test_a_layer_is_the_same_whatever_the_order_the_time_and_the_folder(tmp_path: Path) -> None:
    layers = []
    for number in (1, 2):
        program = tmp_path / f"{number}/program"
        program.parent.mkdir()
        program.write_bytes(b"\x7fELF" + bytes(100_000))
        os.utime(program, (number * 1000, number * 1000))
        layout = oci.Layout(tmp_path / f"layout{number}")
        layers.append(layout.add_layer(sample(program, backwards=number == 2)))
    assert layers[0] == layers[1]


def test_a_layers_entries_belong_to_root_have_no_time_and_their_parents_before_them(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"x")
    layout = oci.Layout(tmp_path / "layout")
    with unpacked(layout, layout.add_layer(sample(tmp_path / "program"))) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members} == {
        (0, 0, "", "", 0)
    }
    names = [member.name for member in members]
    assert names == sorted(names)
    for name in names:
        parent = str(Path(name).parent)
        assert parent == "." or parent in names
    modes = {member.name: member.mode for member in members}
    assert (modes["usr/local/bin/program"], modes["etc/settings"], modes["tmp"]) == (0o755, 0o644, 0o1777)


def test_a_layers_diff_id_is_the_digest_of_what_unpacking_gives(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"content")
    layout = oci.Layout(tmp_path / "layout")
    layer = layout.add_layer(sample(tmp_path / "program"))
    packed = layout.blob(layer.digest)
    unpacking = subprocess.run(["zstd", "-dc", packed], stdout=subprocess.PIPE, check=True).stdout
    assert layout.add(unpacking) == layer.diff_id
    assert layout.add(packed.read_bytes()) == layer.digest


def test_a_debian_packages_files_land_below_usr_and_without_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    paths = ("lib/x.so", "sbin/p", "usr/share/doc/some/c")
    deb = Deb("some", "1-1", "Some", dict.fromkeys(paths, tmp_path / "file"))
    tree = oci.Tree()
    tree.deb(pack([deb], tmp_path)[0], without=("usr/share/doc",))
    files = {path for path, entry in tree.entries.items() if entry.kind == tarfile.REGTYPE}
    assert files == {"usr/lib/x.so", "usr/sbin/p"}
    assert not [path for path in tree.entries if path.startswith("usr/share/doc")]


def image(layers: tuple[oci.Layer, ...], reference: str) -> oci.Image:
    return oci.Image(reference, layers, version="v1", about="a test", entrypoint=("/program",))


def test_a_manifest_names_blobs_that_are_there_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"content")
    layout = oci.Layout(tmp_path / "layout")
    layer = layout.add_layer(sample(tmp_path / "program"))
    digest = layout.add_image(image((layer,), "registry.k8s.io/some:v1"))
    manifest = layout.manifest(digest)
    for part in (manifest["config"], *manifest["layers"]):
        assert layout.blob(part["digest"]).stat().st_size == part["size"]
    config = json.loads(layout.blob(manifest["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [layer.diff_id]
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert config["config"]["Entrypoint"] == ["/program"]
    assert config["config"]["Labels"]["org.opencontainers.image.version"] == "v1"


def test_an_archive_has_shared_layers_once_and_the_images_full_names(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"content")
    layout = oci.Layout(tmp_path / "layout")
    layer = layout.add_layer(sample(tmp_path / "program"))
    names = ["registry.k8s.io/coredns/coredns:v1.14.6", "docker.io/library/nginx:1.29"]
    for name in [*names, "ghcr.io/not/wanted:1"]:
        layout.add_image(image((layer,), name))
    layout.write_archive(tmp_path / "images.tar", names)
    with tarfile.open(tmp_path / "images.tar") as archive:
        content = archive.getnames()
        index = archive.extractfile("index.json")
        assert index is not None
        entries = json.loads(index.read())["manifests"]
    assert content.count(f"blobs/{layer.digest.replace(':', '/')}") == 1
    assert {entry["annotations"]["io.containerd.image.name"] for entry in entries} == set(names)
    for entry in entries:
        assert f"blobs/{entry['digest'].replace(':', '/')}" in content


def test_a_tag_that_is_given_again_replaces_the_earlier_image(tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / "layout")
    first = layout.add_image(image((), "registry.k8s.io/some:v1"))
    second = layout.add_image(oci.Image("registry.k8s.io/some:v1", (), version="v2", about="another"))
    assert first != second
    assert layout.references() == {"registry.k8s.io/some:v1": second}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("registry.k8s.io/kube-proxy:v1.37.2", Name("registry.k8s.io", "kube-proxy", "v1.37.2")),
        ("registry.k8s.io/coredns/coredns:v1.14.6", Name("registry.k8s.io", "coredns/coredns", "v1.14.6")),
        ("docker.io/library/nginx:1.29", Name("docker.io", "library/nginx", "1.29")),
        ("127.0.0.1:5000/a/b:c", Name("127.0.0.1:5000", "a/b", "c")),
    ],
)
def test_a_mirror_is_asked_by_the_name_without_the_registry(reference: str, expected: Name) -> None:
    assert Name.parse(reference) == expected


@pytest.mark.parametrize("reference", ["nginx", "docker.io/library/nginx", "nginx:1.29"])
def test_a_reference_without_registry_or_tag_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match="registry and tag"):
        Name.parse(reference)


def test_a_release_whose_images_nobody_wrote_down_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="kubeadm config images list"):
        images.references("1.12.0")


def test_a_kubeadm_that_asks_for_another_image_is_found_before_anything_is_packed(tmp_path: Path) -> None:
    kubeadm = tmp_path / "kubeadm"
    kubeadm.write_text("#!/bin/sh\necho registry.k8s.io/pause:9.9\n")
    kubeadm.chmod(0o755)
    with pytest.raises(UserError, match=r"registry\.k8s\.io/pause:9\.9"):
        images.check_tags(kubeadm, "1.37.2")
