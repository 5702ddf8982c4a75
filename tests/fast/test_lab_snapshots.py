"""Snapshots of a lab's hosts under QEMU."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from lab import record, ssh
from lab.lab import Lab
from lab.machine import Vm
from lab.qmp import Qmp
from lab.vms import create_vms
from tests.fast.fake_qemu import FakeQemu
from tests.fast.saved_lab import QUIET, saved_lab


@pytest.fixture
def lab(temporary_folders: None, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab of two hosts whose processes appear to run."""
    monkeypatch.setattr(Vm, "pid", property(lambda vm: os.getpid()))
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)
    saved = saved_lab("blue", options={"count": 2})
    (saved.folder / "packages.asc").write_text("new key\n")
    return saved


@pytest.fixture
def vms(lab: Lab) -> list[Vm]:
    return list(create_vms(lab.folder, record.load(lab.name)))


@pytest.fixture
def qemus(vms: list[Vm]) -> Iterator[list[FakeQemu]]:
    fakes = [FakeQemu(vm.folder) for vm in vms]
    yield fakes
    for fake in fakes:
        fake.close()


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "12", "ü"])
def test_tag_that_qemu_would_misread_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(UserError, match="not a valid snapshot name"):
        Lab.load("blue", QUIET).snapshot(tag)


def test_status_distinguishes_paused_from_booting(
    lab: Lab, qemus: list[FakeQemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "sends_banner", lambda port, timeout=5.0: False)
    qemus[0].status = "paused"
    assert [host.state for host in lab.status().hosts] == ["paused", "booting"]


@pytest.mark.parametrize("states", [["concluded"], ["running", "running", "concluded"]])
def test_job_left_by_killed_run_is_dismissed(qemus: list[FakeQemu], vms: list[Vm], states: list[str]) -> None:
    qemus[0].jobs["save-later"] = deque(states)
    vms[0].save("later")
    assert not qemus[0].jobs


def test_job_that_does_not_finish_times_out(qemus: list[FakeQemu], vms: list[Vm]) -> None:
    qemus[0].jobs["save-later"] = deque(["running"])
    with Qmp(vms[0].folder) as qmp, pytest.raises(UserError, match="timed out"):
        qmp.job("snapshot-save", "save-later", 0.0)


def test_missing_snapshot_is_named_with_existing_ones(lab: Lab, qemus: list[FakeQemu]) -> None:
    with pytest.raises(UserError, match="master, node1: no snapshot 'other'") as caught:
        lab.restore("other")
    assert caught.value.next_move.endswith(": plain")


def test_hosts_resume_after_failed_restore(lab: Lab, qemus: list[FakeQemu]) -> None:
    qemus[1].rejected.add("snapshot-load")
    with pytest.raises(UserError, match="rejected snapshot-load"):
        lab.restore("plain")
    assert [fake.status for fake in qemus] == ["running", "running"]


def test_restored_host_gets_current_time_and_packages_key(
    lab: Lab, qemus: list[FakeQemu], vms: list[Vm], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[int, str]] = []

    def run(folder: Path, port: int, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append((port, argv[0]))
        return subprocess.CompletedProcess(argv, 0, "degraded\n" if "is-system-running" in argv else "", "")

    monkeypatch.setattr(ssh, "run", run)
    monkeypatch.setattr(ssh, "sends_banner", lambda port, timeout=5.0: True)
    for vm in vms:
        (vm.folder / "packages.known").write_text("new key\n")  # the restored guest has the old one
    lab.restore("plain")
    for vm in vms:
        assert [command for port, command in commands if port == vm.ssh_port] == ["date", "tee"]
