"""RPMs of the same programs that Debian packages hold, with the family's names and places.

Debian's maintainer scripts are left out, as most of their work is Debian's own; what of it is needed, such as
the links that alternatives would make, is done here.
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
# The files that are Debian's form of one that the family has elsewhere.
_DROP_IN = "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"
_DEBIANS_DEFAULTS, _FAMILYS_DEFAULTS = "/etc/default/kubelet", "/etc/sysconfig/kubelet"
# The names that Debian's alternatives give to iptables' programs.
_IPTABLES = tuple(f"{name}{part}" for name in ("iptables", "ip6tables") for part in ("", "-save", "-restore"))

_MACROS = {
    # The same input makes the same bytes.
    "_buildhost": "mirror",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    # Weakly packed: installing is what takes time on an emulated host.
    "_binary_payload": "w1.zstdio",
    "_rpmfilename": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
}


def _fields(deb: Path) -> dict[str, str]:
    text = run(["dpkg-deb", "--field", deb], f"reading {deb.name}").decode()
    return dict(re.findall(r"^([\w-]+): *(.*(?:\n .*)*)$", text, re.MULTILINE))


def arrange(root: Path) -> None:
    """Bring the files of a Debian package to where a host of the family has them."""
    for name in _UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _MERGED:
        # On the host these are links into /usr.
        if (root / name).is_dir():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
    drop_in = root / _DROP_IN
    if drop_in.exists():
        drop_in.write_text(drop_in.read_text().replace(_DEBIANS_DEFAULTS, _FAMILYS_DEFAULTS))
    if (root / "usr/sbin/xtables-nft-multi").exists():
        for link in _IPTABLES:
            (root / "usr/sbin" / link).unlink(missing_ok=True)
            (root / "usr/sbin" / link).symlink_to("xtables-nft-multi")


def file_lines(root: Path, known: Collection[str]) -> list[str]:
    """The lines of %files: every file, and the folders that go with the package.

    :param known: folders that the base system has, without a leading slash: they stay.
    """
    lines = []
    for path in sorted(root.rglob("*")):
        place = str(path.relative_to(root))
        if path.is_dir() and not path.is_symlink():
            if place not in known:
                lines.append(f'%dir "/{place}"')
        elif place.startswith("etc/"):
            lines.append(f'%config(noreplace) "/{place}"')
        else:
            lines.append(f'"/{place}"')
    return lines


def spec(fields: dict[str, str], root: Path, known: Collection[str]) -> rpmspec.Spec:
    """The spec of the RPM that a Debian package makes.

    :param fields: of its control file.
    :param root: folder with its files, arranged.
    :param known: see `file_lines`.
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
        place = Path(name)
        root = place / "root"
        run(["dpkg-deb", "--extract", deb, root], f"unpacking {deb.name}")
        arrange(root)
        written = place / "package.spec"
        written.write_text(rpmspec.text(spec(_fields(deb), root, known)))
        macros = {**_MACROS, "_topdir": str(place / "build"), "_rpmdir": str(place / "out")}
        defines = [part for key, value in macros.items() for part in ("--define", f"{key} {value}")]
        # Owned by root whoever makes it, which only RPM's own list can say.
        argv = ["rpmbuild", "-bb", "--quiet", "--target", "x86_64", *defines, written]
        run(argv, f"making an RPM of {deb.name}", environment={"SOURCE_DATE_EPOCH": "0"})
        (made,) = (place / "out").glob("*.rpm")
        return Path(shutil.move(made, folder / made.name))


def pack(debs: Sequence[Path], folder: Path, known: Collection[str]) -> tuple[Path, ...]:
    """Make the RPMs of Debian packages in a folder.

    :param known: folders of the base system, which no package takes along when it goes.
    :raises UserError: a package can't be read, or rpmbuild fails.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return tuple(pool.map(lambda deb: _make(deb, folder, known), debs))


def installed(status: str) -> set[str]:
    """The packages that a dpkg status file says are installed."""
    return {
        match[1]
        for block in status.split("\n\n")
        if "\nStatus: install ok installed" in block and (match := re.match(r"Package: (\S+)", block))
    }


def lacking(debs: Iterable[Path], base: Collection[str]) -> list[Path]:
    """Those of the packages that the base system hasn't."""
    return sorted(deb for deb in debs if deb.name.split("_")[0] not in base)
