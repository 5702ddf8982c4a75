"""A lab's start and removal, and the advice in its error messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from lab import record, ssh, startup
from lab.hardware import guest_name
from lab.lab import Lab
from lab.machine import Vm
from lab.vms import create_vms
from tests.fast.fake_qemu import FakeQemu
from tests.fast.saved_lab import QUIET, saved_lab

pytestmark = pytest.mark.usefixtures("temporary_folders")


def test_taking_down_missing_lab_succeeds() -> None:
    Lab.load("blue", QUIET).down()


def test_damaged_lab_can_be_taken_down() -> None:
    lab = saved_lab("blue")
    (lab.folder / "master").mkdir()
    (lab.folder / "lab.json").write_text("{")
    mark = guest_name("blue", "master")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", mark])
    (lab.folder / "master/qemu.pid").write_text(str(child.pid))
    with pytest.raises(UserError, match="down"):
        lab.status()
    lab.down()
    assert child.poll() is not None
    assert not lab.folder.exists()


def test_only_hosts_not_yet_booted_must_be_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path, port: int, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, "degraded\n" if "is-system-running" in argv else "", "")

    monkeypatch.setattr(ssh, "run", run)
    monkeypatch.setattr(ssh, "sends_banner", lambda port, timeout=5.0: True)
    monkeypatch.setattr(Vm, "pid", property(lambda vm: os.getpid()))
    lab = saved_lab("blue", options={"count": 2})
    (lab.folder / "packages.asc").write_text("key\n")
    saved = record.load("blue")
    vms = create_vms(lab.folder, saved)
    qemus = [FakeQemu(vm.folder) for vm in vms]
    try:
        (vms[0].folder / "booted").write_text(str(os.getpid()))
        with pytest.raises(UserError, match="node1 booted, but is degraded") as caught:
            startup.start(lab.folder, saved, QUIET)
        assert ".venv/bin/python -m lab down --name blue" in str(caught.value)
        (vms[1].folder / "booted").write_text(str(os.getpid()))
        startup.start(lab.folder, saved, QUIET)
    finally:
        for qemu in qemus:
            qemu.close()


def test_suggested_commands_name_the_lab() -> None:
    lab = saved_lab("blue", options={"count": 2})
    master = create_vms(lab.folder, record.load("blue"))[0]
    master.folder.mkdir()
    failures: list[Callable[[], object]] = [
        lambda: lab.console("master"),
        lambda: lab.snapshot("plain"),
        lambda: master.shut_down_for_reboot(1.0),
        lambda: lab.up(count=3),
    ]
    for fail in failures:
        with pytest.raises(UserError) as caught:
            fail()
        assert "--name blue" in caught.value.next_move, str(caught.value)
