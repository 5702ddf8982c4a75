"""Runs that must be rejected before they touch a host."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncssh

from common.errors import UserError
from common.paths import project_dir
from common.progress import Progress
from tests.lab.cluster import Cluster, Config, drift, edited, identity, repaired, up
from tests.lab.resilience.checks import failing_up
from tests.lab.resilience.results import Record
from tools import env, stack


def test_concurrent_up_and_second_stack_are_rejected(cluster: Cluster) -> None:
    """A concurrent `up`, and another stack on the same hosts, are rejected before they touch anything"""
    host = cluster.hosts[-1]
    with edited(cluster, repaired(host)):
        first = cluster.start("up")
        assert first.wait_until_started(f"update {host}-preparation"), first.diagnostics
        assert "currently locked" in failing_up(cluster)
        assert first.wait() == 0, first.diagnostics
    checksums = "find /etc -xdev -type f -print0 | xargs -0 sha256sum | sort"
    before = [cluster.run(host, checksums) for host in cluster.hosts]
    name = f"{cluster.stack}-intruder"
    own_file = project_dir() / f"Pulumi.{cluster.stack}.yaml"
    other_file = project_dir() / f"Pulumi.{name}.yaml"
    lines = own_file.read_text().splitlines(keepends=True)
    other_file.write_text("".join(line for line in lines if not line.startswith("encryptionsalt:")))
    try:
        stack.ensure(name, env.toolbox(), Progress(quiet=True))
        done = cluster.pulumi("up", "--yes", "--skip-preview", on=name)
        assert done.returncode != 0
        assert f"belongs to the stack {cluster.stack}" in done.stdout
    finally:
        cluster.pulumi("stack", "rm", "--yes", "--force", on=name)
        other_file.unlink(missing_ok=True)
        stack.ensure(cluster.stack, env.toolbox(), Progress(quiet=True))
    assert [cluster.run(host, checksums) for host in cluster.hosts] == before


def test_renamed_worker_is_rejected(cluster: Cluster) -> None:
    """A renamed worker is rejected before it is touched, and works again under its old name"""
    host = cluster.hosts[-1]
    old_identity = identity(cluster)

    def rename(config: Config) -> None:
        config["hosts"][-1]["name"] = "another"

    with edited(cluster, rename):
        assert f"the host is already in this stack as {host}" in failing_up(cluster)
    up(cluster)
    assert identity(cluster) == old_identity
    assert not any(drift(cluster).values())


def key_pair() -> tuple[str, str]:
    """Create an unknown key pair, private and public, in OpenSSH's format."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


def replace_login(cluster: Cluster) -> None:
    """Put the login in the settings into the state."""
    command = [sys.executable, "-m", "tools", "credentials", "--stack", cluster.stack, "--write"]
    subprocess.run(command, cwd=project_dir(), env=cluster.environment, check=True, timeout=300)


def test_broken_ssh_access_is_reported(cluster: Cluster, record: Record, tmp_path: Path) -> None:
    """Wrong host key, wrong login key, sudo that asks for a password, a silent server: each is reported
    within a time limit. A login in the settings isn't used before it is put into the state"""
    host = cluster.hosts[-1]
    private, public = key_pair()
    login = tmp_path / "login"
    login.touch(mode=0o600)
    login.write_text(private)
    # Also the backups that useradd leaves, because later cases compare all of /etc.
    backup = "/var/tmp/accounts"
    accounts = "/etc/{passwd,group,shadow,gshadow,subuid,subgid}{,-}"
    cluster.run(
        host,
        f"[[ -d {backup} ]] || {{ mkdir {backup}; cp -a $(ls {accounts} 2>/dev/null) {backup}; }}; "
        "id asker 2>/dev/null || useradd --create-home --shell /bin/bash asker; mkdir -p ~asker/.ssh; "
        "cp ~root/.ssh/authorized_keys ~asker/.ssh/; chown -R asker: ~asker/.ssh",
    )

    def host_key(config: Config) -> None:
        config["hosts"][-1]["ssh"]["hostKey"] = public

    def login_key(config: Config) -> None:
        config["ssh"]["privateKeyFile"] = str(login)

    def user(config: Config) -> None:
        config["hosts"][-1]["ssh"]["user"] = "asker"

    def waiting(config: Config) -> None:
        config["ssh"]["waitSeconds"] = 20
        repaired(host)(config)

    # Timed, because nobody can log in to resume the paused sshd.
    pause_sshd = (
        "systemd-run --quiet --on-active=120 systemctl kill --kill-whom=main --signal=CONT ssh.service; "
        "systemctl kill --kill-whom=main --signal=STOP ssh.service"
    )

    def reject(change: Callable[[Config], None], message: str) -> None:
        began = time.monotonic()
        output = failing_up(cluster)
        record(f"{change.__name__.replace('_', ' ')}: rejected after {time.monotonic() - began:.0f} s")
        assert re.search(message, output), output
        assert private.splitlines()[1] not in output

    with edited(cluster, host_key):
        reject(host_key, f"{host} .*presents a host key other than the pinned one")
    for change, message in (
        (login_key, f"rejects the login with {login}"),
        (user, "asker can't run commands as root"),
    ):
        with edited(cluster, change):
            assert "tools credentials" in up(cluster)
            replace_login(cluster)
            with edited(cluster, repaired(host)):
                reject(change, message)
        replace_login(cluster)
    with edited(cluster, waiting):
        cluster.run(host, pause_sshd)
        reject(waiting, f"{host}: .*accepts the connection but stays silent")
    deadline = time.monotonic() + 300
    while True:
        try:
            cluster.run(host, "true")
            break
        except UserError:  # ssh itself waits a minute for a silent server
            assert time.monotonic() < deadline
    cluster.wait_for_node_ports(600)
    cluster.run(
        host,
        f"userdel --remove asker 2>/dev/null; cp -a {backup}/. /etc/; "
        f"for file in {accounts}; do [[ -e {backup}/${{file##*/}} ]] || rm -f $file; done; rm -r {backup}",
    )
