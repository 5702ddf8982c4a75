"""`make show`: the virtual servers in the stack's outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.__main__ import main

ROW = {
    "protocol": "TCP",
    "address": "10.96.0.1:443",
    "scheduler": "rr",
    "connections": 2,
    "bytesIn": 1400,
    "bytesOut": 26_000_000,
    "realServers": [
        {
            "address": "192.168.166.101:6443",
            "forward": "Masq",
            "weight": 1,
            "active": 0,
            "connections": 2,
            "bytesIn": 1400,
            "bytesOut": 26_000_000,
        }
    ],
}


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake `pulumi`, which replays the files stdout, stderr and status."""
    program = tmp_path / "pulumi"
    program.write_text(
        "#!/bin/bash\n"
        'cd "$(dirname "$0")"\n'
        'echo "$@" > arguments\n'
        'cat stdout\ncat stderr >&2\nexit "$(< status)"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "stdout").write_text(json.dumps({"master": [ROW]}))
    (tmp_path / "stderr").write_text("")
    (tmp_path / "status").write_text("0")
    return tmp_path


def test_virtual_servers_are_printed(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--stack", "dev"]) == 0
    printed = capsys.readouterr().out
    assert "TCP 10.96.0.1:443  rr         192.168.166.101:6443" in printed
    assert printed.endswith("--live reads all services from the hosts.\n")
    assert (pulumi / "arguments").read_text() == (
        "stack output virtualServers --stack dev --json --show-secrets --non-interactive\n"
    )


def test_other_modes_print_no_note(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pulumi / "stdout").write_text('{"master": []}')
    assert main(["show", "--stack", "dev"]) == 0
    assert "--live" not in capsys.readouterr().out


def test_json_output_is_passed_through(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--stack", "dev", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"master": [ROW]}


def test_pulumis_error_is_reported(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pulumi / "status").write_text("255")
    (pulumi / "stderr").write_text("error: incorrect passphrase\n")
    assert main(["show", "--stack", "dev"]) == 1
    message = capsys.readouterr().err
    assert "the outputs of the stack dev can't be read: error: incorrect passphrase" in message
    assert "has no output" not in message
    assert "pulumi up" not in message


def test_missing_output_is_reported(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pulumi / "status").write_text("255")
    (pulumi / "stderr").write_text("error: current stack does not have output property 'virtualServers'\n")
    assert main(["show", "--stack", "dev"]) == 1
    message = capsys.readouterr().err
    assert "the stack dev has no output virtualServers" in message
    assert "run `pulumi up`" in message


@pytest.mark.parametrize("output", ["[1]", '{"master": [{}]}', "", '"[secret]"', '{"master": 1}'])
def test_unknown_output_format_is_reported(
    pulumi: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (pulumi / "stdout").write_text(output)
    assert main(["show", "--stack", "dev"]) == 1
    assert "has an unknown format" in capsys.readouterr().err


def test_missing_pulumi_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["show", "--stack", "dev"]) == 1
    assert "`make show`" in capsys.readouterr().err
