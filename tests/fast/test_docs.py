"""The pages say what is so: settings, examples, commands."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lab import ports
from lab.__main__ import _parser as lab_parser
from model.settings import PREFIX, load
from tests.fast.test_reference import faults

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx1BZx8x1Ch1v0mVRy2F1S7ZrYHn3bQJtY4Q5o1V8pK"


def examples() -> list[tuple[str, dict[str, object]]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            config = yaml.safe_load(block)["config"]
            found.append((page.name, {name.removeprefix(PREFIX): value for name, value in config.items()}))
    return found


@pytest.mark.parametrize(("page", "config"), examples())
def test_an_example_configuration_is_accepted(
    page: str, config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    reached = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "[node2.example.com]:2222"]
    (tmp_path / ".ssh/known_hosts").write_text("".join(f"{host} {KEY}\n" for host in reached))
    shutil.copytree(PROJECT / "environments", tmp_path / "environments")
    (tmp_path / "mirror.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    # An example of one part of the settings stands beside a person's own hosts.
    hosts = [{"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": KEY}}]
    settings = load({"hosts": hosts, **config}, tmp_path)
    assert faults({"config": {PREFIX + name: value for name, value in config.items()}}) == []
    assert settings.control_plane.address == "10.0.0.11"


def test_there_are_examples() -> None:
    assert {page for page, _ in examples()} >= {
        "README.md",
        "own-machines.md",
        "air-gap.md",
        "environments.md",
    }


def test_the_images_of_an_air_gapped_site_are_those_of_the_defaults() -> None:
    page = (PROJECT / "docs/air-gap.md").read_text()
    host = {"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": KEY}}
    settings = load({"hosts": [host]}, PROJECT)
    for image in settings.node_images(settings.control_plane):
        assert image in page, f"docs/air-gap.md doesn't list {image}"


def test_the_lab_page_names_the_ports_that_the_lab_uses() -> None:
    page = (PROJECT / "docs/lab.md").read_text()
    for port, what in ports.fixed(3).tcp().items():
        assert str(port) in page, f"docs/lab.md doesn't name {port}, {what}"


def test_the_lab_commands_of_the_pages_exist() -> None:
    [commands] = [a for a in lab_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for page in PAGES:
        for words in re.findall(r"python -m lab ([a-z|-]+)", page.read_text().replace("\\|", "|")):
            unknown = set(words.split("|")) - set(commands.choices)
            assert not unknown, f"{page.relative_to(PROJECT)} names python -m lab {unknown}"


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:scripts|model|components|manifests|lab|tools|tests|docs|environments)/[\w./-]*)`",
            page.read_text(),
        ):
            assert (PROJECT / name).exists(), f"{page.relative_to(PROJECT)} names {name}"
