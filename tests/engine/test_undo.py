"""A change that failed on a host and is taken back in the settings: the host is put back too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.paths import project_dir
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

# The two steps of the program are real ones; what they do is the test's.
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
way = HostSsh(host="127.0.0.1", port=given["port"], host_key=given["host_key"])
host = Host(name="node1", role="control-plane", address="10.0.0.11", ssh=way)
settings = Settings(hosts=(host,), ssh=Ssh(private_key_file=given["key"]))
parent = pulumi.ComponentResource("test:index:Host", "node1")
runner, last = remote.Runner(settings, host, "test"), None
for name in ("kernel", "runtime"):
    step = steps.Step(
        name,
        lambda _: 60,
        frozenset({{"WANTED"}}),
        changes=True,
        owned=True,
        secret=given["secret"],
        script="step",
    )
    values = {{"WANTED": given["wanted"]}}
    opts = pulumi.ResourceOptions(depends_on=[last] if last else None)
    last = runner.step(step, parent, values=values, opts=opts)
"""

# Fails where it has changed the host already, as a step may.
STEP = """run_step() { echo "$STEP $WANTED" >>log; [[ $STEP != runtime || $WANTED != broken ]]; }
"""


@pytest.fixture(params=[False, True], ids=["plain", "secret"])
def wants(request: pytest.FixtureRequest, stack: Stack, host: SshServer, tmp_path: Path) -> Stack:
    """A stack whose program wants what `want` says."""
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


def test_a_change_that_failed_is_undone_by_taking_it_back(wants: Stack, host: SshServer) -> None:
    want(wants, "good").up()
    want(wants, "broken").up(fails=True)
    assert host.lines() == ["kernel good", "runtime good", "kernel broken", "runtime broken"]
    back = want(wants, "good").up()
    assert host.lines()[4:] == ["kernel good", "runtime good"]
    assert "update node1-runtime" in back.ops
    assert wants.up().ops == [], "and that is all"


def test_a_change_that_failed_goes_on_where_it_is_asked_for_again(wants: Stack, host: SshServer) -> None:
    want(wants, "good").up()
    want(wants, "broken").up(fails=True)
    want(wants, "broken").up(fails=True)
    assert host.lines()[2:] == ["kernel broken", "runtime broken", "runtime broken"]


def test_a_step_whose_turn_never_came_is_left_alone_when_the_change_is_taken_back(
    wants: Stack, host: SshServer
) -> None:
    scripts = Path(json.loads(wants.extra["GIVEN"])["scripts"]) / "steps/step.sh"
    scripts.write_text(STEP.replace("$STEP != runtime", "$STEP != kernel"))
    want(wants, "good").up()
    want(wants, "broken").up(fails=True)
    want(wants, "good").up()
    assert host.lines() == ["kernel good", "runtime good", "kernel broken", "kernel good"]


def test_a_preview_of_another_text_shows_it_as_before_and_nothing_replaced(wants: Stack) -> None:
    want(wants, "good").up()
    plan = want(wants, "better").preview()
    steps = [op for op in plan.ops if not op.endswith("-desired")]
    assert steps == ["update node1-kernel", "update node1-runtime"]


def test_a_refresh_changes_nothing_of_what_is_remembered(wants: Stack, host: SshServer) -> None:
    want(wants, "good").up()
    wants.refresh()
    assert wants.up().ops == []
    wants.destroy()
    assert wants.state() == []
    assert host.lines() == ["kernel good", "runtime good"]
