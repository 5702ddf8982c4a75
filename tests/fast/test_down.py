"""`make down` with a fake lab and engine."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.progress import Progress
from lab.lab import Lab
from tools import down, env, runs, stack, watch


def test_without_lab_and_stack_no_engine_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def toolbox(progress: Progress) -> env.Toolbox:
        raise AssertionError("the engine isn't needed")

    monkeypatch.setattr(env, "toolbox", toolbox)
    down.down("default", Progress(quiet=True))


class BusyLab:
    """A lab with a running host that doesn't answer yet."""

    exists = True

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(ready=False, hosts=(SimpleNamespace(state="booting"),))

    def up(self) -> None:
        self._calls.append("up")

    def down(self) -> None:
        self._calls.append("down")


def test_busy_hosts_are_restored_before_lab_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Lab, "load", lambda *_: BusyLab(calls))
    monkeypatch.setattr(down, "exists", lambda _: True)
    monkeypatch.setattr(env, "toolbox", lambda _: None)
    monkeypatch.setattr(env, "environment", lambda _: {})
    monkeypatch.setattr(stack, "ensure", lambda *_: None)
    monkeypatch.setattr(runs, "recorded", lambda *_: nullcontext())
    monkeypatch.setattr(watch, "run", lambda argv, *_: calls.append(argv[0]))
    down.down("default", Progress(quiet=True))
    assert calls == ["up", "destroy", "down"]
