"""Hosts under User Mode Linux: command line, CPU and memory, processes, snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import processes
from common.errors import UserError
from lab import ssh, uml
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.record import Record
from lab.uml_machine import cpu_of, memory_folder
from lab.vms import create_vms
from tests.fast.saved_lab import QUIET


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lab's folder."""
    (tmp_path / "blue/base").mkdir(parents=True)
    return tmp_path / "blue"


def vms_of(folder: Path, *, count: int = 3, cpus: int | None = None) -> tuple[Vm, ...]:
    options = Options(name="blue", count=count, cpus=cpus)
    return create_vms(folder, Record(options, fixed(count), accelerator="uml"))


@pytest.fixture
def master(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """A host whose kernel is a script."""
    (master,) = vms_of(folder, count=1)
    master.folder.mkdir()
    script = folder / "base/linux"
    # The test stops it; the minute is a limit in case the test fails first.
    script.write_text(
        f"#!{sys.executable}\nimport time\nopen('boots', 'a').write('started\\n')\ntime.sleep(60)\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(ssh, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    yield master
    master.stop()


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- command line -------------------------------------------------------------


def test_host_has_own_disks_cards_and_memory(folder: Path) -> None:
    commands = [uml.command(vm.machine, "../base/disk.raw") for vm in vms_of(folder)]
    assert [command[0] for command in commands] == ["../base/linux"] * 3
    assert "mem=3072M" in commands[0]
    assert "mem=2048M" in commands[1]
    for command in commands:
        assert "ubd0=disk.cow,../base/disk.raw" in command
        assert "ubd1r=seed.tar" in command
        assert "initrd=../base/initrd-uml" in command
    macs = [word.rpartition("mac=")[2] for command in commands for word in command if "mac=" in word]
    assert len(macs) == len(set(macs)) == 6


@pytest.mark.parametrize(("chosen", "cpus"), [(None, [1, 1, 1]), (2, [2, 2, 2])])
def test_host_has_one_cpu_by_default(folder: Path, chosen: int | None, cpus: list[int]) -> None:
    assert [vm.host.cpus for vm in vms_of(folder, cpus=chosen)] == cpus


def test_only_rpm_family_boots_with_selinux(folder: Path) -> None:
    record = Record(Options(name="blue", family="rpm"), fixed(3), accelerator="uml")
    assert all("security=selinux" in uml.command(vm.machine, "x") for vm in create_vms(folder, record))
    assert not any("security=selinux" in uml.command(vm.machine, "x") for vm in vms_of(folder))


# -- CPU and memory -----------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "pinned"),
    [((0,), [0, 0, 0, 0, 0]), ((0, 1), [0, 1, 1, 1, 1]), ((2, 3, 5, 7), [2, 3, 5, 7, 3])],
)
def test_control_plane_gets_its_own_cpu(cpus: tuple[int, ...], pinned: list[int]) -> None:
    assert [cpu_of(index, cpus) for index in range(5)] == pinned


Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize(
    ("free", "mounts", "expected"),
    [
        ({"/dev/shm": 4 << 30}, "tmpfs /dev/shm tmpfs rw\n", "/dev/shm"),
        ({"/dev/shm": 64 << 20, "/tmp": 4 << 30}, "shm /dev/shm tmpfs rw\ntmpfs /tmp tmpfs rw\n", "/tmp"),
        ({"/dev/shm": 64 << 20, "/tmp": 4 << 30}, "shm /dev/shm tmpfs rw\n/dev/vda / ext4 rw\n", None),
        ({}, "/dev/vda / ext4 rw\n", None),
    ],
)
def test_memory_goes_where_all_of_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: dict[str, int], mounts: str, expected: str | None
) -> None:
    monkeypatch.setattr("lab.uml_machine.shutil.disk_usage", lambda folder: Usage(free[str(folder)]))
    (tmp_path / "mounts").write_text(mounts)
    assert memory_folder(tmp_path, 2048, tmp_path / "mounts") == (Path(expected) if expected else tmp_path)


def test_memory_of_running_hosts_counts_as_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: Vm
) -> None:
    monkeypatch.setattr("lab.uml_machine.shutil.disk_usage", lambda folder: Usage(1 << 30))
    monkeypatch.setattr("lab.uml_machine._touched", lambda pid: 1500 if pid == master.pid else 0)
    (tmp_path / "mounts").write_text("tmpfs /dev/shm tmpfs rw\n")
    assert memory_folder(master.lab_folder, 2048, tmp_path / "mounts") == master.lab_folder
    master.start()
    assert memory_folder(master.lab_folder, 2048, tmp_path / "mounts") == Path("/dev/shm")


def test_memory_of_all_hosts_is_summed(folder: Path) -> None:
    assert {vm.machine.lab_memory for vm in vms_of(folder)} == {3072 + 2 * 2048}


# -- processes and snapshots --------------------------------------------------


def test_running_host_is_not_started_twice(master: Vm) -> None:
    master.start()
    wait_for(master.folder / "boots", 1)
    before = master.pid
    assert before is not None
    assert len(os.sched_getaffinity(before)) == 1
    master.start()
    assert master.pid == before


def test_stop_kills_the_process(master: Vm) -> None:
    master.start()
    pid = master.pid
    assert pid is not None
    master.stop()
    assert not processes.alive(pid)


def test_output_of_failing_kernel_is_reported(master: Vm) -> None:
    (master.lab_folder / "base/linux").write_text(f"#!{sys.executable}\nprint('no seccomp here')\n")
    with pytest.raises(
        UserError, match=r"User Mode Linux for master (exited|didn't start):\s+no seccomp here"
    ):
        master.start()
        master.wait_ssh(20, QUIET, threading.Event())


def test_paused_process_is_detected_and_resumed(master: Vm) -> None:
    assert master.paused_reason() is None
    master.start()
    assert master.paused_reason() is None
    pid = master.pid
    assert pid is not None
    master.pause()
    assert master.paused_reason() == "stopped"
    master.unpause(QUIET)
    assert master.paused_reason() is None
    assert master.pid == pid


def test_restore_boots_from_copy_of_disk(master: Vm) -> None:
    disk, key = master.folder / "disk.cow", master.folder / "packages.known"
    master.start()
    wait_for(master.folder / "boots", 1)
    disk.write_text("old")
    key.write_text("new key")
    master.pause()
    assert master.paused_reason() == "stopped"
    master.save("plain")
    master.resume()
    assert master.paused_reason() is None
    assert master.snapshots() == ["plain"]
    disk.write_text("new")
    master.prepare_load()
    assert master.pid is None
    master.load("plain")
    assert disk.read_text() == "old"
    assert not key.exists(), "the restored guest has the old key"
    master.resume()
    wait_for(master.folder / "boots", 2)
    assert master.pid is not None


def test_failed_snapshot_keeps_earlier_one(master: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    (master.folder / "disk.cow").write_text("first")
    master.save("plain")

    def full(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(argv[-1]).write_text("half")
        return subprocess.CompletedProcess(argv, 1, "", "cp: No space left on device")

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(UserError, match="No space left"):
        master.save("plain")
    assert [path.name for path in (master.folder / "snapshots").iterdir()] == ["plain.cow"]
    assert (master.folder / "snapshots/plain.cow").read_text() == "first"
