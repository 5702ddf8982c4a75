"""What `make docs` writes: it is current, and the editors' schema judges as the program does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from model.settings import PREFIX, fields
from tests import stacks
from tools import reference

SCHEMA = json.loads((stacks.PROJECT / "docs/stack.schema.json").read_text())
FILES = [*stacks.tracked("Pulumi.*.yaml"), *stacks.tracked("environments/*.yaml")]


def faults(document: object) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(document)]


@pytest.mark.parametrize("file", reference.pages(), ids=lambda file: file.name)
def test_a_written_page_is_current(file: Path) -> None:
    assert file.read_text() == reference.pages()[file], f"{file.name} is stale: run `make docs`"


def test_every_setting_has_a_row_with_its_type_meaning_and_effect() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", reference.settings_page(), re.MULTILINE))
    assert set(rows) == set(fields())
    for path, row in rows.items():
        assert all(cell for index, cell in enumerate(row.split(" | ")) if index != 1), path


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_committed_stack_file_passes_the_schema(file: Path) -> None:
    assert faults(yaml.safe_load((stacks.PROJECT / file).read_text())) == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_first_line_that_names_a_schema_names_this_one(file: Path) -> None:
    """Its editors find it. Who adds an environment may leave the line out."""
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
        ("registry", {"mirrors": {"docker.io": "http://m"}}, "http://m"),
        ("firewall", "off", "off"),
        ("preflight", {"ignore": "NumCPU"}, "NumCPU"),
        ("preflight", {"ignore": ["NumCPU,Mem"]}, "NumCPU,Mem"),
        ("preflight", {"ignore": ["Mem", "Mem"]}, "Mem"),
    ],
)
def test_a_wrong_name_or_type_is_marked(name: str, value: object, words: str) -> None:
    found = faults({"config": {f"{PREFIX}{name}": value}})
    assert any(words in fault for fault in found), found


def test_the_schema_marks_no_line_of_pulumis_own() -> None:
    salted = {
        "config": {"pulumi:tags": {"a": "b"}, f"{PREFIX}production": "true"},
        "encryptionsalt": "v1:x",
        "secretsprovider": "passphrase",
    }
    assert faults(salted) == []
    assert faults({"config": {}, "confg": {}}) != []
