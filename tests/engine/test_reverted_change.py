"""Reverting a failed change in the settings also restores the host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.paths import project_dir
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

# Two real steps, which run the test's script.
PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {project!r})
import pulumi
from components import remote
from model import steps
from model.settings import Host, HostSsh, Settings, Ssh

given = json.loads(os.environ["GIVEN"])
steps.SCRIPTS = Path(given["scripts"])
ssh = HostSsh(host="127.0.0.1", port=given["port"], host_key=given["host_key"])
host = Host(name="node1", role="control-plane", address="10.0.0.11", ssh=ssh)
settings = Settings(hosts=(host,), ssh=Ssh(private_key_file=given["key"]))
parent = pulumi.ComponentResource("test:index:Host", "node1")
runner, last = remote.Runner(settings, host, "test"), None
for name in ("kernel", "runtime"):
    step = steps.Step(
        name,
        lambda _: 60,
        frozenset({{"WANTED"}}),
        changes=True,
        secret=given["secret"],
        script="step",
    )
    values = {{"WANTED": given["wanted"]}}
    opts = pulumi.ResourceOptions(depends_on=[last] if last else None)
    last = runner.step(step, parent, values=values, opts=opts)
"""

# Fails after changing the host, as a real step may.
STEP = """run_step() { echo "$STEP $WANTED" >>log; [[ $STEP != runtime || $WANTED != broken ]]; }
"""


@pytest.fixture(params=[False, True], ids=["plain", "secret"])
def program(request: pytest.FixtureRequest, stack: Stack, host: SshServer, tmp_path: Path) -> Stack:
    """A stack with the program; `want` sets the value that its steps apply."""
    scripts, key = tmp_path / "scripts", tmp_path / "login"
    (scripts / "steps").mkdir(parents=True)
    (scripts / "steps/step.sh").write_text(STEP)
    key.touch(mode=0o600)
    key.write_text(host.private_key)
    given = {
        "port": host.port,
        "host_key": host.host_key,
        "key": str(key),
        "scripts": str(scripts),
        "secret": request.param,
    }
    stack.extra["GIVEN"] = json.dumps(given)
    return stack.program(PROGRAM.format(project=str(project_dir())))


def want(stack: Stack, wanted: str) -> Stack:
    stack.extra["GIVEN"] = json.dumps({**json.loads(stack.extra["GIVEN"]), "wanted": wanted})
    return stack


def test_reverting_a_failed_change_restores_the_host(program: Stack, host: SshServer) -> None:
    want(program, "good").up()
    want(program, "broken").up(fails=True)
    assert host.lines() == ["kernel good", "runtime good", "kernel broken", "runtime broken"]
    reverted = want(program, "good").up()
    assert host.lines()[4:] == ["kernel good", "runtime good"]
    assert "update node1-runtime" in reverted.ops
    assert program.up().ops == [], "nothing else remains to be done"


def test_repeated_change_continues_at_the_failed_step(program: Stack, host: SshServer) -> None:
    want(program, "good").up()
    want(program, "broken").up(fails=True)
    want(program, "broken").up(fails=True)
    assert host.lines()[2:] == ["kernel broken", "runtime broken", "runtime broken"]


def test_revert_skips_steps_that_never_ran(program: Stack, host: SshServer) -> None:
    scripts = Path(json.loads(program.extra["GIVEN"])["scripts"]) / "steps/step.sh"
    scripts.write_text(STEP.replace("$STEP != runtime", "$STEP != kernel"))
    want(program, "good").up()
    want(program, "broken").up(fails=True)
    want(program, "good").up()
    assert host.lines() == ["kernel good", "runtime good", "kernel broken", "kernel good"]


def test_preview_of_a_changed_step_shows_only_updates(program: Stack) -> None:
    want(program, "good").up()
    plan = want(program, "better").preview()
    steps = [op for op in plan.ops if not op.endswith("-desired")]
    assert steps == ["update node1-kernel", "update node1-runtime"]


def test_refresh_keeps_the_recorded_values(program: Stack, host: SshServer) -> None:
    want(program, "good").up()
    program.refresh()
    assert program.up().ops == []
    program.destroy()
    assert program.state() == []
    assert host.lines() == ["kernel good", "runtime good"]
