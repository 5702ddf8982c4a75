"""Creating, renewing and revoking the bootstrap tokens of joining workers."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.paths import project_dir
from components import bootstrap_token
from components.api_requests import ApiError
from components.bootstrap_token import SECRETS, create, revoke
from tests.engine.api_server import ApiServer
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

TOKEN = "abcdef.0123456789abcdef"
SECRET = f"{SECRETS}/bootstrap-token-abcdef"

JOIN = """
import json, os, sys
sys.path.insert(0, {project!r})
import pulumi
from pulumi_command import remote
from components.bootstrap_token import BootstrapToken

given = json.loads(os.environ["GIVEN"])
token = pulumi.Output.secret(given["token"])
bootstrap = BootstrapToken("node1", pulumi.Output.secret(given["kubeconfig"]), token, 15)
remote.Command("join",
    connection=remote.ConnectionArgs(host="127.0.0.1", port=given["port"], user="root",
        host_key=given["host_key"], private_key=pulumi.Output.secret(given["private_key"]),
        dial_error_limit=2, per_dial_timeout=5),
    create="echo attempt >> log; test -e allowed",
    stdin=pulumi.Output.all(token, bootstrap.known).apply(lambda known: known[0]),
    add_previous_output_in_env=False, logging=remote.Logging.NONE,
    opts=pulumi.ResourceOptions(hooks=bootstrap.hooks))
"""


def valid_until(cluster: ApiServer) -> datetime | None:
    """The token's expiry; None if the API server doesn't have the token."""
    secret: dict[str, Any] = cluster.call("GET", SECRET)
    if not secret:
        return None
    return datetime.fromisoformat(base64.b64decode(secret["data"]["expiration"]).decode())


def joining(stack: Stack, host: SshServer, cluster: ApiServer) -> Stack:
    stack.extra["GIVEN"] = json.dumps(
        {
            "port": host.port,
            "host_key": host.host_key,
            "private_key": host.private_key,
            "kubeconfig": cluster.kubeconfig,
            "token": TOKEN,
        }
    )
    return stack.program(JOIN.format(project=str(project_dir())))


def test_retried_join_gets_a_valid_token_again(stack: Stack, host: SshServer, cluster: ApiServer) -> None:
    joining(stack, host, cluster).up(fails=True)
    assert valid_until(cluster) is not None
    # As after a month: Kubernetes removes expired tokens.
    cluster.call("DELETE", SECRET)
    stack.up(fails=True)
    until = valid_until(cluster)
    assert until is not None
    assert timedelta(minutes=13) < until - datetime.now(UTC) <= timedelta(minutes=15)
    (host.folder / "allowed").touch()
    stack.up()
    assert host.lines() == ["attempt"] * 3
    assert valid_until(cluster) is None, "revoked after the join"
    stack.up()
    assert host.lines() == ["attempt"] * 3
    assert valid_until(cluster) is None, "a run without a join creates no token"


def test_token_stays_out_of_output_and_state(stack: Stack, host: SshServer, cluster: ApiServer) -> None:
    run = joining(stack, host, cluster).up(fails=True)
    (host.folder / "allowed").touch()
    done = stack.up()
    for text in (run.text, done.text, stack.raw_state(), "\n".join(host.commands)):
        assert TOKEN not in text
        assert TOKEN.partition(".")[2] not in text


def test_token_can_be_renewed_and_revoked_repeatedly(cluster: ApiServer) -> None:
    for minutes in (5, 30):
        create(cluster.kubeconfig, TOKEN, "node1", minutes)
        until = valid_until(cluster)
        assert until is not None
        assert timedelta(minutes=minutes - 1) < until - datetime.now(UTC) <= timedelta(minutes=minutes)
    revoke(cluster.kubeconfig, TOKEN)
    revoke(cluster.kubeconfig, TOKEN)
    assert valid_until(cluster) is None


@pytest.mark.parametrize("minutes", [-15, 15])
def test_wrong_own_clock_doesnt_change_the_expiry(
    cluster: ApiServer, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    monkeypatch.setattr(bootstrap_token, "now", lambda: datetime.now(UTC) + timedelta(minutes=minutes))
    create(cluster.kubeconfig, TOKEN, "node1", 15)
    until = valid_until(cluster)
    assert until is not None
    assert timedelta(minutes=14) < until - datetime.now(UTC) <= timedelta(minutes=15)


def test_error_names_the_api_server_without_the_token(cluster: ApiServer) -> None:
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:1 is unreachable") as caught:
        create(cluster.kubeconfig_for("https://127.0.0.1:1"), TOKEN, "node1", 5)
    assert TOKEN not in str(caught.value)
