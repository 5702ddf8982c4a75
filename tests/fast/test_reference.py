"""The files that `make docs` generates are current, and the schema agrees with the program."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from model.settings import PREFIX, fields
from tests import stacks
from tests.fast.pages import SCHEMA, schema_errors
from tools import reference

FILES = [*stacks.tracked("Pulumi.*.yaml"), *stacks.tracked("environments/*.yaml")]


@pytest.mark.parametrize("file", reference.pages(), ids=lambda file: file.name)
def test_generated_file_is_current(file: Path) -> None:
    assert file.read_text() == reference.pages()[file], f"{file.name} is stale: run `make docs`"


def test_every_setting_has_a_complete_row() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", reference.settings_page(), re.MULTILINE))
    assert set(rows) == set(fields())
    for path, row in rows.items():
        assert all(cell for index, cell in enumerate(row.split(" | ")) if index != 1), path


def test_schema_is_valid() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_committed_stack_files_match_the_schema(file: Path) -> None:
    assert schema_errors(yaml.safe_load((stacks.PROJECT / file).read_text())) == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_schema_comment_names_the_generated_schema(file: Path) -> None:
    """The comment is optional."""
    first, _, _ = (stacks.PROJECT / file).read_text().partition("\n")
    if named := re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first):
        schema = (stacks.PROJECT / file).parent / named[1]
        assert schema.resolve() == stacks.PROJECT / "docs/stack.schema.json"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cluster", {"kubernetes_version": "1.37.2"}, "kubernetes_version"),
        ("clusterr", {}, "clusterr"),
        ("cluster", {"kubernetesVersion": 1.37}, "1.37"),
        ("cluster", {"kubernetesVersion": "v1.37.2"}, "v1.37.2"),
        ("hosts", [{"name": "a", "role": "master", "address": "10.0.0.1"}], "master"),
        ("hosts", [{"name": "a", "role": "worker"}], "address"),
        ("hosts", [{"name": "A_1", "role": "worker", "address": "10.0.0.1"}], "A_1"),
        ("nginx", {"nodePort": 8080}, "8080"),
        ("nginx", {"image": "nginx"}, "nginx"),
        ("proxy", {"syncPeriod": "5"}, "'5'"),
        ("proxy", {"strictArp": "yes"}, "yes"),
        ("network", {"podSubnet": "10.244.0.0"}, "10.244.0.0"),
        ("runtime", {"mirrors": {"docker.io": "http://m"}}, "http://m"),
        ("firewall", "off", "off"),
        ("preflight", {"ignore": "NumCPU"}, "NumCPU"),
        ("preflight", {"ignore": ["NumCPU,Mem"]}, "NumCPU,Mem"),
        ("preflight", {"ignore": ["Mem", "Mem"]}, "Mem"),
    ],
)
def test_schema_rejects_wrong_names_and_types(name: str, value: object, words: str) -> None:
    found = schema_errors({"config": {f"{PREFIX}{name}": value}})
    assert any(words in error for error in found), found


def test_schema_accepts_pulumis_own_lines() -> None:
    salted = {
        "config": {"pulumi:tags": {"a": "b"}, f"{PREFIX}production": "true"},
        "encryptionsalt": "v1:x",
        "secretsprovider": "passphrase",
    }
    assert schema_errors(salted) == []
    assert schema_errors({"config": {}, "confg": {}}) != []
