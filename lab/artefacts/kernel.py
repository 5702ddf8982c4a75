"""The kernel of the lab's hosts under User Mode Linux, built from Debian's source package.

`<cache>/kernel/<key>/` holds the kernel (a program), its modules as a tar archive, and its whole
configuration. The key is a hash of `uml-kernel.config`, the patch and the way of building. A build takes
Debian's newest source; a newer one later doesn't cause another build.
`uml-kernel.patch` says what it changes and why. An interrupted build goes on where it was.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab import requirements
from lab.artefacts import debian
from lab.artefacts.cache import cached
from lab.artefacts.command import run

CONFIG = Path(__file__).with_name("uml-kernel.config")
PATCH = Path(__file__).with_name("uml-kernel.patch")
PROGRAM, MODULES = "linux", "modules.tar"

_FORMAT = "1"  # raise it when the way of building changes what comes out
_RELEASE = "trixie"
_PREFIX = "linux-source-"
# The series that was tried. User Mode Linux has SMP since 6.19, which the cpuset controller needs, and
# seccomp since 6.16.
_SERIES = (7, 2)
_FILES_ABOUT = 1390  # that are compiled, for the progress


def key() -> str:
    """The kernel's name in the cache."""
    return digest_of(_FORMAT, CONFIG.read_bytes(), PATCH.read_bytes(), os.uname().machine)[:16]


def ensure(progress: Progress) -> Path:
    """The folder with the kernel and its modules; built unless it is in the cache.

    :raises UserError: this machine isn't an x86-64 one, a program is missing, or the build fails.
    """
    told = progress.scope("kernel")

    def make(partial: Path) -> dict[str, str]:
        if os.uname().machine != "x86_64":
            raise UserError(f"User Mode Linux isn't built for {os.uname().machine} here")
        requirements.install_uml(told)
        return {"source": _make(partial, told)}

    return cached("kernel", key(), told, make, resume=True)


def choose_package(names: list[str]) -> str:
    """The source package to take: the series that was tried, else the newest later one.

    :raises UserError: there is none.
    """
    series: dict[tuple[int, ...], str] = {}
    for name in names:
        found = re.fullmatch(rf"{_PREFIX}(\d+)\.(\d+)", name)
        if found:
            series[int(found[1]), int(found[2])] = name
    newest = max(series, default=(0, 0))
    if _SERIES in series:
        return series[_SERIES]
    if newest < _SERIES:
        wanted = ".".join(map(str, _SERIES))
        raise UserError(
            f"Debian's mirror has no kernel source of {wanted} or later in {_RELEASE}-backports",
            "name a mirror that has it: KUBEADM_IPVS_DEBIAN_MIRROR",
        )
    return series[newest]


def _make(folder: Path, progress: Progress) -> str:
    """Fill the folder; the source's package and version."""
    work = folder / "work"
    source, objects = work / "source", work / "objects"
    if not (work / "unpacked").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with progress.step("fetching the source from Debian's mirror"):
            package = debian.fetch_backport(_RELEASE, choose_package, _PREFIX, work)
        with progress.step(f"unpacking {package.name}"):
            _unpack(package, source)
            # Without fuzz: in another place it would do something else.
            apply = ["patch", "--strip=1", "--fuzz=0", f"--directory={source}", f"--input={PATCH}"]
            run(apply, f"applying {PATCH.name}")
        package.unlink()
        (work / "unpacked").write_text(package.name.removesuffix("_all.deb"))
    objects.mkdir(exist_ok=True)
    make = [requirements.program("make"), f"--directory={source}", f"O={objects}", "ARCH=um"]
    with progress.step("configuring"):
        environment = {"KCONFIG_ALLCONFIG": str(CONFIG)}
        run([*make, "allnoconfig"], "configuring the kernel", environment=environment)
        check_config((objects / ".config").read_text())
    with progress.step("compiling", every=3600):
        _compile([*make, f"--jobs={os.cpu_count()}", "all"], objects, progress)
    with progress.step("packing the modules"):
        # `usr/lib`: on the hosts `lib` is a link to it.
        installed = work / "installed"
        shutil.rmtree(installed, ignore_errors=True)
        install = [f"INSTALL_MOD_PATH={installed}/usr", f"DEPMOD={requirements.program('depmod')}"]
        run([*make, *install, "modules_install"], "installing the kernel's modules")
        _pack(installed, folder / MODULES)
    shutil.copyfile(objects / ".config", folder / "config")
    shutil.copyfile(objects / PROGRAM, folder / PROGRAM)
    (folder / PROGRAM).chmod(0o755)
    told = (work / "unpacked").read_text()
    shutil.rmtree(work)
    return told


def _unpack(package: Path, source: Path) -> None:
    """Unpack the kernel's tree, which a source package holds as an archive."""
    inside = package.with_name("package")
    run(["dpkg-deb", "--extract", package, inside], f"unpacking {package.name}")
    archive = inside / f"usr/src/{package.name.partition('_')[0]}.tar.xz"
    source.mkdir()
    options = ["--strip-components=1", f"--directory={source}", f"--file={archive}"]
    run(["tar", "--extract", *options], f"unpacking {archive.name}")
    shutil.rmtree(inside)


def check_config(made: str) -> None:
    """Refuse a configuration that lacks what was asked for: Kconfig drops it without a word.

    :raises UserError: naming every such option.
    """
    has = set(made.splitlines())
    asked = [line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_")]
    lost = [line for line in asked if line not in has]
    if lost:
        raise UserError(f"this kernel source doesn't take these options of {CONFIG.name}: {', '.join(lost)}")


@contextmanager
def _reminding(progress: Progress, objects: Path) -> Iterator[None]:
    """Say every half a minute how many files are compiled."""
    ended = threading.Event()

    def remind() -> None:
        while not ended.wait(30):
            count = sum(1 for _ in objects.rglob("*.o"))
            progress.say(f"{count} files compiled, of about {_FILES_ABOUT}")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        ended.set()
        reminder.join()


def _compile(argv: list[str], objects: Path, progress: Progress) -> None:
    with _reminding(progress, objects):
        tied = [requirements.program("setpriv"), "--pdeathsig", "TERM", "nice", "-n", "5", *argv]
        run(tied, "compiling the kernel")


def _pack(folder: Path, target: Path) -> None:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            # Links into the build's folder.
            if path.name not in ("build", "source"):
                tar.add(path, path.relative_to(folder), recursive=False, filter=plain)
