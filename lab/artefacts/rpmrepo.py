"""Makes signed RPM repositories for labs of the rpm family.

`kubernetes/v<minor>/rpm/` has the layout of pkgs.k8s.io. `rpm/<release>/` stands in for the distribution's
own repository and holds everything else that the program installs. The RPMs are converted from the mirror's
Debian packages of Kubernetes and from Debian's own packages.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import cache
from common.files import digest_of, tree_digest, write_atomic
from common.progress import Progress
from lab.artefacts import debian, rpms
from lab.artefacts.aptrepo import Signer
from lab.artefacts.command import need, run
from lab.artefacts.mirror import Mirror

KIND = "rpm"  # the folder in the cache
# The packages that the program installs from the distribution, by their Debian names. The repository also
# holds their dependencies.
_HOST_PACKAGES = (
    "conntrack", "containerd", "ethtool", "ipset", "iptables", "ipvsadm", "kmod", "nftables", "runc", "socat",
)  # fmt: skip
_HOST_SET = "hosts"
# The modules that determine the repositories' contents. Their source is part of the cache key.
_MODULES = ("rpmrepo.py", "rpms.py", "../rpmspec.py")


@contextmanager
def _keyring(signer: Signer) -> Iterator[Path]:
    """A home folder for gpg that holds the mirror's signing key.

    Its path is short because it also holds gpg-agent's socket, whose path is limited to 108 characters.
    """
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        home = Path(name)
        try:
            secret = signer.public.with_name("secret.asc")
            argv = ["gpg", "--homedir", home, "--batch", "--quiet", "--import", secret]
            run(argv, "loading the package signing key")
            yield home
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], "stopping gpg-agent")


def _fingerprint(home: Path) -> str:
    """The fingerprint of the only key in a gpg home folder."""
    argv = ["gpg", "--homedir", home, "--batch", "--with-colons", "--list-keys"]
    listed = run(argv, "reading the package signing key")
    return next(line.split(":")[9] for line in listed.decode().splitlines() if line.startswith("fpr:"))


def write_index(folder: Path, packages: Sequence[Path], signer: Signer) -> None:
    """Sign a folder's RPMs, then write and sign the repository's metadata.

    Raises:
        UserError: gpg, rpmsign or createrepo_c fails.
    """
    with _keyring(signer) as home:
        key = _fingerprint(home)
        macros = {"__gpg": need("gpg"), "_gpg_name": key, "_gpg_path": home, "_gpg_digest_algo": "sha512"}
        defines = [part for name, value in macros.items() for part in ("--define", f"{name} {value}")]
        environment = {"GNUPGHOME": str(home)}
        run(["rpmsign", *defines, "--addsign", *packages], "signing the RPMs", environment=environment)
        run(["createrepo_c", "--quiet", "--no-database", folder], f"indexing {folder.name}")
        index = folder / "repodata/repomd.xml"
        argv = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes", "--local-user", key, "--armor"]
        run(
            [*argv, "--detach-sign", "--digest-algo", "SHA512", "--output", f"{index}.asc", index],
            f"signing {index}",
        )
    write_atomic(folder / "repodata/repomd.xml.key", signer.public.read_bytes())


@dataclass(frozen=True)
class Base:
    """The contents of an image's base system.

    Attributes:
        packages: The names of its Debian packages.
        folders: Paths without a leading slash.
    """

    packages: frozenset[str]
    folders: frozenset[str]

    @staticmethod
    def read(archive: Path) -> Base:
        """Read the base system's tar archive."""
        folders = set()
        status = ""
        with tarfile.open(archive) as tar:
            for entry in tar:
                if entry.isdir():
                    folders.add(entry.name.removeprefix("./"))
                elif entry.name.removeprefix("./") == "var/lib/dpkg/status":
                    content = tar.extractfile(entry)
                    status = content.read().decode() if content else ""
        return Base(frozenset(rpms.installed(status)), frozenset(folders))


def ensure_repositories(mirror: Mirror, release: str, base: Path, progress: Progress) -> Path:
    """The folder to serve to hosts of the rpm family, taken from the cache or made.

    Args:
        mirror: Provides the Debian packages of Kubernetes to convert.
        release: The Debian release of the base system.
        base: The base system's archive. Its packages need no RPMs.
        progress: Reports each step.

    Raises:
        UserError: A package can't be downloaded or converted.
    """
    scope = progress.scope("mirror")
    signer = Signer(scope)
    kubernetes = sorted(mirror.root.glob("kubernetes/v*/deb/amd64/*.deb"))
    here = Path(__file__).parent
    downloaded = debian.fetch(release, {_HOST_SET: _HOST_PACKAGES}, scope)
    key = digest_of(
        *((here / name).read_bytes() for name in _MODULES),
        signer.public.read_bytes(),
        *(part for deb in kubernetes for part in (deb.name, cache.sha256_of(deb))),
        tree_digest(downloaded.folder),
        base.name,
    )[:16]

    def make(partial: Path) -> dict[str, str]:
        system = Base.read(base)
        minor = kubernetes[0].parents[2].name  # v1.37
        parts = {
            f"kubernetes/{minor}/rpm": kubernetes,
            f"rpm/{release}": rpms.missing(downloaded.sets[_HOST_SET], system.packages),
        }
        for place, debs in parts.items():
            folder = partial / "www" / place
            folder.mkdir(parents=True)
            with scope.step(f"building {len(debs)} RPMs for {place}"):
                write_index(folder, rpms.pack(debs, folder, system.folders), signer)
        shutil.copyfile(signer.public, partial / "packages.asc")
        return {"release": release}

    return cache.cached(KIND, f"{release}-{key}", scope, make) / "www"
