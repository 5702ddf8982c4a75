"""Signed apt repositories."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from common.progress import Progress
from lab.artefacts.aptrepo import Signer, write_index
from lab.artefacts.debs import Deb, pack
from lab.artefacts.upstream import parse_index

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)


def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "amd64").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    debs = [Deb(name, "1-1", name.title(), {f"usr/bin/{name}": tmp_path / "file"}) for name in ("one", "two")]
    write_index(folder, pack(debs, folder / "amd64"), "A test", Signer(QUIET))
    return folder


def test_index_lists_packages_with_size_and_checksum(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    listed = parse_index((folder / "Packages").read_text())
    assert [entry.filename for entry in listed] == ["amd64/one_1-1_amd64.deb", "amd64/two_1-1_amd64.deb"]
    for entry in listed:
        content = (folder / entry.filename).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert gzip.decompress((folder / "Packages.gz").read_bytes()) == (folder / "Packages").read_bytes()


def test_release_file_pins_the_indexes(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    pinned = re.findall(r"^ ([0-9a-f]{64}) (\d+) (\S+)$", (folder / "Release").read_text(), re.MULTILINE)
    assert {name for _, _, name in pinned} == {"Packages", "Packages.gz"}
    for sha256, size, name in pinned:
        content = (folder / name).read_bytes()
        assert (sha256, int(size)) == (hashlib.sha256(content).hexdigest(), len(content))


def verify(folder: Path, *files: str) -> bool:
    keyring = folder / "keyring.gpg"
    key = subprocess.run(
        ["gpg", "--homedir", folder, "--batch", "--dearmor"],
        input=(folder / "Release.key").read_bytes(),
        capture_output=True,
        check=True,
    )
    keyring.write_bytes(key.stdout)
    paths = [str(folder / name) for name in files]
    done = subprocess.run(["gpgv", "--keyring", keyring, *paths], capture_output=True, check=False)
    return done.returncode == 0


def test_both_signatures_verify_with_the_published_key(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    assert verify(folder, "InRelease")
    assert verify(folder, "Release.gpg", "Release")


def test_changed_release_file_fails_verification(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    for name in ("InRelease", "Release"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("A test", "A trap"))
    assert not verify(folder, "InRelease")
    assert not verify(folder, "Release.gpg", "Release")


def test_signing_key_is_created_once_and_private(tmp_path: Path) -> None:
    first = Signer(QUIET).public.read_bytes()
    assert Signer(QUIET).public.read_bytes() == first
    secrets = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600]
