"""The pages match the program: settings, examples, files, commands, messages."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest
import yaml

from components.host import node_images
from lab import ports
from lab.__main__ import commands as lab_commands
from model.settings import PREFIX
from model.settings_file import load
from tests.fast.pages import PAGES, schema_errors
from tests.stacks import HOST_KEY, PROJECT
from tools import ci
from tools.__main__ import commands as tools_commands

FOLDERS = "common|components|docs|environments|lab|manifests|model|policy|report|scripts|standins|tests|tools"

# Messages of Pulumi, its providers and kubelet.
OTHER_PROGRAMS = (
    "after 12 failed attempts: dial tcp",
    "configured Kubernetes cluster is unreachable: unable to load schema information from the API server",
    "dial unix",
    "error: the stack is currently locked",
    "failed to parse netconf: unexpected end of JSON input",
    "incorrect passphrase",
    "interrupted while creating",
    "provided port is already allocated",
    "unable to authenticate",
)

# Example values in quoted messages, where the source inserts a value.
EXAMPLE_VALUE = re.compile(
    r"\.\.\.|\b(?:\d+ problems|2|master|node2|dev|worker|control-plane|22101|SSH of host 0)\b|127\.0\.0\.1"
    r"|needs \w+(?=,)"
)


def examples() -> list[tuple[str, dict[str, object]]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            config = yaml.safe_load(block)["config"]
            found.append((page.name, {name.removeprefix(PREFIX): value for name, value in config.items()}))
    return found


@pytest.mark.parametrize(("page", "config"), examples())
def test_example_configuration_is_valid(
    page: str, config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    known = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "[node2.example.com]:2222"]
    (tmp_path / ".ssh/known_hosts").write_text("".join(f"{host} {HOST_KEY}\n" for host in known))
    shutil.copytree(PROJECT / "environments", tmp_path / "environments")
    (tmp_path / "mirror.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    (tmp_path / "harbor-ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    # Examples without hosts are parts of a stack file.
    hosts = [{"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": HOST_KEY}}]
    settings = load({"hosts": hosts, **config}, tmp_path)
    assert schema_errors({"config": {PREFIX + name: value for name, value in config.items()}}) == []
    assert settings.control_plane.address == "10.0.0.11"


def test_pages_have_example_configurations() -> None:
    assert {page for page, _ in examples()} >= {
        "README.md",
        "own-machines.md",
        "air-gap.md",
        "environments.md",
    }


def test_air_gap_page_lists_default_images() -> None:
    page = (PROJECT / "docs/air-gap.md").read_text()
    host = {"name": "a", "role": "control-plane", "address": "10.0.0.11", "ssh": {"hostKey": HOST_KEY}}
    settings = load({"hosts": [host]}, PROJECT)
    for image in node_images(settings, settings.control_plane):
        assert image in page, f"docs/air-gap.md doesn't list {image}"


def test_lab_page_lists_the_labs_ports() -> None:
    page = (PROJECT / "docs/lab.md").read_text()
    for port, purpose in ports.fixed(3).tcp().items():
        assert str(port) in page, f"docs/lab.md doesn't list {port}, {purpose}"


@pytest.mark.parametrize(
    ("name", "group"), [("lab", lab_commands), ("tools", tools_commands), ("tools ci", ci.commands)]
)
def test_commands_on_pages_exist(name: str, group: click.Group) -> None:
    known = set(group.list_commands(click.Context(group)))
    for page in PAGES:
        for words in re.findall(rf"python -m {name} ([a-z][a-z|-]*)", page.read_text().replace("\\|", "|")):
            unknown = set(words.split("|")) - known
            assert not unknown, f"{page.relative_to(PROJECT)} mentions python -m {name} {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_mentioned_on_pages_exist(page: Path) -> None:
    mentioned = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())
    assert [name for name in mentioned if not (PROJECT / name).exists()] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_have_targets(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_decision_index_matches_titles() -> None:
    index = (PROJECT / "docs/decisions/README.md").read_text()
    for record in sorted((PROJECT / "docs/decisions").glob("0*.md")):
        number, title = re.findall(r"\A# (\d+)\. (.*)\n", record.read_text())[0]
        assert f"| [{number}]({record.name}) | {title}" in index


def source_text() -> str:
    """The sources, with adjacent string literals joined."""
    folders = ("common", "components", "lab", "model", "scripts", "tools")
    found = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*"))]
    files = [path for path in found if path.suffix in {".py", ".sh"}]
    return "\n".join(re.sub(r'"\n\s*f?"', "", path.read_text()) for path in files)


def test_quoted_messages_exist() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r'\*\*"([^"]+)"', page.replace("\n", " "))
    assert quoted
    sources = source_text()
    missing = []
    for message in quoted:
        if message.removeprefix("... ").startswith(OTHER_PROGRAMS):
            continue
        parts = [re.escape(part) for part in EXAMPLE_VALUE.split(message) if part.strip()]
        if not re.search(r"[^\n]{1,60}?".join(parts), sources):
            missing.append(message)
    assert missing == []
