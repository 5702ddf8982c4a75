"""Finding and installing provider plugins."""

from __future__ import annotations

import subprocess
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

from common import versions
from common.progress import Progress
from tests.fast.fake_programs import program
from tools import engine, provider_plugins
from tools.provider_plugins import STAND_IN

pytestmark = pytest.mark.usefixtures("isolated")

QUIET = Progress(quiet=True)


def test_plugins_have_the_sdk_packages_versions() -> None:
    assert {name: installed_version(f"pulumi-{name}") for name in versions.PLUGINS} == versions.PLUGINS


def test_path_precedes_plugin_cache_and_stand_ins(tmp_path: Path) -> None:
    version = versions.PLUGINS["command"]
    found = provider_plugins.find(QUIET, Path("pulumi"), ask_upstream=False)
    assert [tool.source for tool in found] == [STAND_IN] * 2
    cached = program(
        tmp_path / "home" / "plugins" / f"resource-command-v{version}" / "pulumi-resource-command"
    )
    found = provider_plugins.find(QUIET, Path("pulumi"), ask_upstream=False)
    assert (found[0].source, found[0].path) == ("plugin cache", cached)
    on_path = program(tmp_path / "bin" / "pulumi-resource-command")
    found = provider_plugins.find(QUIET, Path("pulumi"), ask_upstream=False)
    assert (found[0].source, found[0].path) == ("PATH", on_path)


def test_missing_plugins_are_installed_from_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "reachable", lambda host: True)
    pulumi = program(
        tmp_path / "engine" / "pulumi",
        '[ "$4" = command ] || exit 1\n'
        'd="$PULUMI_HOME/plugins/resource-$4-v$5"; /bin/mkdir -p "$d"\n'
        'echo > "$d/pulumi-resource-$4"',
    )
    found = provider_plugins.find(QUIET, pulumi, ask_upstream=True)
    assert [tool.source for tool in found] == ["plugin cache", STAND_IN]


def test_launcher_starts_stand_in_from_any_folder(tmp_path: Path) -> None:
    start = provider_plugins.launcher("command") / "pulumi-resource-command"
    running = subprocess.Popen(
        [str(start), "127.0.0.1:1"],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        text=True,
    )
    try:
        assert running.stdout is not None
        assert int(running.stdout.readline()) > 0
    finally:
        running.kill()
        running.wait()
