"""SSH to the lab's hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import ssh
from tests.fast.fake_programs import program


def test_output_may_contain_arbitrary_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "ssh", "printf 'a\\377b'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ssh.run(tmp_path, 22, ["cat", "log"]).stdout == "a\ufffdb"
