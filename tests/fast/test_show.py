from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import show

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
    """A `pulumi` that answers with what is put beside it, and keeps its arguments."""
    program = tmp_path / "pulumi"
    program.write_text(
        "#!/bin/bash\n"
        'cd "$(dirname "$0")"\n'
        'echo "$@" > arguments\n'
        'cat answer\ncat complaint >&2\nexit "$(< status)"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "answer").write_text(json.dumps({"master": [ROW]}))
    (tmp_path / "complaint").write_text("")
    (tmp_path / "status").write_text("0")
    return tmp_path


def test_the_stacks_virtual_servers_are_printed(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main(["--stack", "dev"]) == 0
    assert "TCP 10.96.0.1:443  rr         192.168.166.101:6443" in capsys.readouterr().out
    assert (pulumi / "arguments").read_text() == (
        "stack output virtualServers --stack dev --json --non-interactive\n"
    )


def test_the_structured_output_is_printed_as_it_is(pulumi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main(["--stack", "dev", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"master": [ROW]}


def test_outputs_that_can_not_be_read_are_said_with_pulumis_own_words_and_no_other_cause(
    pulumi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pulumi / "status").write_text("255")
    (pulumi / "complaint").write_text("error: incorrect passphrase\n")
    assert show.main(["--stack", "dev"]) == 1
    said = capsys.readouterr().err
    assert "the outputs of the stack dev can't be read: error: incorrect passphrase" in said
    assert "has no virtualServers" not in said
    assert "pulumi up" not in said


def test_a_stack_without_the_output_is_said_with_the_next_move(
    pulumi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pulumi / "status").write_text("255")
    (pulumi / "complaint").write_text("error: current stack does not have output property 'virtualServers'\n")
    assert show.main(["--stack", "dev"]) == 1
    said = capsys.readouterr().err
    assert "the stack dev has no virtualServers to show" in said
    assert "`pulumi up` makes it" in said


@pytest.mark.parametrize("answer", ["[1]", '{"master": [{}]}', "", '"[secret]"', '{"master": 1}'])
def test_an_output_of_another_form_is_no_traceback(
    pulumi: Path, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    (pulumi / "answer").write_text(answer)
    assert show.main(["--stack", "dev"]) == 1
    assert "not what this program writes" in capsys.readouterr().err


def test_without_pulumi_the_next_move_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert show.main(["--stack", "dev"]) == 1
    assert "`make show`" in capsys.readouterr().err
