"""What the tests read from a Pulumi run that they disturb."""

from __future__ import annotations

import json
from pathlib import Path

from tests.live_engine import Engine

CLAIM = "urn:pulumi:dev::p::command:remote:Command::node2-claim"


def event(severity: str, message: str, urn: str = "") -> str:
    return json.dumps({"diagnosticEvent": {"severity": severity, "message": message, "urn": urn}})


def test_what_a_run_has_said_names_each_diagnostics_resource_and_is_no_debug_text(tmp_path: Path) -> None:
    lines = [
        event("debug", "registering resource: name=node1-claim\n"),
        event("error", "dial tcp: i/o timeout\n", CLAIM),
        "error: a line that is no event",
    ]
    pulumi = tmp_path / "pulumi"
    pulumi.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\nexit 255\n")
    pulumi.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = Engine("destroy", stack="dev", folder=tmp_path, environment=environment)
    assert run.wait() == 255
    assert run.said == "node2-claim: dial tcp: i/o timeout\nerror: a line that is no event\n"
