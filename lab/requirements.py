"""The programs that the lab needs on the developer's machine, and their Debian packages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.progress import Progress
from lab.options import Family, debian_mirror

# Users' PATH often lacks the folders of administration programs; those needed here run as anyone.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

_BACKPORTS_FILE = Path("/etc/apt/sources.list.d/kubeadm-ipvs-backports.sources")
_BACKPORTS = """\
Types: deb
URIs: {mirror}
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
_QEMU_PACKAGES = ("qemu-system-x86", "qemu-utils")
_SYSTEMD = Path("/run/systemd/system")
_LOCK_SECONDS = 300.0
_LOCK_PAUSE_SECONDS = 3.0
_OLD_QEMU = 8  # major versions before it run system calls two to three times slower without KVM


@dataclass(frozen=True)
class Requirement:
    """A program or file, and the package that brings it."""

    what: str  # a program's name, or a file's absolute path
    package: str


# What the mirror of packages and images is made with; building it needs a compiler too, and says so.
MIRROR = (
    Requirement("docker-registry", "docker-registry"),
    Requirement("dpkg-deb", "dpkg"),
    Requirement("gpg", "gnupg"),
    Requirement("gpgconf", "gnupg"),
    Requirement("gpgv", "gpgv"),
    Requirement("zstd", "zstd"),
)
REQUIREMENTS = (
    Requirement("qemu-system-x86_64", "qemu-system-x86"),
    Requirement("qemu-img", "qemu-utils"),
    Requirement("mmdebstrap", "mmdebstrap"),
    Requirement("mkfs.ext4", "e2fsprogs"),
    Requirement("mkswap", "util-linux"),
    Requirement("unshare", "util-linux"),
    Requirement("setpriv", "util-linux"),
    Requirement("tar", "tar"),
    Requirement("ssh", "openssh-client"),
    Requirement("ssh-keygen", "openssh-client"),
    *MIRROR,
    Requirement("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
)
# For those who aren't root: user namespaces with more than one user.
ROOTLESS = (Requirement("newuidmap", "uidmap"),)
# For hosts under User Mode Linux, where KVM doesn't work: their kernel is compiled here.
UML = (
    Requirement("bc", "bc"),
    Requirement("bison", "bison"),
    Requirement("depmod", "kmod"),
    Requirement("flex", "flex"),
    Requirement("gcc", "gcc"),
    Requirement("/usr/include/stdio.h", "libc6-dev"),
    Requirement("make", "make"),
    Requirement("patch", "patch"),
    Requirement("xz", "xz-utils"),
)
# For labs of the rpm family: their packages and their repository.
RPM = (
    Requirement("rpmbuild", "rpm"),
    Requirement("rpmsign", "rpm"),
    Requirement("createrepo_c", "createrepo-c"),
)


def find(program: str) -> str | None:
    """A program's path, also where only administrators' PATH has it; None if it isn't there."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def program(name: str) -> str:
    """The path of a program that must be there.

    :raises UserError: it isn't; the message names its package if it is one of ours.
    """
    path = find(name)
    if path is None:
        package = next((r.package for r in (*REQUIREMENTS, *ROOTLESS, *UML, *RPM) if r.what == name), None)
        raise UserError(f"the program {name} isn't installed", f"apt install {package or name}")
    return path


def wanted(family: Family = "deb") -> tuple[Requirement, ...]:
    """What this user needs for labs of a family."""
    rootless = () if os.geteuid() == 0 else ROOTLESS
    return (*REQUIREMENTS, *rootless, *(RPM if family == "rpm" else ()))


def missing(family: Family = "deb") -> tuple[Requirement, ...]:
    """What isn't there."""
    return _lacking(wanted(family))


def _lacking(those: Sequence[Requirement]) -> tuple[Requirement, ...]:
    return tuple(r for r in those if not (Path(r.what).exists() if r.what.startswith("/") else find(r.what)))


def install_uml(progress: Progress) -> None:
    """Install what is missing of what User Mode Linux's kernel is built with.

    :raises UserError: it can't be installed.
    """
    lacking = _lacking(UML)
    if not lacking:
        return
    packages = [r.package for r in lacking]
    if find("apt-get") is None:
        raise UserError(
            f"its kernel can't be built without {', '.join(r.what for r in lacking)}, and this system has no "
            "apt-get",
            f"install by your own means what these packages hold: {' '.join(packages)}",
        )
    with progress.step(f"requirements: installing {' '.join(packages)}"):
        apt(progress, ["update"])
        apt(progress, ["install", "-y", "--no-install-recommends", *packages])


def browser() -> str | None:
    """The path of the browser in which the tests of pages look at them; None if there is none."""
    return find("chromium") or find("chromium-browser")


def browser_package(progress: Progress) -> tuple[str, ...]:
    """The package of that browser; none where one is here, or apt has none."""
    if browser():
        return ()
    if os_release().get("ID") != "debian":
        # Ubuntu's package of that name installs a snap, which needs a service and a shop.
        progress.say(
            "requirements: no chromium here, and only Debian's apt has one: pages stay untried in it"
        )
        return ()
    return ("chromium",)


def check(family: Family = "deb") -> None:
    """Refuse if something is missing.

    :raises UserError: naming every program and its package.
    """
    lacking = missing(family)
    if lacking:
        choice = "" if family == "deb" else f" --family {family}"
        lines = "\n".join(f"{r.what} isn't installed (package {r.package})" for r in lacking)
        packages = " ".join(dict.fromkeys(r.package for r in lacking))
        raise UserError(lines, f"python3 -m lab requirements --install{choice}, or: apt install {packages}")


def qemu_version() -> tuple[int, str] | None:
    """QEMU's major version and its whole version line; None if it isn't installed."""
    path = find("qemu-system-x86_64")
    if path is None:
        return None
    line = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\.", line)
    return (int(match.group(1)), line.splitlines()[0]) if match else None


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of os-release."""
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def kvm_opens() -> bool:
    """Whether this user may use the kernel's own virtualization, as far as can be told without a guest."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def _wants_backports(packages: Sequence[str]) -> bool:
    """Whether QEMU is to come from Debian 12's backports.

    One that is here is exchanged only where guests can't but be emulated: others may use it too.
    """
    release = os_release()
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        return False
    version = qemu_version()
    if version is None:
        return bool(set(packages) & set(_QEMU_PACKAGES))
    return version[0] < _OLD_QEMU and not kvm_opens()


def _privileged(argv: Sequence[str]) -> list[str]:
    if os.geteuid() == 0:
        return list(argv)
    sudo = find("sudo")
    if sudo is None:
        raise UserError("packages can't be installed: neither root nor sudo", f"as root: {' '.join(argv)}")
    return [sudo, *argv]


def apt(progress: Progress, argv: Sequence[str]) -> None:
    """Run apt-get as root or by sudo. Another program's lock is waited for.

    :param argv: apt-get's words.
    :raises UserError: it fails, or there is no right to use it.
    """
    progress.say(f"requirements: apt-get {' '.join(argv)}")
    lock = f"DPkg::Lock::Timeout={_LOCK_SECONDS:.0f}"
    variables = ["LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]
    command = _privileged(["env", *variables, "apt-get", "-q", "-o", lock, *argv])
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        said = done.stdout + done.stderr
        # That option is for dpkg's lock alone: `update` takes another, and gives up at once.
        if "Could not get lock" not in said or time.monotonic() > deadline:
            last = "\n".join(said.splitlines()[-15:])
            raise UserError(f"apt-get {' '.join(argv)} failed:\n{last}", "see what apt says; run it by hand")
        progress.say("requirements: another program uses apt; trying again")
        time.sleep(_LOCK_PAUSE_SECONDS)


@contextlib.contextmanager
def _without_service(packages: Sequence[str]) -> Iterator[None]:
    """Keep docker-registry's own service from being started where it is installed now.

    It would listen on port 5000 of every address, where people like to have a registry of their own. The
    lab starts the program itself. Where the package was here before, its service is somebody's.
    """
    if "docker-registry" not in packages or not _SYSTEMD.is_dir():
        yield
        return
    _systemctl("mask")
    try:
        yield
    finally:
        _systemctl("unmask")
    _systemctl("disable")


def _systemctl(verb: str) -> None:
    command = _privileged(["systemctl", verb, "docker-registry.service"])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"systemctl {verb} docker-registry.service failed: {done.stderr.strip()}",
            "the lab needs the program and not its service: see what systemd says, then run this again",
        )


def install(progress: Progress, extra: Sequence[str] = (), family: Family = "deb") -> None:
    """Install what is missing, as root or by sudo; nothing happens where nothing is missing.

    :param extra: further packages, of other parts of this project, that the caller knows to be missing.
    :param family: of the hosts.
    :raises UserError: there is no apt, no right to use it, or it fails.
    """
    packages = list(dict.fromkeys([*(r.package for r in missing(family)), *extra]))
    backports = _wants_backports(packages)
    if backports:
        packages = list(dict.fromkeys([*packages, *_QEMU_PACKAGES]))
    if not packages:
        return
    if find("apt-get") is None:
        raise UserError(
            "this system has no apt-get", f"install by your own means what these hold: {' '.join(packages)}"
        )
    with progress.step(f"requirements: installing {' '.join(packages)}"):
        if backports and not _BACKPORTS_FILE.exists():
            progress.say(
                "requirements: Debian 12's QEMU is slow without KVM; adding bookworm-backports for QEMU 10"
            )
            text = _BACKPORTS.format(mirror=debian_mirror())
            subprocess.run(
                _privileged(["tee", str(_BACKPORTS_FILE)]),
                input=text, text=True, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        apt(progress, ["update"])
        others = [package for package in packages if not (backports and package in _QEMU_PACKAGES)]
        if backports:
            # Backports have a lower priority and are taken only where asked for.
            apt(
                progress,
                ["install", "-y", "--no-install-recommends", "-t", "bookworm-backports", *_QEMU_PACKAGES],
            )
        if others:
            with _without_service(others):
                apt(progress, ["install", "-y", "--no-install-recommends", *others])
    check(family)
