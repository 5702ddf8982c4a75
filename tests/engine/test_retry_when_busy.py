"""Retries of failed creations, which the object's error hook decides."""

from __future__ import annotations

import json
import shlex

from common.paths import project_dir
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

PROGRAM = """
import json, os, sys
sys.path.insert(0, {project!r})
import pulumi
from pulumi_command import remote
from components import manifests

manifests.PAUSE_SECONDS = 0.0
given = json.loads(os.environ["GIVEN"])
remote.Command("object",
    connection=remote.ConnectionArgs(host="127.0.0.1", port=given["port"], user="root",
        host_key=given["host_key"], private_key=pulumi.Output.secret(given["private_key"])),
    create=given["command"],
    add_previous_output_in_env=False,
    opts=pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(
        on_error=[pulumi.ErrorHook("busy", manifests.RetryWhenBusy())])))
"""

BUSY = "etcdserver: request timed out"
ALLOCATED = "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"


def failing_with(stack: Stack, host: SshServer, *errors: str) -> Stack:
    """Write a program whose command fails with each of the errors in turn, then succeeds."""
    lines = shlex.quote("\n".join(errors))
    command = f"""
echo attempt >>log
error=$(printf '%s' {lines} | sed -n "$(wc -l <log)p")
[ -z "$error" ] || {{ echo "$error" >&2; exit 1; }}
"""
    given = {
        "port": host.port,
        "host_key": host.host_key,
        "private_key": host.private_key,
        "command": command,
    }
    stack.extra["GIVEN"] = json.dumps(given)
    return stack.program(PROGRAM.format(project=str(project_dir())))


def test_creation_is_retried_on_a_busy_api_server(stack: Stack, host: SshServer) -> None:
    failing_with(stack, host, BUSY, BUSY).up()
    assert host.lines() == ["attempt"] * 3


def test_creation_is_retried_while_node_port_is_allocated(stack: Stack, host: SshServer) -> None:
    failing_with(stack, host, BUSY, ALLOCATED, ALLOCATED).up()
    assert host.lines() == ["attempt"] * 4


def test_other_failures_are_not_retried(stack: Stack, host: SshServer) -> None:
    failing_with(stack, host, "is invalid").up(fails=True)
    assert host.lines() == ["attempt"]
