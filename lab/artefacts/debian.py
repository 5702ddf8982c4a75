"""Debian packages of a release with all that they depend on.

They are fetched without root and on a system of any release: apt is run with a state of its
own in the cache, and with an empty list of installed packages.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab.artefacts.cache import cached
from lab.artefacts.command import run
from lab.options import debian_mirror

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_UNWANTED_LISTS = (
    "CNF", "Contents-deb", "DEP-11", "DEP-11-icons", "DEP-11-icons-small", "DEP-11-icons-large",
)  # fmt: skip
_SETS = "sets"  # folder of lists: which packages belong to which set


@dataclass(frozen=True)
class Packages:
    """Fetched packages."""

    folder: Path
    sets: dict[str, tuple[Path, ...]]  # name of the set -> its packages and what they depend on

    @property
    def all(self) -> tuple[Path, ...]:
        """Every package once, by name."""
        return tuple(sorted({path for paths in self.sets.values() for path in paths}))


def sources(release: str) -> str:
    """apt's sources: the release, its updates, and its security fixes where the mirror is Debian's own."""
    mirror = debian_mirror()
    lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in (release, f"{release}-updates")]
    if mirror == _DEFAULT_MIRROR:
        lines.append(f"deb [signed-by={KEYRING}] {_SECURITY} {release}-security main")
    return "".join(f"{line}\n" for line in lines)


def fetch(release: str, sets: dict[str, tuple[str, ...]], progress: Progress) -> Packages:
    """The packages of each set with their dependencies, from the cache or from Debian's mirror.

    :param sets: name of the set -> package names.
    :raises UserError: apt can't get or verify them.
    """
    wanted = [f"{name}: {' '.join(names)}" for name, names in sorted(sets.items())]
    key = f"{release}-{digest_of('2', sources(release), *wanted)[:16]}"

    def make(partial: Path) -> dict[str, str]:
        with progress.step(f"fetching packages of Debian {release}"):
            _download(release, sets, partial)
        return {"release": release}

    folder = cached("debian", key, progress, make)
    return Packages(
        folder,
        {
            name: tuple(folder / line for line in (folder / _SETS / name).read_text().splitlines())
            for name in sets
        },
    )


def _apt_options(state: Path, sources_text: str) -> list[str]:
    """apt's options for a state of its own in an empty folder, with an empty list of installed packages."""
    for path in (state / "lists/partial", state / "archives/partial"):
        path.mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(sources_text)
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # the user _apt may not enter the cache folder
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        # Desktops configure these to be fetched along with the lists; they are larger than the rest.
        **{f"Acquire::IndexTargets::deb::{kind}::DefaultEnabled": "false" for kind in _UNWANTED_LISTS},
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def fetch_backport(release: str, choose: Callable[[list[str]], str], prefix: str, folder: Path) -> Path:
    """Fetch one package, without what it depends on, from a release's backports.

    :param choose: picks the package among the names that begin with `prefix`.
    :param folder: gets the package's file. One that is there from an interrupted run is taken if its
        checksum is the index's.
    :raises UserError: apt can't get or verify it.
    """
    suite = f"{release}-backports"
    state = folder / "apt"
    shutil.rmtree(state, ignore_errors=True)
    options = _apt_options(state, f"deb [signed-by={KEYRING}] {debian_mirror()} {suite} main\n")
    run(["apt-get", *options, "--quiet", "update"], f"reading the package lists of Debian {suite}")
    names = run(["apt-cache", *options, "pkgnames", prefix], f"looking for {prefix} in {suite}").decode()
    package = choose(names.split())
    what = f"fetching {package} of Debian {suite}"
    run(["apt-get", *options, "--quiet", "download", package], what, cwd=folder)
    shutil.rmtree(state)
    found = sorted(folder.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{what}: apt fetched nothing")
    return found[-1]


def _download(release: str, sets: dict[str, tuple[str, ...]], folder: Path) -> None:
    state = folder / "apt"
    (folder / _SETS).mkdir()
    options = _apt_options(state, sources(release))
    run(["apt-get", *options, "--quiet", "update"], f"reading the package lists of Debian {release}")
    listed: dict[str, list[str]] = {}
    for name, packages in sets.items():
        # Lines: 'URI' FILE SIZE CHECKSUM. Before anything is fetched, since apt lists only what it lacks.
        argv = ["apt-get", *options, "install", "--yes", "--print-uris", *packages]
        text = run(argv, f"finding {', '.join(packages)} in Debian {release}").decode()
        listed[name] = re.findall(r"^'[^']+' (\S+) \d+ ", text, re.MULTILINE)
    for name, packages in sets.items():
        what = f"fetching {', '.join(packages)} of Debian {release}"
        run(["apt-get", *options, "--quiet", "install", "--yes", "--download-only", *packages], what)
        missing = [file for file in listed[name] if not (state / "archives" / file).exists()]
        if missing:
            raise UserError(f"{what}: apt fetched no {missing[0]}")
        (folder / _SETS / name).write_text("".join(f"{_plain(file)}\n" for file in listed[name]))
    for file in {file for files in listed.values() for file in files}:
        (state / "archives" / file).rename(folder / _plain(file))
    run(["rm", "-r", state], "clearing apt's state")


def _plain(file: str) -> str:
    """The name as Debian's pool has it: without the epoch, whose colon apt escapes."""
    return re.sub(r"_\d+:", "_", unquote(file))
