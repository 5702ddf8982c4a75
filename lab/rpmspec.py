"""RPM packages from what Debian's say of themselves: versions, names, dependencies, and the spec file.

Nothing here starts anything, and only the standard library is used: `lab.image_rpm` runs it as root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# What the rpm family calls it. The package then provides Debian's name as well.
FAMILY_NAMES: Mapping[str, str] = {
    "conntrack": "conntrack-tools",
    "iproute2": "iproute",
    "iptables": "iptables-nft",
    "mount": "util-linux",
}
# Names that the family has beside, for a part that Debian doesn't package alone.
ALSO: Mapping[str, tuple[str, ...]] = {"iproute2": ("iproute-tc",), "iptables": ("iptables",)}

_OPERATORS = {"<<": "<", "<=": "<=", "=": "=", ">=": ">=", ">>": ">"}
_RELATION = re.compile(r"^([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9]+)?(?: *\((<<|<=|=|>=|>>) *([^)\s]+)\))?$")


@dataclass(frozen=True)
class Version:
    """An RPM's epoch, version and release."""

    epoch: str
    version: str
    release: str

    @staticmethod
    def of_debian(text: str) -> Version:
        """From Debian's form: `1:1.31-5`, `1.7.24~ds1-6+deb13u1`, or without a revision `3.0`.

        In an RPM a hyphen ends the version, so one within it becomes an underscore.
        """
        epoch, colon, rest = text.partition(":")
        upstream, _, revision = (rest if colon else text).rpartition("-")
        if not upstream:
            upstream, revision = revision, "0"
        return Version(epoch if colon else "0", upstream.replace("-", "_"), revision)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.version}-{self.release}"


def family_name(debian: str) -> str:
    """The package's name in the rpm family."""
    return FAMILY_NAMES.get(debian, debian)


def _one(relation: str) -> str:
    match = _RELATION.match(relation.strip())
    if match is None:
        raise ValueError(f"no relation between packages: {relation!r}")
    name, operator, version = match.groups()
    if operator is None:
        return family_name(name)
    return f"{family_name(name)} {_OPERATORS[operator]} {Version.of_debian(version)}"


def relations(text: str) -> list[str]:
    """Debian's `Depends` (or `Provides`) as RPM has it; a choice becomes `(a or b)`.

    :raises ValueError: a relation can't be read.
    """
    result = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        choices = list(dict.fromkeys(_one(choice) for choice in part.split("|")))
        result.append(choices[0] if len(choices) == 1 else f"({' or '.join(choices)})")
    return list(dict.fromkeys(result))


def provisions(name: str, version: str, provides: str = "") -> list[str]:
    """What a package provides beside its own name: Debian's name, the family's others, and what it says.

    :param name: Debian's.
    :param version: Debian's.
    :param provides: its field `Provides`.
    """
    exact = Version.of_debian(version)
    names = [name] if family_name(name) != name else []
    return list(
        dict.fromkeys([*(f"{n} = {exact}" for n in (*names, *ALSO.get(name, ()))), *relations(provides)])
    )


@dataclass(frozen=True)
class Spec:
    """What a spec file is made of."""

    name: str
    version: Version
    summary: str
    source: str = ""  # folder whose files are packaged; none: a package without files
    files: tuple[str, ...] = ()  # lines of %files
    provides: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    architecture: str = "x86_64"
    scriptlets: Mapping[str, str] = field(default_factory=dict)  # such as `%post` -> its text


def _lines(tag: str, values: Iterable[str]) -> list[str]:
    return [f"{tag}: {value}" for value in values]


def text(spec: Spec) -> str:
    """The spec file. RPM itself finds nothing out: what is required and provided is what Debian says."""
    version = spec.version
    lines = [
        # Programs are packaged as they are: not stripped, no copies for debuggers, no links by build id.
        "%global debug_package %{nil}",
        "%global __os_install_post %{nil}",
        "%global _build_id_links none",
        f"Name: {spec.name}",
        *(_lines("Epoch", [version.epoch]) if version.epoch != "0" else []),
        f"Version: {version.version}",
        f"Release: {version.release}",
        f"Summary: {spec.summary}",
        "License: as its Debian package says",
        f"BuildArch: {spec.architecture}",
        "AutoReqProv: no",
        *_lines("Provides", spec.provides),
        *_lines("Requires", spec.requires),
        "",
        "%description",
        f"{spec.summary}.",
        "",
        "%install",
        "mkdir -p %{buildroot}",
        *([f"cp -a {spec.source}/. %{{buildroot}}/"] if spec.source else []),
        "",
        *(part for kind, body in spec.scriptlets.items() for part in (kind, body, "")),
        "%files",
        *spec.files,
    ]
    return "\n".join(lines) + "\n"
