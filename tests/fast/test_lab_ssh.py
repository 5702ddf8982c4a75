"""SSH to the lab's hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import ssh


def test_output_may_contain_arbitrary_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nprintf 'a\\377b'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ssh.run(tmp_path, 22, ["cat", "log"]).stdout == "a\ufffdb"
