"""RPM metadata converted from Debian's: versions, names and dependencies."""

from __future__ import annotations

import pytest

from lab import image_rpm, rpmspec
from lab.rpmspec import Version


@pytest.mark.parametrize(
    ("debian", "rpm"),
    [
        ("1.37.2-1.1", "0:1.37.2-1.1"),
        ("1:1.31-5", "1:1.31-5"),
        ("1.7.24~ds1-6+deb13u1", "0:1.7.24~ds1-6+deb13u1"),
        ("3.0", "0:3.0-0"),
        ("2.0-rc1-3", "0:2.0_rc1-3"),
    ],
)
def test_debian_version_becomes_an_rpm_version(debian: str, rpm: str) -> None:
    assert str(Version.of_debian(debian)) == rpm


def test_dependencies_use_rpm_names_and_keep_alternatives() -> None:
    text = "iptables (>= 1.4.21), mount, python3:any, debconf (>= 0.5) | debconf-2.0, libx (<< 2:1-1), libx"
    assert rpmspec.relations(text) == [
        "iptables-nft >= 0:1.4.21-0",
        "util-linux",
        "python3",
        "(debconf >= 0:0.5-0 or debconf-2.0)",
        "libx < 2:1-1",
        "libx",
    ]
    assert rpmspec.relations("") == []


def test_unreadable_relation_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a package relation"):
        rpmspec.relations("libx (about 2)")


def test_renamed_package_also_provides_debians_name() -> None:
    assert rpmspec.provisions("conntrack", "1:1.4.8-2") == ["conntrack = 1:1.4.8-2"]
    assert rpmspec.provisions("iproute2", "6.15-1") == ["iproute2 = 0:6.15-1", "iproute-tc = 0:6.15-1"]
    assert rpmspec.provisions("ipset", "7.22-1", "ipset-virtual") == ["ipset-virtual"]


def test_base_package_provides_packages_shell_and_release() -> None:
    spec = image_rpm.base_spec(["kmod|34.2-2|\n", "iproute2|6.15-1|arpd\n", "mawk|1.3-1|awk (= 1.3)\n"], "13")
    assert {
        "kmod = 0:34.2-2", "iproute = 0:6.15-1", "iproute-tc = 0:6.15-1", "arpd", "awk = 0:1.3-0",
        "/bin/sh", "system-release = 13",
    } <= set(spec.provides)  # fmt: skip
    text = rpmspec.text(spec)
    assert "%transfiletriggerin -- /usr/lib/systemd/system\n/usr/bin/systemctl daemon-reload" in text
    assert text.rstrip().endswith("%files"), "the package owns no files"
