"""Signed repositories of RPMs, as dnf reads them: for a lab whose hosts are of the rpm family.

`kubernetes/v<minor>/rpm/` has pkgs.k8s.io's layout; `rpm/<release>/` stands for the distribution's own, with
what the program installs beside Kubernetes. All is made from the mirror's Debian packages and from Debian's.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.files import digest_of, tree_digest, write_atomic
from common.progress import Progress
from lab.artefacts import cache, debian, rpms
from lab.artefacts.aptrepo import Signer
from lab.artefacts.command import need, run
from lab.artefacts.mirror import Mirror

KIND = "rpm"  # the folder in the cache
# What scripts/packages.sh installs of the distribution, by Debian's names; their dependencies come along.
_HOST_PACKAGES = (
    "conntrack", "containerd", "ethtool", "ipset", "iptables", "ipvsadm", "kmod", "nftables", "runc", "socat",
)  # fmt: skip
_HOST_SET = "hosts"
_MAKERS = ("rpmrepo.py", "rpms.py", "../rpmspec.py")


@contextmanager
def _keyring(signer: Signer) -> Iterator[Path]:
    """A home for gpg that holds the mirror's signing key.

    Its name is short: the agent's socket lies there, whose path may have 108 characters at most.
    """
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        home = Path(name)
        try:
            secret = signer.public.with_name("secret.asc")
            run(
                ["gpg", "--homedir", home, "--batch", "--quiet", "--import", secret],
                "loading the key that signs",
            )
            yield home
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], "ending gpg's agent")


def _signing_name(home: Path) -> str:
    """The fingerprint of the one key in a gpg home."""
    listed = run(["gpg", "--homedir", home, "--batch", "--with-colons", "--list-keys"], "reading the key")
    return next(line.split(":")[9] for line in listed.decode().splitlines() if line.startswith("fpr:"))


def write_index(folder: Path, packages: Sequence[Path], signer: Signer) -> None:
    """Sign the RPMs that lie in a folder, write the repository's metadata, and sign that.

    :raises UserError: gpg, rpmsign or createrepo_c fails.
    """
    with _keyring(signer) as home:
        key = _signing_name(home)
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
    """What an image's base system holds already."""

    packages: frozenset[str]  # Debian's names
    folders: frozenset[str]  # without a leading slash

    @staticmethod
    def read(archive: Path) -> Base:
        """From the base system's tar archive."""
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
    """The folder to serve to hosts of the rpm family, from the cache or made.

    :param mirror: what is packaged: its Debian packages of Kubernetes.
    :param release: Debian's, of the base system.
    :param base: the base system's archive: what it has needs no RPM.
    :raises UserError: something can't be fetched, or can't be made.
    """
    told = progress.scope("mirror")
    signer = Signer(told)
    kubernetes = sorted(mirror.root.glob("kubernetes/v*/deb/amd64/*.deb"))
    here = Path(__file__).parent
    fetched = debian.fetch(release, {_HOST_SET: _HOST_PACKAGES}, told)
    key = digest_of(
        *((here / name).read_bytes() for name in _MAKERS),
        signer.public.read_bytes(),
        *(part for deb in kubernetes for part in (deb.name, cache.sha256_of(deb))),
        tree_digest(fetched.folder),
        base.name,
    )[:16]

    def make(partial: Path) -> dict[str, str]:
        system = Base.read(base)
        minor = kubernetes[0].parents[2].name  # v1.37
        parts = {
            f"kubernetes/{minor}/rpm": kubernetes,
            f"rpm/{release}": rpms.lacking(fetched.sets[_HOST_SET], system.packages),
        }
        for place, debs in parts.items():
            folder = partial / "www" / place
            folder.mkdir(parents=True)
            with told.step(f"making {len(debs)} RPMs of {place}"):
                write_index(folder, rpms.pack(debs, folder, system.folders), signer)
        shutil.copyfile(signer.public, partial / "packages.asc")
        return {"release": release}

    return cache.cached(KIND, f"{release}-{key}", told, make) / "www"
