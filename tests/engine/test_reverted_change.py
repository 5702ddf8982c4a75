"""Reverting a failed change in the settings also restores the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.paths import project_dir
from tests.engine import own_scripts
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

# Real steps, which run the test's scripts.
PROGRAM = (
    own_scripts.PRELUDE
    + """
from model.settings import Host, HostSsh, Settings, Ssh

ssh = HostSsh(host="127.0.0.1", port=given["port"], host_key=given["host_key"])
host = Host(name="node1", role="control-plane", address="10.0.0.11", ssh=ssh)
settings = Settings(hosts=(host,), ssh=Ssh(private_key_file=given["key"]))
parent = pulumi.ComponentResource("test:index:Host", "node1")
runner, last = remote.Runner(settings, host, "test"), None
for name, scripts in given["steps"].items():
    step = steps.Step(
        name,
        tuple(SCRIPTS[script] for script in scripts),
        lambda _: 60,
        changes=True,
        secret=given["secret"],
    )
    values = {{"WANTED": given["wanted"]}}
    opts = pulumi.ResourceOptions(depends_on=[last] if last else None)
    last = runner.step(step, parent, values=values, opts=opts)
"""
)

# Fails after changing the host, as a real step may.
SCRIPT = """run_step() { echo "$STEP $WANTED" >>log; [[ $STEP != runtime || $WANTED != broken ]]; }
"""


@pytest.fixture(params=[False, True], ids=["plain", "secret"])
def program(request: pytest.FixtureRequest, stack: Stack, host: SshServer, tmp_path: Path) -> Stack:
    """A stack with the program; `want` sets the value that its steps apply."""
    scripts = own_scripts.write(tmp_path / "scripts", kernel=SCRIPT, runtime=SCRIPT)
    key = tmp_path / "login"
    key.touch(mode=0o600)
    key.write_text(host.private_key)
    given = {
        "port": host.port,
        "host_key": host.host_key,
        "key": str(key),
        "scripts": str(scripts),
        "secret": request.param,
        "steps": {"kernel": ["kernel"], "runtime": ["runtime"]},
    }
    stack.extra["GIVEN"] = json.dumps(given)
    return stack.program(PROGRAM.format(project=str(project_dir())))


def want(stack: Stack, wanted: str, **more: Any) -> Stack:
    stack.extra["GIVEN"] = json.dumps({**given(stack), "wanted": wanted, **more})
    return stack


def given(stack: Stack) -> dict[str, Any]:
    return dict(json.loads(stack.extra["GIVEN"]))


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
    own_scripts.write(Path(given(program)["scripts"]), kernel=SCRIPT.replace("!= runtime", "!= kernel"))
    want(program, "good").up()
    want(program, "broken").up(fails=True)
    want(program, "good").up()
    assert host.lines() == ["kernel good", "runtime good", "kernel broken", "kernel good"]


def test_failed_script_ends_its_step(program: Stack, host: SshServer) -> None:
    """The scripts of one step run in their order, and all of them again after a failure."""
    scripts = {"preparation": ["kernel", "runtime", "last"]}
    own_scripts.write(Path(given(program)["scripts"]), last=SCRIPT)
    failed = want(program, "broken", steps=scripts).up(fails=True)
    assert "bash -s -- create preparation node1" in failed.text
    assert host.lines() == ["kernel broken", "runtime broken"]
    want(program, "good").up()
    assert host.lines()[2:] == ["kernel good", "runtime good", "last good"]


def test_changed_script_runs_the_steps_that_use_it(program: Stack, host: SshServer) -> None:
    want(program, "good").up()
    own_scripts.write(Path(given(program)["scripts"]), runtime=f"{SCRIPT}# A newer version.\n")
    changed = program.up()
    assert [op for op in changed.ops if not op.endswith("-desired")] == ["update node1-runtime"]
    assert host.lines()[2:] == ["runtime good"]
    assert len(host.deliveries) == 2


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
