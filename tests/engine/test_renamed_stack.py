"""A renamed stack keeps its hosts: their owner is in the state, not computed from the name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.stack import Stack
from tools import check

OWNER = """
import pulumi
pulumi.Stash("owner", input=f"{pulumi.get_stack()} 4fd10a2b",
    opts=pulumi.ResourceOptions(ignore_changes=["input"]))
"""


@pytest.fixture
def named(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack, with this process's environment set up for `pulumi` commands on it."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(check, "project_dir", lambda: stack.folder)
    return stack.program(OWNER)


def test_drift_check_reads_the_owner_under_every_name(named: Stack) -> None:
    assert check.owner_of("test") == "test", "no host has an owner yet"
    named.up()
    assert named.call("stack", "rename", "later").returncode == 0
    renamed = replace(named, name="later")
    assert renamed.up().ops == []
    for name in ("later", "organization/conformance/later"):
        assert check.owner_of(name) == "test 4fd10a2b"
