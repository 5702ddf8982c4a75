"""`make down` when the lab is already gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.progress import Progress
from tools import down, env, stack


def test_state_of_a_stopped_lab_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(down, "project_dir", lambda: tmp_path)
    (tmp_path / "Pulumi.yaml").write_text("name: kubeadm-ipvs\nruntime: python\n")
    settings = tmp_path / "Pulumi.dev.yaml"
    settings.write_text("# ours\nconfig: {}\n")
    stack.ensure("dev", env.toolbox(Progress(quiet=True)), Progress(quiet=True), tmp_path)
    assert down.exists("dev")

    down.down("default", Progress(quiet=True))

    assert not down.exists("dev")
    assert settings.read_text().startswith("# ours\nconfig: {}\n"), "the stack's file must stay"
