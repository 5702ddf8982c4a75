"""Hosts under User Mode Linux: their command line, their places in this machine, their snapshots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common import processes
from common.errors import UserError
from common.progress import Progress
from lab import network, ssh, stackfile, uml
from lab.api import Lab, _Record
from lab.artefacts import kernel
from lab.hardware import Accelerator
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.uml_machine import cpu_of, memory_folder

QUIET = Progress(quiet=True)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Lab.load("blue", QUIET)
    (found.folder / "base").mkdir(parents=True)
    return found


def vms_of(lab: Lab, *, count: int = 3, cpus: int | None = None) -> tuple[Vm, ...]:
    return lab._vms(_Record(Options(name=lab.name, count=count, cpus=cpus), fixed(count), accelerator="uml"))


@pytest.fixture
def master(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """A host whose kernel is a script."""
    (master,) = vms_of(lab, count=1)
    master.folder.mkdir()
    script = lab.folder / "base/linux"
    # It runs until the test ends it; the minute is for a test that fails before that.
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


def test_host_has_disks_cards_and_memory_of_its_own(lab: Lab) -> None:
    commands = [uml.command(vm.machine, "../base/disk.raw") for vm in vms_of(lab)]
    assert [command[0] for command in commands] == ["../base/linux"] * 3
    assert "mem=3072M" in commands[0]
    assert "mem=2048M" in commands[1]
    for command in commands:
        assert "ubd0=disk.cow,../base/disk.raw" in command
        assert "ubd1r=seed.tar" in command
        assert "initrd=../base/initrd-uml" in command
    macs = [word.rpartition("mac=")[2] for command in commands for word in command if "mac=" in word]
    assert len(macs) == len(set(macs)) == 6


@pytest.mark.parametrize(("asked", "cpus"), [(None, [1, 1, 1]), (2, [2, 2, 2])])
def test_host_has_one_cpu_unless_more_are_asked_for(lab: Lab, asked: int | None, cpus: list[int]) -> None:
    assert [vm.host.cpus for vm in vms_of(lab, cpus=asked)] == cpus


def test_only_the_dnf_family_boots_with_selinux(lab: Lab) -> None:
    record = _Record(Options(name="blue", family="rpm"), fixed(3), accelerator="uml")
    assert all("security=selinux" in uml.command(vm.machine, "x") for vm in lab._vms(record))
    assert not any("security=selinux" in uml.command(vm.machine, "x") for vm in vms_of(lab))


# -- places in this machine ---------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "places"),
    [((0,), [0, 0, 0, 0, 0]), ((0, 1), [0, 1, 1, 1, 1]), ((2, 3, 5, 7), [2, 3, 5, 7, 3])],
)
def test_control_plane_has_a_cpu_of_its_own_where_there_are_two(
    cpus: tuple[int, ...], places: list[int]
) -> None:
    assert [cpu_of(index, cpus) for index in range(5)] == places


Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize(
    ("free", "mounts", "place"),
    [
        ({"/dev/shm": 4 << 30}, "tmpfs /dev/shm tmpfs rw\n", "/dev/shm"),
        ({"/dev/shm": 64 << 20, "/tmp": 4 << 30}, "shm /dev/shm tmpfs rw\ntmpfs /tmp tmpfs rw\n", "/tmp"),
        ({"/dev/shm": 64 << 20, "/tmp": 4 << 30}, "shm /dev/shm tmpfs rw\n/dev/vda / ext4 rw\n", None),
        ({}, "/dev/vda / ext4 rw\n", None),
    ],
)
def test_memory_lies_where_all_of_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: dict[str, int], mounts: str, place: str | None
) -> None:
    monkeypatch.setattr("lab.uml_machine.shutil.disk_usage", lambda folder: Usage(free[str(folder)]))
    (tmp_path / "mounts").write_text(mounts)
    assert memory_folder(tmp_path, 2048, tmp_path / "mounts") == (Path(place) if place else tmp_path)


def test_memory_that_hosts_have_taken_counts_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: Vm
) -> None:
    monkeypatch.setattr("lab.uml_machine.shutil.disk_usage", lambda folder: Usage(1 << 30))
    monkeypatch.setattr("lab.uml_machine._touched", lambda pid: 1500 if pid == master.pid else 0)
    (tmp_path / "mounts").write_text("tmpfs /dev/shm tmpfs rw\n")
    assert memory_folder(master.lab_folder, 2048, tmp_path / "mounts") == master.lab_folder
    master.start()
    assert memory_folder(master.lab_folder, 2048, tmp_path / "mounts") == Path("/dev/shm")


def test_all_hosts_memory_must_fit_together(lab: Lab) -> None:
    assert {vm.machine.lab_memory for vm in vms_of(lab)} == {3072 + 2 * 2048}


# -- processes and snapshots --------------------------------------------------


def test_host_is_found_again(master: Vm) -> None:
    master.start()
    wait_for(master.folder / "boots", 1)
    before = master.pid
    assert before is not None
    assert len(os.sched_getaffinity(before)) == 1
    master.start()
    assert master.pid == before, "it runs"


def test_power_cut_ends_the_process_at_once(master: Vm) -> None:
    master.start()
    pid = master.pid
    assert pid is not None
    master.stop()
    assert not processes.alive(pid)


def test_host_whose_kernel_ends_at_once_says_what_it_printed(master: Vm) -> None:
    (master.lab_folder / "base/linux").write_text(f"#!{sys.executable}\nprint('no seccomp here')\n")
    with pytest.raises(
        UserError, match=r"User Mode Linux of master (ended|doesn't start):\s+no seccomp here"
    ):
        master.start()
        master.wait_answers(20, QUIET, threading.Event())


def test_stopped_process_is_told_and_goes_on(master: Vm) -> None:
    assert master.held() is None
    master.start()
    assert master.held() is None
    pid = master.pid
    assert pid is not None
    master.pause()
    assert master.held() == "stopped"
    master.let_run(QUIET)
    assert master.held() is None
    assert master.pid == pid


def test_snapshot_is_a_copy_of_the_disk_and_a_restore_boots_from_it(master: Vm) -> None:
    disk, key = master.folder / "disk.cow", master.folder / "packages.known"
    master.start()
    wait_for(master.folder / "boots", 1)
    disk.write_text("then")
    key.write_text("the key of now")
    master.pause()
    assert master.held() == "stopped"
    master.save("plain")
    master.resume()
    assert master.held() is None
    assert master.snapshots() == ["plain"]
    disk.write_text("now")
    master.hold_for_load()
    assert master.pid is None
    master.load("plain")
    assert disk.read_text() == "then"
    assert not key.exists(), "the guest has the key of then"
    master.resume()
    wait_for(master.folder / "boots", 2)
    assert master.pid is not None


def test_snapshot_that_cannot_be_written_leaves_the_earlier_one(
    master: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# -- the network --------------------------------------------------------------


def test_network_is_told_each_hosts_sockets_and_ports(lab: Lab) -> None:
    told = json.loads(network.settings(lab.folder, vms_of(lab)))
    assert [host["nat"] for host in told["hosts"]] == ["master/nat.sock", "node1/nat.sock", "node2/nat.sock"]
    assert told["hosts"][0]["forwards"] == {
        "127.0.0.1:22101": 22, "127.0.0.1:22382": 30080, "127.0.0.1:22643": 6443,
    }  # fmt: skip
    assert told["hosts"][1]["forwards"] == {"127.0.0.1:22102": 22, "127.0.0.1:22380": 30080}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("# nameserver 9.9.9.9\nnameserver ::1\nnameserver 127.0.0.53\nnameserver 1.1.1.1\n", "127.0.0.53"),
        ("nameserver\nsearch example.com\n", ""),
        (None, ""),
    ],
)
def test_resolver_is_this_machines_first_of_ipv4(tmp_path: Path, text: str | None, address: str) -> None:
    if text is not None:
        (tmp_path / "resolv.conf").write_text(text)
    assert network.resolver(tmp_path / "resolv.conf") == address


def test_hosts_that_lost_their_network_are_started_again(master: Vm, tmp_path: Path) -> None:
    program = tmp_path / "lab-network"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\n"
        "pid_file = json.load(open(sys.argv[1]))['pid_file']\n"
        "open(pid_file, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    master.start()
    network.start(master.lab_folder, program, [master], QUIET)
    try:
        assert master.pid is None
        master.start()
        first = network.pid(master.lab_folder)
        network.start(master.lab_folder, program, [master], QUIET)
        assert network.pid(master.lab_folder) == first is not None
        assert master.pid is not None, "its network was there"
    finally:
        network.stop(master.lab_folder)


# -- the kernel ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["linux-source", "linux-source-6.12", "linux-source-7.2", "linux-source-7.3"], "linux-source-7.2"),
        (["linux-source-7.3", "linux-source-7.10", "linux-source-7.4-rt"], "linux-source-7.10"),
    ],
)
def test_kernel_series_that_was_tried_comes_first_and_a_later_one_next(names: list[str], chosen: str) -> None:
    assert kernel.choose_package(names) == chosen


@pytest.mark.parametrize("names", [[], ["linux-source-6.12", "linux-source-7.1"]])
def test_kernel_sources_that_are_too_old_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"no kernel source of 7\.2 or later"):
        kernel.choose_package(names)


def test_option_that_kconfig_dropped_is_named() -> None:
    text = kernel.CONFIG.read_text()
    kernel.check_config(text)
    with pytest.raises(UserError, match="CONFIG_IP_VS_RR=m, CONFIG_IP_VS_NFCT=y"):
        kernel.check_config(text.replace("CONFIG_IP_VS_RR=m\n", "").replace("IP_VS_NFCT=y", "IP_VS_NFCT=n"))


def test_kernel_on_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    monkeypatch.setattr(os, "uname", lambda: namedtuple("Uname", "machine")("aarch64"))
    with pytest.raises(UserError, match="aarch64"):
        kernel.ensure(QUIET)


# -- settings -----------------------------------------------------------------


def test_lab_of_an_earlier_version_that_is_up_gets_its_settings_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Record(Options(name=lab.name), fixed(3), accelerator="tcg").write(lab.folder / "lab.json")
    monkeypatch.setattr(Lab, "_is_up", lambda *_: True)
    lab.up()
    assert "slowHosts: true" in (lab.folder / stackfile.SETTINGS).read_text()


@pytest.mark.parametrize("accelerator", ["kvm", "uml", "tcg"])
def test_lab_writes_the_settings_that_its_hosts_need(tmp_path: Path, accelerator: Accelerator) -> None:
    stackfile.write_settings(tmp_path, accelerator)
    config = yaml.safe_load((tmp_path / "settings.yaml").read_text())["config"]
    assert (config.get("kubeadm-ipvs:preflight") == {"ignore": ["NumCPU"]}) is (accelerator == "uml")
    assert ("kubeadm-ipvs:cluster" in config) is (accelerator == "tcg")
