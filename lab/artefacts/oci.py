"""Container images as files: layers, manifests and archives, the same bytes from the same input.

The image layout is the one of the Open Container Initiative: `blobs/sha256/<digest>`,
`index.json`. Layers are compressed by zstd, which an emulated host unpacks several times
faster than gzip.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.errors import UserError
from lab.artefacts.command import need

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

_LEVEL = "-3"


@dataclass(frozen=True)
class Entry:
    """One file, folder or link of a layer; owned by root, without a time."""

    kind: bytes  # as in tarfile: REGTYPE, DIRTYPE, SYMTYPE
    mode: int
    source: Path | bytes = b""  # a file's content
    target: str = ""  # where a symbolic link points


class Tree:
    """The files of a layer, by their paths without a leading slash."""

    # Debian has these as links into /usr. Packages of older releases still name the old places.
    MERGED = ("bin", "sbin", "lib", "lib64")

    def __init__(self) -> None:
        """Begin without any file."""
        self.entries: dict[str, Entry] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self._add(path, Entry(tarfile.DIRTYPE, mode))

    def file(self, path: str, source: Path | bytes, mode: int = 0o644) -> None:
        """Add a file with the content of another, or with the bytes given."""
        self._add(path, Entry(tarfile.REGTYPE, mode, source=source))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, Entry(tarfile.SYMTYPE, 0o777, target=target))

    def _add(self, path: str, entry: Entry) -> None:
        clean = str(PurePosixPath(path)).lstrip("/")
        for parent in reversed(PurePosixPath(clean).parents):
            name = str(parent)
            if name != "." and name not in self.entries:
                self.entries[name] = Entry(tarfile.DIRTYPE, 0o755)
        self.entries[clean] = entry

    def deb(self, package: Path, *, without: Sequence[str]) -> None:
        """Add the files of a Debian package.

        :param without: folders (`usr/share/doc`) that are left out.
        :raises UserError: the package can't be read.
        """
        done = subprocess.run([need("dpkg-deb"), "--fsys-tarfile", package], capture_output=True, check=False)
        if done.returncode != 0:
            raise UserError(f"{package} can't be unpacked: {done.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            for member in archive:
                path = self._merged(str(PurePosixPath(member.name)).removeprefix("./"))
                if path in (".", "") or any(path == name or path.startswith(f"{name}/") for name in without):
                    continue
                if member.isdir():
                    self.entries.setdefault(path, Entry(tarfile.DIRTYPE, 0o755))
                elif member.issym():
                    self.link(path, member.linkname)
                elif member.isreg() or member.islnk():
                    content = archive.extractfile(member)
                    if content is None:
                        raise UserError(f"{package} holds a hard link to nothing: {member.name}")
                    self.file(path, content.read(), member.mode & 0o7777)
                else:
                    raise UserError(f"{package} holds a device or a pipe: {member.name}")

    def _merged(self, path: str) -> str:
        first = path.split("/", 1)[0]
        return f"usr/{path}" if first in self.MERGED else path

    def write(self, out: IO[bytes]) -> None:
        """Write a tar archive: sorted by path, without anything of the time or the machine."""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for path, entry in sorted(self.entries.items()):
                info = tarfile.TarInfo(path)
                info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.target
                if isinstance(entry.source, bytes):
                    info.size = len(entry.source)
                    archive.addfile(info, io.BytesIO(entry.source))
                else:
                    info.size = entry.source.stat().st_size
                    with entry.source.open("rb") as file:
                        archive.addfile(info, file)


@dataclass(frozen=True)
class Layer:
    """A layer that lies in a layout."""

    digest: str  # of the compressed archive
    size: int
    diff_id: str  # of the archive before compression


@dataclass(frozen=True)
class Image:
    """What an image is made of."""

    reference: str  # with registry and tag, such as registry.k8s.io/pause:3.10.2
    layers: tuple[Layer, ...]
    version: str  # what is really in it, for the label
    about: str  # where it comes from, for the label
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class _Hashing(io.RawIOBase):
    """Passes on what is written, and hashes it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._out.write(data)


