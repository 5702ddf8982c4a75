"""Reading the events of a Pulumi run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fast.fake_programs import program
from tests.live_engine import Engine

CLAIM = "urn:pulumi:dev::p::command:remote:Command::node2-claim"


def event(severity: str, message: str, urn: str = "") -> str:
    return json.dumps({"diagnosticEvent": {"severity": severity, "message": message, "urn": urn}})


def test_diagnostics_name_resources_and_omit_debug_messages(tmp_path: Path) -> None:
    lines = [
        event("debug", "registering resource: name=node1-claim\n"),
        event("error", "dial tcp: i/o timeout\n", CLAIM),
        "error: plain text",
    ]
    program(tmp_path / "pulumi", "cat <<'END'\n" + "\n".join(lines) + "\nEND\nexit 255")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = Engine("destroy", stack="dev", folder=tmp_path, environment=environment)
    assert run.wait() == 255
    assert run.diagnostics == "node2-claim: dial tcp: i/o timeout\nerror: plain text\n"
