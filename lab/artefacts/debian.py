"""Downloads Debian packages of a given release together with their dependencies.

This needs neither root nor a system of that release: apt runs with its own state in the cache and an empty
list of installed packages.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from common.cache import cached
from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab.artefacts.command import run
from lab.options import debian_mirror

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_UNWANTED_LISTS = (
    "CNF", "Contents-deb", "DEP-11", "DEP-11-icons", "DEP-11-icons-small", "DEP-11-icons-large",
)  # fmt: skip
_SETS = "sets"  # a folder with one file for each set, which lists its packages


@dataclass(frozen=True)
class Packages:
    """Downloaded packages.

    Attributes:
        folder: The folder with all packages.
        sets: Each set's packages and their dependencies, by the set's name.
    """

    folder: Path
    sets: dict[str, tuple[Path, ...]]

    @property
    def all(self) -> tuple[Path, ...]:
        """All packages without duplicates, sorted by name."""
        return tuple(sorted({path for paths in self.sets.values() for path in paths}))


def sources(release: str) -> str:
    """apt's sources.list: the release and its updates, plus security fixes if the mirror is Debian's own."""
    mirror = debian_mirror()
    lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in (release, f"{release}-updates")]
    if mirror == _DEFAULT_MIRROR:
        lines.append(f"deb [signed-by={KEYRING}] {_SECURITY} {release}-security main")
    return "".join(f"{line}\n" for line in lines)


def fetch(release: str, sets: dict[str, tuple[str, ...]], progress: Progress) -> Packages:
    """Provide sets of packages with their dependencies, from the cache or from Debian's mirror.

    Args:
        release: Debian's release, by code name.
        sets: The package names of each set, by the set's name.
        progress: Reports the download.

    Raises:
        UserError: apt can't download or verify them.
    """
    wanted = [f"{name}: {' '.join(names)}" for name, names in sorted(sets.items())]
    key = f"{release}-{digest_of('2', sources(release), *wanted)[:16]}"

    def make(partial: Path) -> dict[str, str]:
        with progress.step(f"downloading packages of Debian {release}"):
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
    """Options that make apt keep its state in an empty folder and assume that no package is installed."""
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
        "APT::Sandbox::User": "",  # the user _apt can't read the cache folder
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        # On desktops apt also downloads these indexes, which are larger than all the others together.
        **{f"Acquire::IndexTargets::deb::{kind}::DefaultEnabled": "false" for kind in _UNWANTED_LISTS},
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def fetch_backport(release: str, choose: Callable[[list[str]], str], prefix: str, folder: Path) -> Path:
    """Download one package from a release's backports, without its dependencies.

    Args:
        release: Debian's release, by code name.
        choose: Picks a name from the available ones that start with `prefix`.
        prefix: The start of the package's name.
        folder: Receives the package file. A file left by an interrupted run is kept if its checksum is right.

    Returns:
        The package file.

    Raises:
        UserError: apt can't download or verify it.
    """
    suite = f"{release}-backports"
    state = folder / "apt"
    shutil.rmtree(state, ignore_errors=True)
    options = _apt_options(state, f"deb [signed-by={KEYRING}] {debian_mirror()} {suite} main\n")
    run(["apt-get", *options, "--quiet", "update"], f"reading the package lists of Debian {suite}")
    names = run(
        ["apt-cache", *options, "pkgnames", prefix], f"searching Debian {suite} for {prefix}"
    ).decode()
    package = choose(names.split())
    what = f"downloading {package} from Debian {suite}"
    run(["apt-get", *options, "--quiet", "download", package], what, cwd=folder)
    shutil.rmtree(state)
    found = sorted(folder.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{what}: apt reported success but downloaded no file")
    return found[-1]


def _download(release: str, sets: dict[str, tuple[str, ...]], folder: Path) -> None:
    state = folder / "apt"
    (folder / _SETS).mkdir()
    options = _apt_options(state, sources(release))
    run(["apt-get", *options, "--quiet", "update"], f"reading the package lists of Debian {release}")
    listed: dict[str, list[str]] = {}
    for name, packages in sets.items():
        # Each line is: 'URI' FILE SIZE CHECKSUM. apt omits files that it already has, so list them all before
        # downloading any.
        argv = ["apt-get", *options, "install", "--yes", "--print-uris", *packages]
        text = run(argv, f"resolving {', '.join(packages)} in Debian {release}").decode()
        listed[name] = re.findall(r"^'[^']+' (\S+) \d+ ", text, re.MULTILINE)
    for name, packages in sets.items():
        what = f"downloading {', '.join(packages)} from Debian {release}"
        run(["apt-get", *options, "--quiet", "install", "--yes", "--download-only", *packages], what)
        missing = [file for file in listed[name] if not (state / "archives" / file).exists()]
        if missing:
            raise UserError(f"{what}: apt reported success but didn't download {missing[0]}")
        (folder / _SETS / name).write_text("".join(f"{_pool_name(file)}\n" for file in listed[name]))
    for file in {file for files in listed.values() for file in files}:
        (state / "archives" / file).rename(folder / _pool_name(file))
    run(["rm", "-r", state], "removing apt's state")


def _pool_name(file: str) -> str:
    """The file's name in Debian's pool, which omits the epoch. apt adds it, with the colon escaped."""
    return re.sub(r"_\d+:", "_", unquote(file))