class Layout:
    """A folder in the image layout."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made if it isn't there."""
        self.folder = folder
        self._blobs = folder / "blobs/sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Where the blob `sha256:...` lies."""
        return self._blobs / digest.removeprefix("sha256:")

    def add(self, content: bytes) -> str:
        """Store a blob and return its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blob(digest).write_bytes(content)
        return digest

    def add_layer(self, tree: Tree) -> Layer:
        """Write a tree as a layer.

        :raises UserError: zstd isn't there or fails.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".layer-") as packed:
            # One thread: with more, zstd's output depends on their number.
            argv = [need("zstd"), _LEVEL, "-T1", "--quiet", "--stdout"]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=packed)
            assert process.stdin is not None
            hashing = _Hashing(process.stdin)
            buffered = io.BufferedWriter(hashing, 1 << 20)
            broken = False
            try:
                tree.write(buffered)
                buffered.flush()
                process.stdin.close()
            except BrokenPipeError:  # zstd has ended early; its status is judged below
                broken = True
            except BaseException:
                process.kill()
                raise
            finally:
                status = process.wait()
            if status != 0 or broken:
                raise UserError(f"zstd failed with status {status} while packing a layer (disk full?)")
            packed.seek(0)
            digest = f"sha256:{hashlib.file_digest(packed, 'sha256').hexdigest()}"
            target = self.blob(digest)
            target.unlink(missing_ok=True)
            target.hardlink_to(packed.name)
            target.chmod(0o644)
        return Layer(digest, target.stat().st_size, f"sha256:{hashing.digest.hexdigest()}")

    def add_image(self, image: Image) -> str:
        """Write an image's configuration and manifest; returns the manifest's digest."""
        labels = {
            "org.opencontainers.image.version": image.version,
            "org.opencontainers.image.description": image.about,
            **image.labels,
        }
        settings: dict[str, Any] = {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "Labels": labels,
        }
        optional = {
            "Entrypoint": list(image.entrypoint),
            "Cmd": list(image.command),
            "User": image.user,
            "StopSignal": image.stop_signal,
        }
        settings |= {key: value for key, value in optional.items() if value}
        config = _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
            }
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": self.add(config), "size": len(config)},
            "layers": [
                {"mediaType": LAYER_ZSTD, "digest": layer.digest, "size": layer.size}
                for layer in image.layers
            ],
            "annotations": labels,
        }
        content = _json(manifest)
        digest = self.add(content)
        self.tag(image.reference, MANIFEST, digest, len(content))
        return digest

    def tag(self, reference: str, media_type: str, digest: str, size: int) -> None:
        """Give a manifest its full reference in index.json, in place of an earlier one of that name."""
        entry = {
            "mediaType": media_type,
            "digest": digest,
            "size": size,
            "annotations": {
                "io.containerd.image.name": reference,
                "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
            },
            "platform": {"architecture": "amd64", "os": "linux"},
        }
        entries = [*(old for old in self._index() if _name(old) != reference), entry]
        entries.sort(key=_name)
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        (self.folder / "index.json").write_bytes(_json(index))
        (self.folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))

    def _index(self) -> list[dict[str, Any]]:
        path = self.folder / "index.json"
        found: list[dict[str, Any]] = json.loads(path.read_bytes())["manifests"] if path.exists() else []
        return found

    def references(self) -> dict[str, str]:
        """Reference -> digest of the manifest, of every image."""
        return {_name(entry): entry["digest"] for entry in self._index()}

    def manifest(self, digest: str) -> dict[str, Any]:
        """A manifest's content."""
        content: dict[str, Any] = json.loads(self.blob(digest).read_bytes())
        return content

    def blobs_of(self, digest: str) -> list[str]:
        """The digests of a manifest's layers and configuration."""
        manifest = self.manifest(digest)
        return [*(layer["digest"] for layer in manifest["layers"]), manifest["config"]["digest"]]

    def write_archive(self, target: Path, references: Iterable[str]) -> None:
        """Write images into one archive, as `ctr images import` reads it; shared layers are in it once."""
        wanted = set(references)
        entries = [entry for entry in self._index() if _name(entry) in wanted]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        digests = {entry["digest"] for entry in entries}
        digests |= {blob for digest in digests for blob in self.blobs_of(digest)}
        tree = Tree()
        tree.file("oci-layout", (self.folder / "oci-layout").read_bytes())
        tree.file("index.json", _json(index))
        for digest in digests:
            tree.file(f"blobs/{digest.replace(':', '/')}", self.blob(digest))
        with target.open("wb") as file:
            tree.write(file)


def _name(entry: dict[str, Any]) -> str:
    name: str = entry["annotations"]["io.containerd.image.name"]
    return name


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
