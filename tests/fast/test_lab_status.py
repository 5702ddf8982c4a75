"""The status of a lab."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from lab import ssh, status
from lab.__main__ import status_text
from lab.hardware import Accelerator
from lab.lab import Lab
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.qemu_machine import QemuVm
from lab.record import Record
from lab.vms import create_vms
from tests.fast.saved_lab import QUIET, saved_lab

pytestmark = pytest.mark.usefixtures("temporary_folders")


def test_status_of_missing_lab_suggests_up() -> None:
    with pytest.raises(UserError, match="python -m lab up"):
        Lab.load("default", QUIET).status()


def test_status_of_stopped_lab_is_complete_json() -> None:
    found = json.loads(saved_lab(options={"count": 2}).status().to_json())
    assert found["ready"] is False
    assert [(h["name"], h["state"], h["ssh_port"]) for h in found["hosts"]] == [
        ("master", "stopped", 22101),
        ("node1", "stopped", 22102),
    ]
    assert found["api"] == "127.0.0.1:22643"


def test_status_text_has_a_row_for_each_host() -> None:
    lines = status_text(saved_lab(options={"count": 2}).status()).splitlines()
    assert lines[2] == "node1   worker         stopped  192.168.166.102  127.0.0.1:22102  1     2048 MiB  -"
    assert "snapshots  none" in lines
    assert lines[-1] == "lab 'blue' is not up"


@pytest.mark.parametrize(("accelerator", "state"), [("tcg", "ready"), ("kvm", "booting")])
def test_busy_emulated_host_is_ready(
    accelerator: Accelerator, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = Record(Options(name="blue", count=1), fixed(1), accelerator=accelerator)
    [master] = create_vms(tmp_path, record)
    monkeypatch.setattr(Vm, "pid", os.getpid())
    monkeypatch.setattr(QemuVm, "paused_reason", lambda _: None)
    monkeypatch.setattr(ssh, "sends_banner", lambda _, timeout: timeout >= 10)
    assert status.host_status(master).state == state
