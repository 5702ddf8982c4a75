"""Convert Debian package metadata to RPM's: versions, names, dependencies, and the spec file.

It doesn't run other programs and uses only the standard library, because `lab.image_rpm` runs it as root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Debian's names -> the rpm family's. A renamed package also provides Debian's name.
FAMILY_NAMES: Mapping[str, str] = {
    "conntrack": "conntrack-tools",
    "iproute2": "iproute",
    "iptables": "iptables-nft",
    "mount": "util-linux",
}
# The family's names for parts that Debian doesn't package separately.
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
        """Parse a Debian version: `1:1.31-5`, `1.7.24~ds1-6+deb13u1`, or `3.0` without a revision.

        A hyphen ends an RPM's version, so hyphens within it become underscores.
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
        raise ValueError(f"not a package relation: {relation!r}")
    name, operator, version = match.groups()
    if operator is None:
        return family_name(name)
    return f"{family_name(name)} {_OPERATORS[operator]} {Version.of_debian(version)}"


def relations(text: str) -> list[str]:
    """Convert Debian's `Depends` or `Provides` to RPM's syntax; alternatives become `(a or b)`.

    Raises:
        ValueError: A relation can't be parsed.
    """
    result = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        choices = list(dict.fromkeys(_one(choice) for choice in part.split("|")))
        result.append(choices[0] if len(choices) == 1 else f"({' or '.join(choices)})")
    return list(dict.fromkeys(result))


def provisions(name: str, version: str, provides: str = "") -> list[str]:
    """What a package provides besides its own name.

    Args:
        name: Debian's name.
        version: Debian's version.
        provides: The Debian package's `Provides` field.
    """
    exact = Version.of_debian(version)
    names = [name] if family_name(name) != name else []
    return list(
        dict.fromkeys([*(f"{n} = {exact}" for n in (*names, *ALSO.get(name, ()))), *relations(provides)])
    )


@dataclass(frozen=True)
class Spec:
    """The contents of a spec file."""

    name: str
    version: Version
    summary: str
    source: str = ""  # the folder with the files to package; empty for a package without files
    files: tuple[str, ...] = ()  # lines of %files
    provides: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    architecture: str = "x86_64"
    scriptlets: Mapping[str, str] = field(default_factory=dict)  # by section, such as `%post`


def _lines(tag: str, values: Iterable[str]) -> list[str]:
    return [f"{tag}: {value}" for value in values]


def text(spec: Spec) -> str:
    """The text of the spec file. RPM's automatic dependencies are off, in favour of Debian's metadata."""
    version = spec.version
    lines = [
        # Package programs unchanged: no stripping, no debug packages, no build-ID links.
        "%global debug_package %{nil}",
        "%global __os_install_post %{nil}",
        "%global _build_id_links none",
        f"Name: {spec.name}",
        *(_lines("Epoch", [version.epoch]) if version.epoch != "0" else []),
        f"Version: {version.version}",
        f"Release: {version.release}",
        f"Summary: {spec.summary}",
        "License: see the Debian package",
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
