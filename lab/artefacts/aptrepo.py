"""Signed apt repositories, flat: the index and the packages in one folder, as pkgs.k8s.io has them."""

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
    """The key that signs a mirror's package lists; one for each cache, made at first use."""

    def __init__(self, progress: Progress) -> None:
        """Make the key unless it is there."""
        folder = paths.cache_dir() / "signing"
        self._secret, self.public = folder / "secret.asc", folder / "public.asc"
        with locked(folder / "lock", progress, "signing key"):
            if not (self._secret.exists() and self.public.exists()):
                self._make()

    def _make(self) -> None:
        with _home() as home:
            call = ["gpg", "--homedir", home, "--batch", "--quiet"]
            argv = [*call, "--passphrase", "", "--quick-generate-key", _OWNER, "ed25519", "sign", "never"]
            run(argv, "making the key that signs packages")
            public = run([*call, "--armor", "--export", _OWNER], "exporting the public key")
            secret = run([*call, "--armor", "--export-secret-keys", _OWNER], "exporting the secret key")
        write_atomic(self.public, public)
        write_atomic(self._secret, secret, 0o600)

    def sign(self, folder: Path) -> None:
        """Write InRelease, Release.gpg and Release.key beside a folder's Release."""
        with _home() as home:
            call = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes"]
            run([*call, "--import", self._secret], "loading the key that signs packages")
            release = folder / "Release"
            for kind, name in (("--clear-sign", "InRelease"), ("--detach-sign", "Release.gpg")):
                argv = [*call, "--armor", "--digest-algo", "SHA512", "--output", folder / name, kind, release]
                run(argv, f"signing {release}")
        write_atomic(folder / "Release.key", self.public.read_bytes())


@contextmanager
def _home() -> Iterator[Path]:
    """An empty folder for gpg.

    Its name is short: the agent's socket lies there, whose path may have 108 characters at most.
    """
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        home = Path(name)
        try:
            yield home
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], "ending gpg's agent")


def stanza(deb: Path, filename: str) -> str:
    """A package's entry in the index.

    :param deb: the package.
    :param filename: its path below the repository's folder.
    """
    control = run(["dpkg-deb", "--field", deb], f"reading {deb.name}").decode().rstrip("\n")
    content = deb.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return f"{control}\nFilename: {filename}\nSize: {len(content)}\nSHA256: {sha256}\n"


def write_index(folder: Path, debs: Iterable[Path], title: str, signer: Signer) -> None:
    """Write and sign the index of packages that lie below a folder.

    :param title: the repository's name, shown by `apt-cache policy`.
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
        f"Description: packages of a mirror without access to others\nSHA256:\n{sums}"
    )
    signer.sign(folder)
