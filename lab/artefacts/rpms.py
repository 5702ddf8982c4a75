"""Converts Debian packages to RPMs with the package names and file locations of the rpm family.

Debian's maintainer scripts are dropped, because most of what they do is specific to Debian. The rest, such as
the links that update-alternatives would create, is done here.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import rpmspec
from lab.artefacts.command import run

_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")
_MERGED = ("bin", "sbin", "lib", "lib64")
# The kubelet's file of extra arguments has a different path in each family; this drop-in names it.
_DROP_IN = "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"
_DEB_DEFAULTS, _RPM_DEFAULTS = "/etc/default/kubelet", "/etc/sysconfig/kubelet"
# The links to iptables' programs that Debian creates with update-alternatives.
_IPTABLES = tuple(f"{name}{part}" for name in ("iptables", "ip6tables") for part in ("", "-save", "-restore"))

_MACROS = {
    # Make builds reproducible.
    "_buildhost": "mirror",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    # Light compression, because unpacking is slow on an emulated host.
    "_binary_payload": "w1.zstdio",
    "_rpmfilename": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
}


def _fields(deb: Path) -> dict[str, str]:
    text = run(["dpkg-deb", "--field", deb], f"reading {deb.name}").decode()
    return dict(re.findall(r"^([\w-]+): *(.*(?:\n .*)*)$", text, re.MULTILINE))


def arrange(root: Path) -> None:
    """Move a Debian package's unpacked files to where hosts of the rpm family have them."""
    for name in _UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _MERGED:
        # On the hosts these are links into /usr.
        if (root / name).is_dir():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
    drop_in = root / _DROP_IN
    if drop_in.exists():
        drop_in.write_text(drop_in.read_text().replace(_DEB_DEFAULTS, _RPM_DEFAULTS))
    if (root / "usr/sbin/xtables-nft-multi").exists():
        for link in _IPTABLES:
            (root / "usr/sbin" / link).unlink(missing_ok=True)
            (root / "usr/sbin" / link).symlink_to("xtables-nft-multi")


def file_lines(root: Path, known: Collection[str]) -> list[str]:
    """The lines of the spec's %files section: all files, and the folders that the package owns.

    Args:
        root: The folder with the package's files.
        known: Folders of the base system, without a leading slash. The package doesn't own them, so removing
            the package keeps them.
    """
    lines = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() and not path.is_symlink():
            if name not in known:
                lines.append(f'%dir "/{name}"')
        elif name.startswith("etc/"):
            lines.append(f'%config(noreplace) "/{name}"')
        else:
            lines.append(f'"/{name}"')
    return lines


def spec(fields: dict[str, str], root: Path, known: Collection[str]) -> rpmspec.Spec:
    """The spec of the RPM to build from a Debian package.

    Args:
        fields: The fields of its control file.
        root: The folder with its files, after `arrange`.
        known: Folders of the base system, as in `file_lines`.
    """
    name, version = fields["Package"], fields["Version"]
    wanted = ", ".join(filter(None, (fields.get("Pre-Depends"), fields.get("Depends"))))
    return rpmspec.Spec(
        name=rpmspec.family_name(name),
        version=rpmspec.Version.of_debian(version),
        summary=fields["Description"].splitlines()[0].replace("%", "%%"),
        source=str(root),
        files=tuple(file_lines(root, known)),
        provides=tuple(rpmspec.provisions(name, version, fields.get("Provides", ""))),
        requires=tuple(rpmspec.relations(wanted)),
    )


def _make(deb: Path, folder: Path, known: Collection[str]) -> Path:
    with tempfile.TemporaryDirectory(prefix=".rpm-", dir=folder) as name:
        work = Path(name)
        root = work / "root"
        run(["dpkg-deb", "--extract", deb, root], f"unpacking {deb.name}")
        arrange(root)
        spec_file = work / "package.spec"
        spec_file.write_text(rpmspec.text(spec(_fields(deb), root, known)))
        macros = {**_MACROS, "_topdir": str(work / "build"), "_rpmdir": str(work / "out")}
        defines = [part for key, value in macros.items() for part in ("--define", f"{key} {value}")]
        # By default rpmbuild records root as the owner of all files, whoever runs it.
        argv = ["rpmbuild", "-bb", "--quiet", "--target", "x86_64", *defines, spec_file]
        run(argv, f"converting {deb.name} to an RPM", environment={"SOURCE_DATE_EPOCH": "0"})
        (made,) = (work / "out").glob("*.rpm")
        return Path(shutil.move(made, folder / made.name))


def pack(debs: Sequence[Path], folder: Path, known: Collection[str]) -> tuple[Path, ...]:
    """Convert Debian packages to RPMs.

    Args:
        debs: The packages.
        folder: Receives the RPMs.
        known: Folders of the base system, as in `file_lines`.

    Returns:
        The RPMs.

    Raises:
        UserError: A package can't be read, or rpmbuild fails.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return tuple(pool.map(lambda deb: _make(deb, folder, known), debs))


def installed(status: str) -> set[str]:
    """The names of the installed packages in a dpkg status file."""
    return {
        match[1]
        for block in status.split("\n\n")
        if "\nStatus: install ok installed" in block and (match := re.match(r"Package: (\S+)", block))
    }


def missing(debs: Iterable[Path], base: Collection[str]) -> list[Path]:
    """The packages that the base system doesn't have."""
    return sorted(deb for deb in debs if deb.name.split("_")[0] not in base)
