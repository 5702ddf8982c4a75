"""The status of a lab."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from lab import ssh, status
from lab.hardware import Accelerator
from lab.lab import Lab
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.qemu_machine import QemuVm
from lab.record import Record
from lab.vms import create_vms
from tests.fast.saved_lab import QUIET, saved_lab


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_status_of_missing_lab_suggests_up() -> None:
    with pytest.raises(UserError, match="python3 -m lab up"):
        Lab.load("default", QUIET).status()


def test_status_of_stopped_lab_is_complete_json() -> None:
    found = json.loads(saved_lab(options={"count": 2}).status().to_json())
    assert found["ready"] is False
    assert [(h["name"], h["state"], h["ssh_port"]) for h in found["hosts"]] == [
        ("master", "stopped", 22101),
        ("node1", "stopped", 22102),
    ]
    assert found["api"] == "127.0.0.1:22643"


@pytest.mark.parametrize(("accelerator", "state"), [("tcg", "ready"), ("kvm", "booting")])
def test_busy_emulated_host_is_ready(
    accelerator: Accelerator, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = Record(Options(name="blue", count=1), fixed(1), accelerator=accelerator)
    [master] = create_vms(tmp_path, record)
    monkeypatch.setattr(Vm, "pid", os.getpid())
    monkeypatch.setattr(QemuVm, "paused_reason", lambda _: None)
    monkeypatch.setattr(ssh, "greets", lambda _, timeout: timeout >= 10)
    assert status.host_status(master).state == state
