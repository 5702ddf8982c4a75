"""The committed stack files are valid, and repeat no shared settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.field_types import Mirror
from model.settings import PREFIX, Section, Settings, section_of
from model.settings_file import load
from tests import stacks


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HOME", str(tmp_path))
    stacks.make_home(tmp_path, request.param)
    return load(stacks.settings_of(request.param), stacks.PROJECT)


@pytest.mark.parametrize("settings", stacks.committed(), indirect=True)
def test_committed_stack_files_are_valid(settings: Settings) -> None:
    for host in settings.hosts:
        assert settings.host_key(host)


def test_lab_staging_and_prod_are_committed() -> None:
    assert {"dev", "staging", "prod"} <= set(stacks.committed())


@pytest.mark.parametrize("settings", ["prod"], indirect=True)
def test_prod_is_protected_and_pins_host_keys(settings: Settings) -> None:
    assert settings.production
    assert settings.ssh.known_hosts_file is None
    assert len({settings.host_key(host) for host in settings.hosts}) == len(settings.hosts)


@pytest.mark.parametrize("settings", ["prod"], indirect=True)
def test_own_settings_override_shared_ones_individually(settings: Settings) -> None:
    assert settings.firewall == "leave"
    assert settings.ssh.user == "ops"
    assert settings.cluster.kubelet.system_reserved == {"cpu": "200m", "memory": "1Gi"}
    shared, first = "https://registry.example.com", "https://registry.prod.example.com"
    assert settings.runtime.mirrors["ghcr.io"] == (Mirror(shared),)
    assert settings.runtime.mirrors["docker.io"] == (Mirror(first), Mirror(shared))


def test_no_environment_repeats_a_shared_setting() -> None:
    for stack in stacks.committed():
        own = stacks.settings_of(stack)
        for shared in stacks.extended(stack):
            assert _same(own, shared) == [], f"Pulumi.{stack}.yaml repeats settings of {own['extends']}"


def _same(own: object, shared: object, path: str = "") -> list[str]:
    if isinstance(own, dict) and isinstance(shared, dict):
        return [
            found
            for name in own
            if name in shared
            for found in _same(own[name], shared[name], f"{path}.{name}")
        ]
    return [path] if own == shared else []


def test_project_defaults_are_empty() -> None:
    known = {field.alias: field for field in Settings.model_fields.values()}
    # The engine treats a default as the stack's own setting, so it would override the extended file.
    for name, declared in yaml.safe_load((stacks.PROJECT / "Pulumi.yaml").read_text())["config"].items():
        assert declared.get("default", {}) == {}, name
        section, _ = section_of(known[name].annotation)
        assert section is not None and issubclass(section, Section), name


def test_prefix_is_the_projects_name() -> None:
    assert yaml.safe_load((stacks.PROJECT / "Pulumi.yaml").read_text())["name"] == PREFIX.removesuffix(":")
