"""The environment for Pulumi commands."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from common.errors import UserError
from tests.fast.fake_programs import toolbox
from tools import env, programs
from tools.__main__ import main
from tools.engine import Tool
from tools.provider_plugins import STAND_IN

pytestmark = pytest.mark.usefixtures("isolated")


def test_passphrase_is_private_and_created_once() -> None:
    file = env.passphrase_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    assert len(first) > 30
    assert env.passphrase_file().read_text() == first
    assert [path.name for path in file.parent.iterdir()] == ["passphrase"]


def test_environment_replaces_earlier_programs_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "old"
    new = tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "new"
    monkeypatch.setenv("PATH", f"{old}{os.pathsep}/usr/bin")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "of another stack")
    tools = toolbox(Tool("pulumi-resource-command", "1", STAND_IN, new / "pulumi-resource-command"))
    variables = env.environment(tools)
    assert variables["PATH"].split(os.pathsep)[1:] == [str(new), "/usr/bin"]
    assert (Path(variables["PATH"].split(os.pathsep)[0]) / "python").exists()
    assert "PULUMI_CONFIG_PASSPHRASE" not in variables
    assert variables["PULUMI_BACKEND_URL"].startswith("file:///")


def test_exports_work_in_a_shell() -> None:
    tools = toolbox()
    exports = env.exports(tools)
    assert "unset PULUMI_CONFIG_PASSPHRASE" in exports.splitlines()
    done = subprocess.run(
        ["/bin/sh", "-c", f'{exports}\necho "$PULUMI_BACKEND_URL"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == env.environment(tools)["PULUMI_BACKEND_URL"]


def test_dead_ssh_agent_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
    assert "SSH_AUTH_SOCK" not in env.environment(toolbox())
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(address))
        agent.listen()
        assert env.environment(toolbox())["SSH_AUTH_SOCK"] == str(address)


def test_doctor_lists_versions_and_sources() -> None:
    table = programs.table(toolbox(Tool("pulumi-resource-command", "for 1.2.1", STAND_IN, Path("/x/y"))))
    assert re.search(rf"pulumi-resource-command +for 1.2.1 +{STAND_IN} +/x/y", table)


def test_expected_failure_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> env.Toolbox:
        raise UserError("no engine", "install Go")

    monkeypatch.setattr(env, "toolbox", fail)
    assert main(["env"]) == 1
    assert capsys.readouterr().err == "error: no engine\n  -> install Go\n"
