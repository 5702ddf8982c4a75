"""Signed flat apt repositories like those on pkgs.k8s.io: index and packages share one folder."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

from common import paths
from common.files import locked, write_atomic
from common.progress import Progress
from lab.artefacts.command import run

_OWNER = "kubeadm-ipvs mirror <mirror@localhost>"


class Signer:
    """The key that signs the package indexes of all mirrors in a cache. It is created on first use."""

    def __init__(self, progress: Progress) -> None:
        """Load the key, creating it if necessary."""
        folder = paths.cache_dir() / "signing"
        self._secret, self.public = folder / "secret.asc", folder / "public.asc"
        with locked(folder / "lock", progress, "signing key"):
            if not (self._secret.exists() and self.public.exists()):
                self._make()

    def _make(self) -> None:
        with _home() as home:
            call = ["gpg", "--homedir", home, "--batch", "--quiet"]
            argv = [*call, "--passphrase", "", "--quick-generate-key", _OWNER, "ed25519", "sign", "never"]
            run(argv, "creating the package signing key")
            public = run([*call, "--armor", "--export", _OWNER], "exporting the public key")
            secret = run([*call, "--armor", "--export-secret-keys", _OWNER], "exporting the secret key")
        write_atomic(self.public, public)
        write_atomic(self._secret, secret, 0o600)

    def sign(self, folder: Path) -> None:
        """Sign a folder's Release file: write InRelease, Release.gpg and Release.key next to it."""
        with _home() as home:
            call = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes"]
            run([*call, "--import", self._secret], "loading the package signing key")
            release = folder / "Release"
            for kind, name in (("--clear-sign", "InRelease"), ("--detach-sign", "Release.gpg")):
                argv = [*call, "--armor", "--digest-algo", "SHA512", "--output", folder / name, kind, release]
                run(argv, f"signing {release}")
        write_atomic(folder / "Release.key", self.public.read_bytes())


@contextmanager
def _home() -> Iterator[Path]:
    """A new home folder for gpg.

    Its path is short because it also holds gpg-agent's socket, whose path is limited to 108 characters.
    """
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        home = Path(name)
        try:
            yield home
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], "stopping gpg-agent")


def stanza(deb: Path, filename: str) -> str:
    """A package's entry in the index.

    Args:
        deb: The package file.
        filename: Its path relative to the repository's folder.
    """
    control = run(["dpkg-deb", "--field", deb], f"reading {deb.name}").decode().rstrip("\n")
    content = deb.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return f"{control}\nFilename: {filename}\nSize: {len(content)}\nSHA256: {sha256}\n"


def write_index(folder: Path, debs: Iterable[Path], title: str, signer: Signer) -> None:
    """Write and sign a repository's index.

    Args:
        folder: The repository's folder.
        debs: The package files, in or below that folder.
        title: The repository's name, as `apt-cache policy` shows it.
        signer: The signing key.
    """
    ordered = sorted(debs)
    with ThreadPoolExecutor(max_workers=4) as pool:
        stanzas = pool.map(lambda deb: stanza(deb, str(deb.relative_to(folder))), ordered)
        packages = "\n".join(stanzas).encode()
    indexes = {"Packages": packages, "Packages.gz": gzip.compress(packages, 6, mtime=0)}
    for name, content in indexes.items():
        (folder / name).write_bytes(content)
    sums = "".join(
        f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
        for name, content in sorted(indexes.items())
    )
    date = formatdate(time.time(), usegmt=True).replace("GMT", "UTC")
    (folder / "Release").write_text(
        f"Origin: {title}\nLabel: {title}\nArchitecture: amd64\nDate: {date}\n"
        f"Description: packages for hosts without Internet access\nSHA256:\n{sums}"
    )
    signer.sign(folder)
