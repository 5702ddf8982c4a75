"""Reading the stack's outputs of the last completed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pulumi
import pytest
from pulumi.runtime.invoke import InvokeResult

from components import previous_outputs
from components.previous_outputs import PreviousOutputs
from tests.fast.test_certificates import text, with_client

# Printed by the engine when it read the state's `.attrs` file while that was being written.
RACE = (
    "invoke of pulumi:pulumi:readStackOutputs failed: invocation of pulumi:pulumi:readStackOutputs returned "
    "an error: failed to load checkpoint: EOF"
)

BOTH = frozenset({"master", "node1"})


class Engine:
    """Responds to each invoke with the next of the given outputs or errors, and repeats the last one."""

    def __init__(self, *responses: dict[str, Any] | Exception) -> None:
        self.responses: Sequence[dict[str, Any] | Exception] = responses
        self.asked: list[str] = []

    def invoke(self, function: str, arguments: dict[str, str]) -> InvokeResult:
        response = self.responses[min(len(self.asked), len(self.responses) - 1)]
        self.asked.append(f"{function} {arguments['name']}")
        if isinstance(response, Exception):
            raise response
        return InvokeResult({"outputs": response})


def read(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, organization: str = "organization"
) -> PreviousOutputs:
    monkeypatch.setattr(pulumi.runtime, "invoke", engine.invoke)
    monkeypatch.setattr(pulumi, "get_organization", lambda: organization)
    monkeypatch.setattr(pulumi, "get_project", lambda: "kubeadm-ipvs")
    monkeypatch.setattr(pulumi, "get_stack", lambda: "dev")
    return previous_outputs.read()


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        # A new stack, or one that was destroyed.
        ({}, PreviousOutputs()),
        # Created by a version of the program that had no version output.
        ({"verified": "a b", "kubeconfig": "secret"}, PreviousOutputs("1.37.2", "a b")),
        ({"kubernetesVersion": "1.36.3"}, PreviousOutputs("1.36.3", None)),
        (
            {"certificatesExpire": "2027-11-30T10:00:00Z", "certificatesRenewed": "2026-12-24T10:00:00Z"},
            PreviousOutputs("1.37.2", None, "2027-11-30T10:00:00Z", "2026-12-24T10:00:00Z"),
        ),
        ({"virtualServers": {"master": [], "node1": []}}, PreviousOutputs("1.37.2", members=BOTH)),
        # Created by a version of the program that knew no expiry: the kubeconfig has one.
        ({"kubeconfig": with_client(10)}, PreviousOutputs("1.37.2", None, text(10))),
    ],
)
def test_outputs_of_last_run_are_read(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Any], expected: PreviousOutputs
) -> None:
    assert read(monkeypatch, Engine(outputs)) == replace(expected, kubeconfig=outputs.get("kubeconfig"))


def test_outputs_hide_their_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's errors may show them."""
    assert "hush" not in repr(read(monkeypatch, Engine({"kubeconfig": "hush"})))


@pytest.mark.parametrize(
    ("organization", "name"), [("organization", "dev"), ("acme", "acme/kubeadm-ipvs/dev")]
)
def test_stack_is_named_like_its_backend_does(
    monkeypatch: pytest.MonkeyPatch, organization: str, name: str
) -> None:
    engine = Engine({})
    read(monkeypatch, engine, organization)
    assert engine.asked == [f"pulumi:pulumi:readStackOutputs {name}"]


def test_state_is_read_again_while_written(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Exception(RACE), Exception(RACE), {"kubernetesVersion": "1.36.3"})
    assert read(monkeypatch, engine).kubernetes_version == "1.36.3"
    assert len(engine.asked) == 3


def test_unreadable_state_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previous_outputs, "_READ_SECONDS", 0.1)
    with pytest.raises(Exception, match="failed to load checkpoint: EOF"):
        read(monkeypatch, Engine(Exception(RACE)))


def test_other_errors_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Exception("unknown stack"))
    with pytest.raises(Exception, match="unknown stack"):
        read(monkeypatch, engine)
    assert len(engine.asked) == 1
