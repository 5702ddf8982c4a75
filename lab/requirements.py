"""The programs that the lab needs on this machine, and their Debian packages."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.apt import apt_get, as_root
from common.apt import find as find
from common.errors import UserError
from common.progress import Progress
from lab.options import Family, debian_mirror

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
_OLD_QEMU = 8  # earlier major versions run system calls two to three times slower without KVM


@dataclass(frozen=True)
class Requirement:
    """A program or file, and the package that provides it."""

    what: str  # a program's name, or a file's absolute path
    package: str


# For the mirror. Building one needs a compiler as well, which is reported then.
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
# For users other than root: user namespaces with more than one user ID.
ROOTLESS = (Requirement("newuidmap", "uidmap"),)
# For compiling the User Mode Linux kernel, used if KVM isn't available.
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
# For labs of the rpm family: building packages and their repository.
RPM = (
    Requirement("rpmbuild", "rpm"),
    Requirement("rpmsign", "rpm"),
    Requirement("createrepo_c", "createrepo-c"),
)


def program(name: str) -> str:
    """The path of a program that must be installed.

    Raises:
        UserError: It isn't installed; the message names its package.
    """
    path = find(name)
    if path is None:
        package = next((r.package for r in (*REQUIREMENTS, *ROOTLESS, *UML, *RPM) if r.what == name), None)
        raise UserError(f"{name} isn't installed", f"apt install {package or name}")
    return path


def wanted(family: Family = "deb") -> tuple[Requirement, ...]:
    """The requirements for a family's labs, for the current user."""
    rootless = () if os.geteuid() == 0 else ROOTLESS
    return (*REQUIREMENTS, *rootless, *(RPM if family == "rpm" else ()))


def missing(family: Family = "deb") -> tuple[Requirement, ...]:
    """The requirements that aren't installed."""
    return _missing(wanted(family))


def _missing(requirements: Sequence[Requirement]) -> tuple[Requirement, ...]:
    return tuple(
        r for r in requirements if not (Path(r.what).exists() if r.what.startswith("/") else find(r.what))
    )


def install_uml(progress: Progress) -> None:
    """Install the missing build tools of User Mode Linux's kernel.

    Raises:
        UserError: They can't be installed.
    """
    absent = _missing(UML)
    if not absent:
        return
    packages = [r.package for r in absent]
    if find("apt-get") is None:
        raise UserError(
            f"building the User Mode Linux kernel needs {', '.join(r.what for r in absent)}, "
            "and this system has no apt-get",
            f"install the equivalents of these Debian packages yourself: {' '.join(packages)}",
        )
    with progress.step(f"requirements: installing {' '.join(packages)}"):
        scope = progress.scope("requirements")
        apt_get(scope, ["update"])
        apt_get(scope, ["install", "-y", "--no-install-recommends", *packages])


def browser() -> str | None:
    """The path of the browser that the tests of HTML pages use; None if there is none."""
    return find("chromium") or find("chromium-browser")


def browser_package(progress: Progress) -> tuple[str, ...]:
    """The package to install for a browser; empty if one is installed or apt has no suitable package."""
    if browser():
        return ()
    if os_release().get("ID") != "debian":
        # Ubuntu's package of that name installs a snap, which needs snapd and the snap store.
        progress.say(
            "requirements: chromium isn't installed, and only Debian has a package for it; "
            "tests that need a browser will be skipped"
        )
        return ()
    return ("chromium",)


def check(family: Family = "deb") -> None:
    """Check that everything is installed.

    Raises:
        UserError: Something is missing; the message lists everything with its package.
    """
    absent = missing(family)
    if absent:
        choice = "" if family == "deb" else f" --family {family}"
        lines = "\n".join(f"{r.what} isn't installed (package {r.package})" for r in absent)
        packages = " ".join(dict.fromkeys(r.package for r in absent))
        command = f".venv/bin/python -m lab requirements --install{choice}"
        raise UserError(lines, f"{command}, or: apt install {packages}")


def qemu_version() -> tuple[int, str] | None:
    """QEMU's major version and full version line; None if it isn't installed."""
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


def can_open_kvm() -> bool:
    """Whether the current user can open /dev/kvm, which doesn't guarantee that a guest runs."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def _wants_backports(packages: Sequence[str]) -> bool:
    """Whether to install QEMU from Debian 12's backports.

    An installed QEMU is replaced only if guests have to be emulated, because it may have other users.
    """
    release = os_release()
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        return False
    version = qemu_version()
    if version is None:
        return bool(set(packages) & set(_QEMU_PACKAGES))
    return version[0] < _OLD_QEMU and not can_open_kvm()


@contextlib.contextmanager
def _without_service(packages: Sequence[str]) -> Iterator[None]:
    """Keep docker-registry's own service disabled if the package is being installed.

    The service would listen on port 5000 of every address, where the user may want their own registry.
    The lab starts the program itself. If the package was already installed, its service is left alone.
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
    command = as_root(["systemctl", verb, "docker-registry.service"])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"systemctl {verb} docker-registry.service failed: {done.stderr.strip()}",
            "fix the error above and run this again; the lab needs the program without its service",
        )


def install(progress: Progress, extra: Sequence[str] = (), family: Family = "deb") -> None:
    """Install what is missing, as root or with sudo.

    Args:
        progress: Reports the installation.
        extra: More packages that the caller knows to be missing.
        family: The hosts' family.

    Raises:
        UserError: There is no apt-get, it fails, or the user is neither root nor has sudo.
    """
    packages = list(dict.fromkeys([*(r.package for r in missing(family)), *extra]))
    backports = _wants_backports(packages)
    if backports:
        packages = list(dict.fromkeys([*packages, *_QEMU_PACKAGES]))
    if not packages:
        return
    if find("apt-get") is None:
        raise UserError(
            "this system has no apt-get",
            f"install the equivalents of these Debian packages yourself: {' '.join(packages)}",
        )
    with progress.step(f"requirements: installing {' '.join(packages)}"):
        if backports and not _BACKPORTS_FILE.exists():
            progress.say(
                "requirements: Debian 12's QEMU is slow without KVM; adding bookworm-backports for QEMU 10"
            )
            text = _BACKPORTS.format(mirror=debian_mirror())
            subprocess.run(
                as_root(["tee", str(_BACKPORTS_FILE)]),
                input=text, text=True, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        scope = progress.scope("requirements")
        apt_get(scope, ["update"])
        others = [package for package in packages if not (backports and package in _QEMU_PACKAGES)]
        if backports:
            # Backports have a lower priority, so they must be requested explicitly.
            apt_get(
                scope,
                ["install", "-y", "--no-install-recommends", "-t", "bookworm-backports", *_QEMU_PACKAGES],
            )
        if others:
            with _without_service(others):
                apt_get(scope, ["install", "-y", "--no-install-recommends", *others])
    check(family)
