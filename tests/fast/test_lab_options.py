"""The options of a lab."""

from __future__ import annotations

from typing import cast

import pytest

from common.errors import UserError
from lab.options import Family, Options


def test_default_lab_has_documented_hosts() -> None:
    hosts = Options().hosts()
    assert [(h.name, h.role, h.address) for h in hosts] == [
        ("master", "control-plane", "192.168.166.101"),
        ("node1", "worker", "192.168.166.102"),
        ("node2", "worker", "192.168.166.103"),
    ]
    assert [h.cpus for h in hosts] == [2, 1, 1]


def test_chosen_memory_and_cpus_apply_to_every_host() -> None:
    hosts = Options(memory=1024, cpus=4).hosts()
    assert {(h.memory, h.cpus) for h in hosts} == {(1024, 4)}


def test_all_invalid_options_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        Options(count=0, memory=1, cpus=0, release="sid", family=cast("Family", "apk"))
    for name in ("count", "memory", "cpus", "release", "family"):
        assert f"{name}:" in str(caught.value)


def test_rpm_family_needs_one_release() -> None:
    assert Options(family="rpm").release == "trixie"
    with pytest.raises(UserError, match="family: rpm needs release trixie, not bookworm"):
        Options(family="rpm", release="bookworm")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "-a", "a-", "a" * 33])
def test_unsafe_lab_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="not a valid lab name"):
        Options(name=name)
