"""Builds the User Mode Linux kernel of the lab's hosts from Debian's source package.

`<cache>/kernel/<key>/` holds the kernel (an executable), its modules as a tar archive, and its complete
configuration. The key is a hash of the options in `uml-kernel.config`, the changes in `uml-kernel.patch` and
the build's format version. It doesn't include the source package's version, so a newer package causes no
rebuild. An interrupted build resumes.
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

from common.cache import cached
from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab import requirements
from lab.artefacts import debian
from lab.artefacts.command import run

CONFIG = Path(__file__).with_name("uml-kernel.config")
PATCH = Path(__file__).with_name("uml-kernel.patch")
PROGRAM, MODULES = "linux", "modules.tar"

_FORMAT = "1"  # increase it when a change to this module changes the result of a build
_RELEASE = "trixie"
_PREFIX = "linux-source-"
# The tested series. User Mode Linux has supported seccomp since 6.16 and SMP, which the cpuset controller
# needs, since 6.19.
_SERIES = (7, 2)
_FILES = 1390  # approximate number of compiled files, for progress lines


def key() -> str:
    """The kernel's cache key. It ignores comments, because a kernel takes minutes to build."""
    options = [line for line in CONFIG.read_text().splitlines() if line.startswith(("CONFIG_", "# CONFIG_"))]
    changes = PATCH.read_text().partition("\n--- ")[2]
    return digest_of(_FORMAT, "\n".join(options), changes, os.uname().machine)[:16]


def ensure(progress: Progress) -> Path:
    """The folder with the kernel and its modules, taken from the cache or built.

    Raises:
        UserError: This machine isn't x86-64, a program is missing, or the build fails.
    """
    scope = progress.scope("kernel")

    def make(partial: Path) -> dict[str, str]:
        if os.uname().machine != "x86_64":
            raise UserError(
                f"the User Mode Linux kernel can be built only for x86_64, not {os.uname().machine}"
            )
        requirements.install_uml(scope)
        return {"source": _make(partial, scope)}

    return cached("kernel", key(), scope, make, resume=True)


def choose_package(names: list[str]) -> str:
    """Choose the source package: the tested series, otherwise the newest later one.

    Raises:
        UserError: There is none.
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
            f"Debian's mirror has no source of Linux {wanted} or later in {_RELEASE}-backports",
            "set KUBEADM_IPVS_DEBIAN_MIRROR to a mirror that has it",
        )
    return series[newest]


def _make(folder: Path, progress: Progress) -> str:
    """Build the kernel in a folder.

    Returns:
        The name and version of the source package.
    """
    work = folder / "work"
    source, objects = work / "source", work / "objects"
    if not (work / "unpacked").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with progress.step("downloading the source from Debian's mirror"):
            package = debian.fetch_backport(_RELEASE, choose_package, _PREFIX, work)
        with progress.step(f"unpacking {package.name}"):
            _unpack(package, source)
            # Without fuzz, so that a hunk is never applied in the wrong place.
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
        # On the hosts /lib is a link to /usr/lib.
        installed = work / "installed"
        shutil.rmtree(installed, ignore_errors=True)
        install = [f"INSTALL_MOD_PATH={installed}/usr", f"DEPMOD={requirements.program('depmod')}"]
        run([*make, *install, "modules_install"], "installing the kernel's modules")
        _pack(installed, folder / MODULES)
    shutil.copyfile(objects / ".config", folder / "config")
    shutil.copyfile(objects / PROGRAM, folder / PROGRAM)
    (folder / PROGRAM).chmod(0o755)
    source_package = (work / "unpacked").read_text()
    shutil.rmtree(work)
    return source_package


def _unpack(package: Path, source: Path) -> None:
    """Unpack the source archive inside a Debian source package."""
    inside = package.with_name("package")
    run(["dpkg-deb", "--extract", package, inside], f"unpacking {package.name}")
    archive = inside / f"usr/src/{package.name.partition('_')[0]}.tar.xz"
    source.mkdir()
    options = ["--strip-components=1", f"--directory={source}", f"--file={archive}"]
    run(["tar", "--extract", *options], f"unpacking {archive.name}")
    shutil.rmtree(inside)


def check_config(made: str) -> None:
    """Check that the generated configuration has all options in `CONFIG`. Kconfig silently drops some.

    Raises:
        UserError: Options are missing; the message names all of them.
    """
    present = set(made.splitlines())
    required = [line for line in CONFIG.read_text().splitlines() if line.startswith(("CONFIG_", "# CONFIG_"))]
    missing = [line for line in required if line not in present]
    if missing:
        raise UserError(f"this kernel source doesn't accept options in {CONFIG.name}: {', '.join(missing)}")


@contextmanager
def _reporting(progress: Progress, objects: Path) -> Iterator[None]:
    """Report the number of compiled files every 30 seconds."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(30):
            count = sum(1 for _ in objects.rglob("*.o"))
            progress.say(f"{count} of about {_FILES} files compiled")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _compile(argv: list[str], objects: Path, progress: Progress) -> None:
    with _reporting(progress, objects):
        argv = [requirements.program("setpriv"), "--pdeathsig", "TERM", "nice", "-n", "5", *argv]
        run(argv, "compiling the kernel")


def _pack(folder: Path, target: Path) -> None:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            # `build` and `source` are links to the build folder.
            if path.name not in ("build", "source"):
                tar.add(path, path.relative_to(folder), recursive=False, filter=plain)
