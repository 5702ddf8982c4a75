"""The committed stack files are usable, and what they share is in one place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.settings import PREFIX, Section, Settings, load, section_of
from tests import stacks


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HOME", str(tmp_path))
    stacks.make_home(tmp_path, request.param)
    return load(stacks.settings_of(request.param), stacks.PROJECT)


@pytest.mark.parametrize("settings", stacks.committed(), indirect=True)
def test_a_committed_stack_file_is_without_fault(settings: Settings) -> None:
    for host in settings.hosts:
        assert settings.host_key(host)


def test_the_lab_and_two_kinds_of_real_environments_are_committed() -> None:
    assert {"dev", "staging", "prod"} <= set(stacks.committed())


@pytest.mark.parametrize("settings", ["prod"], indirect=True)
def test_the_example_of_production_is_protected_and_pins_its_hosts_in_the_file(settings: Settings) -> None:
    assert settings.production
    assert settings.ssh.known_hosts_file is None
    assert len({settings.host_key(host) for host in settings.hosts}) == len(settings.hosts)


@pytest.mark.parametrize("settings", ["prod"], indirect=True)
def test_an_environment_has_the_shared_settings_and_its_own_win_name_by_name(settings: Settings) -> None:
    assert settings.firewall == "leave"
    assert settings.ssh.user == "ops"
    assert settings.cluster.kubelet.system_reserved == {"cpu": "200m", "memory": "1Gi"}
    shared, first = "https://registry.example.com", "https://registry.prod.example.com"
    assert settings.registry.mirrors["ghcr.io"] == (shared,)
    assert settings.registry.mirrors["docker.io"] == (first, shared)


def test_no_setting_of_an_environment_repeats_what_is_shared() -> None:
    for stack in stacks.committed():
        own = stacks.settings_of(stack)
        for shared in stacks.extended(stack):
            assert _same(own, shared) == [], f"Pulumi.{stack}.yaml says again what {own['extends']} says"


def _same(own: object, shared: object, path: str = "") -> list[str]:
    if isinstance(own, dict) and isinstance(shared, dict):
        return [
            found
            for name in own
            if name in shared
            for found in _same(own[name], shared[name], f"{path}.{name}")
        ]
    return [path] if own == shared else []


def test_no_default_of_the_project_speaks_for_a_stack() -> None:
    # The engine hands a default out as the stack's own word: it would win over what the stack extends.
    for name, declared in yaml.safe_load((stacks.PROJECT / "Pulumi.yaml").read_text())["config"].items():
        assert declared.get("default", {}) == {}, name
        section, _ = section_of(Settings.model_fields[name].annotation)
        assert section is not None and issubclass(section, Section), name


def test_a_stack_files_prefix_is_the_projects_name() -> None:
    assert yaml.safe_load((stacks.PROJECT / "Pulumi.yaml").read_text())["name"] == PREFIX.removesuffix(":")
