"""The build of User Mode Linux's kernel."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from common.errors import UserError
from lab.artefacts import kernel
from tests.fast.saved_lab import QUIET


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["linux-source", "linux-source-6.12", "linux-source-7.2", "linux-source-7.3"], "linux-source-7.2"),
        (["linux-source-7.3", "linux-source-7.10", "linux-source-7.4-rt"], "linux-source-7.10"),
    ],
)
def test_tested_kernel_series_is_preferred(names: list[str], chosen: str) -> None:
    assert kernel.choose_package(names) == chosen


@pytest.mark.parametrize("names", [[], ["linux-source-6.12", "linux-source-7.1"]])
def test_old_kernel_sources_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"no source of Linux 7\.2 or later"):
        kernel.choose_package(names)


def test_option_dropped_by_kconfig_is_reported() -> None:
    text = kernel.CONFIG.read_text()
    kernel.check_config(text)
    with pytest.raises(UserError, match="CONFIG_IP_VS_RR=m, CONFIG_IP_VS_NFCT=y"):
        kernel.check_config(text.replace("CONFIG_IP_VS_RR=m\n", "").replace("IP_VS_NFCT=y", "IP_VS_NFCT=n"))


def test_kernel_is_built_only_on_x86(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "uname", lambda: namedtuple("Uname", "machine")("aarch64"))
    with pytest.raises(UserError, match="aarch64"):
        kernel.ensure(QUIET)
