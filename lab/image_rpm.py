"""The part of building the rpm family's image that needs root; extends `lab.image_root`.

`lab.image` starts it as `python -m lab.image_rpm PLAN`. The base system is Debian, but over SSH it looks like
a host of the rpm family: os-release identifies it as one, RPM's database is in the family's location and
lists what the base system provides, dnf is installed, and SELinux is enforcing with every file labelled. As
on a fresh server of the family, there is no container runtime.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError
from lab import image_root, rpmspec

BASE_PACKAGE = "lab-base-system"
_DATABASE = "/var/lib/rpm"  # the family's location
_CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"
# Programs that packages require by path.
_PROGRAMS = ("/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash", "/sbin/ldconfig", "/usr/sbin/ldconfig")
# What the family's glibc and systemd packages do when another package installs libraries or units.
_TRIGGERS = {
    f"{kind} -- {folder}": command
    for folder, command in (
        ("/usr/lib/systemd/system", "/usr/bin/systemctl daemon-reload >/dev/null 2>&1 || :"),
        ("/usr/lib/x86_64-linux-gnu", "/usr/sbin/ldconfig || :"),
    )
    for kind in ("%transfiletriggerin", "%transfiletriggerpostun")
}
_ENABLED = ("systemd-networkd.service", "ssh.service", "firewalld.service")


def base_spec(listed: Iterable[str], release: str) -> rpmspec.Spec:
    """The package that represents the base system in RPM's database.

    Args:
        listed: dpkg's installed packages, as lines of `name|version|provides`.
        release: The value of dnf's `$releasever`.
    """
    provides = [f"system-release = {release}", *_PROGRAMS]
    for line in listed:
        name, version, more = line.rstrip("\n").split("|")
        own = f"{rpmspec.family_name(name)} = {rpmspec.Version.of_debian(version)}"
        provides += [own, *rpmspec.provisions(name, version, more)]
    return rpmspec.Spec(
        name=BASE_PACKAGE,
        version=rpmspec.Version("0", release, "1"),
        summary="Contents of the base system that RPM has not installed",
        provides=tuple(dict.fromkeys(provides)),
        architecture="noarch",
        scriptlets=_TRIGGERS,
    )


def _in(root: Path, *argv: str) -> str:
    return image_root.run(["chroot", str(root), *argv])


def fill_database(root: Path) -> None:
    """Fill RPM's database. The lab's files must be in the root, which is prepared with `mounted`.

    Raises:
        UserError: A program fails.
    """
    listed = _in(root, "dpkg-query", "-W", "-f", "${Package}|${Version}|${Provides}\n").splitlines()
    fields = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if "=" in line
    )
    folder = root / "run/base"
    folder.mkdir()
    (folder / "base.spec").write_text(rpmspec.text(base_spec(listed, fields["VERSION_ID"].strip('"'))))
    _in(root, "rpmbuild", "-bb", "--quiet", "--define", "_topdir /run/base", "/run/base/base.spec")
    (built,) = folder.glob("RPMS/noarch/*.rpm")
    # Debian's policy, unlike the family's, blocks firewalld. Everything else is enforced.
    (folder / "lab.cil").write_text("(typepermissive firewalld_t)\n")
    _in(root, "semodule", "--noreload", "--install", "/run/base/lab.cil")
    _in(root, "rpm", "--initdb")
    _in(root, "rpm", "--install", "--notriggers", f"/run/base/RPMS/noarch/{built.name}")
    if not (root / _DATABASE.lstrip("/") / "rpmdb.sqlite").exists():
        raise UserError(f"the image has no RPM database in {_DATABASE}")


def label(root: Path) -> None:
    """Label every file according to the policy; nothing may be mounted in the root.

    Raises:
        UserError: Labels can't be written, for instance in a user namespace.
    """
    _in(root, "setfiles", "-F", _CONTEXTS, "/")
    os.getxattr(root / "usr/bin/bash", "security.selinux")


SYSTEM = image_root.System(enabled=_ENABLED, customize=fill_database, finish=label)

if __name__ == "__main__":
    sys.exit(image_root.main(SYSTEM))
