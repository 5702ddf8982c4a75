"""Building the kernel for User Mode Linux."""

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


def test_only_options_and_changes_decide_the_cache_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_with(config: str, patch: str) -> str:
        for name, text in (("CONFIG", config), ("PATCH", patch)):
            (tmp_path / name).write_text(text)
            monkeypatch.setattr(kernel, name, tmp_path / name)
        return kernel.key()

    config, patch = kernel.CONFIG.read_text(), kernel.PATCH.read_text()
    before = kernel.key()
    assert key_with(f"# Another comment.\n{config}", f"Another reason.\n{patch}") == before
    assert key_with(f"{config}CONFIG_OTHER=y\n", patch) != before
    assert key_with(f"{config}# CONFIG_OTHER is not set\n", patch) != before
    assert key_with(config, patch.replace("uml_ncpus > 1", "uml_ncpus > 2")) != before


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
