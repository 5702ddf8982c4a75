"""The programs that the lab needs on the developer's machine, and their Debian packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import Trouble
from lab.options import Family
from lab.progress import Progress

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
_OLD_QEMU = 8  # major versions before it run system calls two to three times slower without KVM


@dataclass(frozen=True)
class Requirement:
    """A program or file, and the package that brings it."""

    what: str  # a program's name, or a file's absolute path
    package: str


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
    Requirement("docker-registry", "docker-registry"),
    Requirement("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
)
# For those who aren't root: user namespaces with more than one user.
ROOTLESS = (Requirement("newuidmap", "uidmap"),)
# For labs of the dnf family: their packages and their repository.
_DNF = (
    Requirement("rpmbuild", "rpm"),
    Requirement("rpmsign", "rpm"),
    Requirement("createrepo_c", "createrepo-c"),
)


def find(program: str) -> str | None:
    """A program's path, also where only administrators' PATH has it; None if it isn't there."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def program(name: str) -> str:
    """The path of a program that must be there.

    :raises Trouble: it isn't; the message names its package if it is one of ours.
    """
    path = find(name)
    if path is None:
        package = next((r.package for r in (*REQUIREMENTS, *ROOTLESS, *_DNF) if r.what == name), None)
        raise Trouble(f"the program {name} isn't installed", f"apt install {package or name}")
    return path


def wanted(family: Family = "deb") -> tuple[Requirement, ...]:
    """What this user needs for labs of a family."""
    rootless = () if os.geteuid() == 0 else ROOTLESS
    return (*REQUIREMENTS, *rootless, *(_DNF if family == "dnf" else ()))


def missing(family: Family = "deb") -> tuple[Requirement, ...]:
    """What isn't there."""
    return tuple(
        r for r in wanted(family) if not (Path(r.what).exists() if r.what.startswith("/") else find(r.what))
    )


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

    :raises Trouble: naming every program and its package.
    """
    lacking = missing(family)
    if lacking:
        choice = "" if family == "deb" else f" --family {family}"
        lines = "\n".join(f"{r.what} isn't installed (package {r.package})" for r in lacking)
        packages = " ".join(dict.fromkeys(r.package for r in lacking))
        raise Trouble(lines, f"python3 -m lab requirements --install{choice}, or: apt install {packages}")


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


def _wants_backports(packages: Sequence[str]) -> bool:
    release = os_release()
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        return False
    version = qemu_version()
    return bool(set(packages) & set(_QEMU_PACKAGES)) if version is None else version[0] < _OLD_QEMU


def _privileged(argv: Sequence[str]) -> list[str]:
    if os.geteuid() == 0:
        return list(argv)
    sudo = find("sudo")
    if sudo is None:
        raise Trouble("packages can't be installed: neither root nor sudo", f"as root: {' '.join(argv)}")
    return [sudo, *argv]


def _apt(progress: Progress, argv: Sequence[str]) -> None:
    progress.say(f"requirements: {' '.join(argv)}")
    prefix = ["env", "DEBIAN_FRONTEND=noninteractive"]
    # A dpkg lock that another program holds is waited for.
    command = _privileged([*prefix, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *argv])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise Trouble(f"apt-get {' '.join(argv)} failed:\n{last}", "see what apt says; run it by hand")


def install(progress: Progress, extra: Sequence[str] = (), family: Family = "deb") -> None:
    """Install what is missing, as root or by sudo; nothing happens where nothing is missing.

    :param extra: further packages, of other parts of this project, that the caller knows to be missing.
    :param family: of the hosts.
    :raises Trouble: there is no apt, no right to use it, or it fails.
    """
    packages = list(dict.fromkeys([*(r.package for r in missing(family)), *extra]))
    backports = _wants_backports(packages)
    if backports:
        packages = list(dict.fromkeys([*packages, *_QEMU_PACKAGES]))
    if not packages:
        return
    if find("apt-get") is None:
        raise Trouble(
            "this system has no apt-get", f"install by your own means what these hold: {' '.join(packages)}"
        )
    with progress.step(f"requirements: installing {' '.join(packages)}"):
        if backports and not _BACKPORTS_FILE.exists():
            progress.say(
                "requirements: Debian 12's QEMU is slow without KVM; adding bookworm-backports for QEMU 10"
            )
            text = _BACKPORTS.format(mirror="http://deb.debian.org/debian")
            subprocess.run(
                _privileged(["tee", str(_BACKPORTS_FILE)]),
                input=text, text=True, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        _apt(progress, ["update"])
        others = [package for package in packages if not (backports and package in _QEMU_PACKAGES)]
        if backports:
            # Backports have a lower priority and are taken only where asked for.
            _apt(
                progress,
                ["install", "-y", "--no-install-recommends", "-t", "bookworm-backports", *_QEMU_PACKAGES],
            )
        if others:
            _apt(progress, ["install", "-y", "--no-install-recommends", *others])
    # The packages bring a service of their own, which would hold no port of ours but needs none either.
    check(family)
