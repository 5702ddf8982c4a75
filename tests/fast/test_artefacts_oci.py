"""Image layers, manifests and archives: reproducible, without traces of the build environment."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from lab.artefacts import oci
from lab.artefacts.debs import Deb, pack


def unpacked(layout: oci.Layout, layer: oci.Layer) -> tarfile.TarFile:
    packed = layout.blob(layer.digest).read_bytes()
    content = subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(content))


def sample(program: Path, *, backwards: bool = False) -> oci.Tree:
    tree = oci.Tree()
    additions: list[Callable[[], None]] = [
        lambda: tree.file("usr/local/bin/program", program, 0o755),
        lambda: tree.file("etc/settings", b"a = 1\n"),
        lambda: tree.link("usr/local/bin/other", "program"),
        lambda: tree.folder("tmp", 0o1777),
    ]
    for add in reversed(additions) if backwards else additions:
        add()
    return tree


def test_layer_is_reproducible(tmp_path: Path) -> None:
    layers = []
    for number in (1, 2):
        program = tmp_path / f"{number}/program"
        program.parent.mkdir()
        program.write_bytes(b"\x7fELF" + bytes(100_000))
        os.utime(program, (number * 1000, number * 1000))
        layout = oci.Layout(tmp_path / f"layout{number}")
        layers.append(layout.add_layer(sample(program, backwards=number == 2)))
    assert layers[0] == layers[1]


def test_layer_has_root_owned_entries_in_order(tmp_path: Path) -> None:
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


def test_diff_id_is_the_uncompressed_digest(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"content")
    layout = oci.Layout(tmp_path / "layout")
    layer = layout.add_layer(sample(tmp_path / "program"))
    packed = layout.blob(layer.digest)
    unpacking = subprocess.run(["zstd", "-dc", packed], stdout=subprocess.PIPE, check=True).stdout
    assert layout.add(unpacking) == layer.diff_id
    assert layout.add(packed.read_bytes()) == layer.digest


def test_debian_files_move_to_usr_without_excluded_ones(tmp_path: Path) -> None:
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


def test_manifest_lists_existing_blobs_with_their_sizes(tmp_path: Path) -> None:
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


def test_archive_has_shared_layers_once_and_full_names(tmp_path: Path) -> None:
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


def test_reused_tag_replaces_the_earlier_image(tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / "layout")
    first = layout.add_image(image((), "registry.k8s.io/some:v1"))
    second = layout.add_image(oci.Image("registry.k8s.io/some:v1", (), version="v2", about="another"))
    assert first != second
    assert layout.references() == {"registry.k8s.io/some:v1": second}
