"""Writes container images as files: layers, manifests and archives, all reproducible.

Images are stored in the OCI image layout: `blobs/sha256/<digest>` and `index.json`. Layers are compressed
with zstd, which an emulated host unpacks several times faster than gzip.
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
    """A file, folder or symbolic link in a layer, owned by root and without a timestamp.

    Attributes:
        kind: tarfile's REGTYPE, DIRTYPE or SYMTYPE.
        mode: The permissions.
        source: A file's content, or the file to read it from.
        target: Where a symbolic link points.
    """

    kind: bytes
    mode: int
    source: Path | bytes = b""
    target: str = ""


class Tree:
    """The contents of a layer, by path without a leading slash."""

    # In Debian these are links into /usr. Packages of older releases still install files to the old paths.
    MERGED = ("bin", "sbin", "lib", "lib64")

    def __init__(self) -> None:
        """Create an empty tree."""
        self.entries: dict[str, Entry] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self._add(path, Entry(tarfile.DIRTYPE, mode))

    def file(self, path: str, source: Path | bytes, mode: int = 0o644) -> None:
        """Add a file with the given content, or the content of another file."""
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

        Args:
            package: The package file.
            without: Folders to leave out, such as `usr/share/doc`.

        Raises:
            UserError: The package can't be read, or contains a file of an unsupported kind.
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
                        raise UserError(f"{package} contains a dangling hard link: {member.name}")
                    self.file(path, content.read(), member.mode & 0o7777)
                else:
                    raise UserError(f"{package} contains a device or a pipe: {member.name}")

    def _merged(self, path: str) -> str:
        first = path.split("/", 1)[0]
        return f"usr/{path}" if first in self.MERGED else path

    def write(self, out: IO[bytes]) -> None:
        """Write a reproducible tar archive: sorted by path, without timestamps or owners of this machine."""
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
    """A layer in a layout.

    Attributes:
        digest: The digest of the compressed archive.
        size: The size of the compressed archive in bytes.
        diff_id: The digest of the uncompressed archive.
    """

    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class Image:
    """An image to write.

    Attributes:
        reference: With registry and tag, such as `registry.k8s.io/pause:3.10.2`.
        version: The actual version of its program, for a label.
        about: The origin of its program, for a label.
        labels: Further labels.
    """

    reference: str
    layers: tuple[Layer, ...]
    version: str
    about: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class _Hashing(io.RawIOBase):
    """A stream that hashes data while passing it on."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._out.write(data)


class Layout:
    """A folder in the OCI image layout."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, creating it if necessary."""
        self.folder = folder
        self._blobs = folder / "blobs/sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """The path of a blob, whether or not it exists.

        Args:
            digest: Such as `sha256:...`.
        """
        return self._blobs / digest.removeprefix("sha256:")

    def add(self, content: bytes) -> str:
        """Store a blob and return its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blob(digest).write_bytes(content)
        return digest

    def add_layer(self, tree: Tree) -> Layer:
        """Write a tree as a layer.

        Raises:
            UserError: zstd isn't installed or fails.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".layer-") as packed:
            # With more than one thread, zstd's output depends on their number.
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
            except BrokenPipeError:  # zstd exited early; its status is checked below
                broken = True
            except BaseException:
                process.kill()
                raise
            finally:
                status = process.wait()
            if status != 0 or broken:
                raise UserError(f"compressing a layer: zstd failed with status {status} (disk full?)")
            packed.seek(0)
            digest = f"sha256:{hashlib.file_digest(packed, 'sha256').hexdigest()}"
            target = self.blob(digest)
            target.unlink(missing_ok=True)
            target.hardlink_to(packed.name)
            target.chmod(0o644)
        return Layer(digest, target.stat().st_size, f"sha256:{hashing.digest.hexdigest()}")

    def add_image(self, image: Image) -> str:
        """Write an image's configuration and manifest, and tag it.

        Returns:
            The manifest's digest.
        """
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
        """Add a manifest to index.json under its full reference, replacing any earlier one."""
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
        """The digests of all images' manifests, by full reference."""
        return {_name(entry): entry["digest"] for entry in self._index()}

    def manifest(self, digest: str) -> dict[str, Any]:
        """The content of a manifest."""
        content: dict[str, Any] = json.loads(self.blob(digest).read_bytes())
        return content

    def blobs_of(self, digest: str) -> list[str]:
        """The digests of a manifest's layers and configuration."""
        manifest = self.manifest(digest)
        return [*(layer["digest"] for layer in manifest["layers"]), manifest["config"]["digest"]]

    def write_archive(self, target: Path, references: Iterable[str]) -> None:
        """Write images to one archive for `ctr images import`. Shared layers are stored once."""
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
