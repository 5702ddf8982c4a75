"""The part of making the rpm family's image that needs root: `lab.image_root`, and what differs.

Started by `lab.image` as `python -m lab.image_rpm PLAN`. The system under it is Debian's. What makes it one
of the family for whoever comes by SSH: os-release says so, RPM's database is where the family has it and
knows what the base system provides, dnf is there, and SELinux is enforcing, with every file labelled. A
container runtime isn't there: as on the family's own servers, it is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError
from lab import image_root, rpmspec

BASE_PACKAGE = "lab-base-system"
# As the family has them: the database, and the list of what was installed by whom.
_DATABASE = "/var/lib/rpm"
_CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"
# Programs that packages name by their path, and what dnf knows the release by.
_BESIDE = ("/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash", "/sbin/ldconfig", "/usr/sbin/ldconfig")
# What the family's glibc and systemd do when packages bring libraries or units.
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
    """The package that stands for the base system in RPM's database.

    :param listed: lines `name|version|provides` of what dpkg has installed.
    :param release: what dnf takes for the release: `$releasever`.
    """
    provides = [f"system-release = {release}", *_BESIDE]
    for line in listed:
        name, version, more = line.rstrip("\n").split("|")
        own = f"{rpmspec.family_name(name)} = {rpmspec.Version.of_debian(version)}"
        provides += [own, *rpmspec.provisions(name, version, more)]
    return rpmspec.Spec(
        name=BASE_PACKAGE,
        version=rpmspec.Version("0", release, "1"),
        summary="What the base system holds that RPM has not installed",
        provides=tuple(dict.fromkeys(provides)),
        architecture="noarch",
        scriptlets=_TRIGGERS,
    )


def _in(root: Path, *argv: str) -> str:
    return image_root.run(["chroot", str(root), *argv])


def dress(root: Path) -> None:
    """Fill RPM's database, in a root that has the lab's files already and the kernel's file systems.

    :raises UserError: a program fails.
    """
    listed = _in(root, "dpkg-query", "-W", "-f", "${Package}|${Version}|${Provides}\n").splitlines()
    fields = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if "=" in line
    )
    place = root / "run/base"
    place.mkdir()
    (place / "base.spec").write_text(rpmspec.text(base_spec(listed, fields["VERSION_ID"].strip('"'))))
    _in(root, "rpmbuild", "-bb", "--quiet", "--define", "_topdir /run/base", "/run/base/base.spec")
    (built,) = place.glob("RPMS/noarch/*.rpm")
    # Debian's policy keeps firewalld from its work; the family's own doesn't. The rest is enforced.
    (place / "lab.cil").write_text("(typepermissive firewalld_t)\n")
    _in(root, "semodule", "--noreload", "--install", "/run/base/lab.cil")
    _in(root, "rpm", "--initdb")
    _in(root, "rpm", "--install", "--notriggers", f"/run/base/RPMS/noarch/{built.name}")
    if not (root / _DATABASE.lstrip("/") / "rpmdb.sqlite").exists():
        raise UserError(f"RPM's database isn't in {_DATABASE} of the image")


def label(root: Path) -> None:
    """Give every file the label that the policy has for it; nothing may be mounted in the root.

    :raises UserError: labels can't be written here, as in a user namespace.
    """
    _in(root, "setfiles", "-F", _CONTEXTS, "/")
    os.getxattr(root / "usr/bin/bash", "security.selinux")


SYSTEM = image_root.System(enabled=_ENABLED, dress=dress, finish=label)

if __name__ == "__main__":
    sys.exit(image_root.main(SYSTEM))
