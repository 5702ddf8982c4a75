"""Hosts under QEMU: command line, priority, paused guests."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import processes
from common.errors import UserError
from lab import qemu, requirements
from lab.hardware import Accelerator, Machine, guest_name
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.qemu_machine import QemuVm
from tests.fast.fake_qemu import FakeQemu
from tests.fast.saved_lab import QUIET


def machine(host: int = 0, accelerator: Accelerator = "tcg") -> Machine:
    return Machine(
        lab="blue",
        host=Options(name="blue").hosts()[host],
        node_port_index=(2, 0, 1)[host],
        ports=fixed(3),
        accelerator=accelerator,
        kernel=Path("../base/vmlinuz"),
        initrd=Path("../base/initrd"),
        network_id=7,
    )


# -- command line -------------------------------------------------------------


def forwards(command: list[str]) -> set[str]:
    net = next(word for word in command if word.startswith("user,"))
    return {part.removeprefix("hostfwd=") for part in net.split(",") if part.startswith("hostfwd=")}


def test_control_plane_forwards_ssh_api_and_node_port() -> None:
    assert forwards(qemu.command(machine(0))) == {
        "tcp:127.0.0.1:22101-:22",
        "tcp:127.0.0.1:22643-:6443",
        "tcp:127.0.0.1:22382-:30080",
    }


def test_first_node_port_forward_leads_to_first_worker() -> None:
    assert forwards(qemu.command(machine(1))) == {"tcp:127.0.0.1:22102-:22", "tcp:127.0.0.1:22380-:30080"}


def test_hosts_share_loopback_lan_with_distinct_mac_addresses() -> None:
    commands = [qemu.command(machine(host)) for host in range(3)]
    lans = {word for command in commands for word in command if word.startswith("socket,")}
    assert lans == {"socket,id=lan,mcast=230.0.0.1:22166,localaddr=127.0.0.1"}
    addresses = [word.rsplit("mac=", 1)[1] for command in commands for word in command if "mac=" in word]
    assert len(addresses) == len(set(addresses)) == 6


def test_emulated_cpu_lacks_features_that_are_slow() -> None:
    command = qemu.command(machine(accelerator="tcg"))
    assert command[command.index("-accel") + 1] == "tcg,thread=multi,tb-size=1024"
    assert {"-erms", "-fsrm", "-avx2", "-avx"} <= set(command[command.index("-cpu") + 1].split(","))


def test_only_emulated_host_has_coarse_timers_and_gomaxprocs() -> None:
    emulated, virtual = (
        command[command.index("-append") + 1].split()
        for command in (qemu.command(machine(accelerator="tcg")), qemu.command(machine(accelerator="kvm")))
    )
    arguments = {"highres=off", "nohz=off", "systemd.setenv=GOMAXPROCS=1"}
    assert arguments <= set(emulated)
    assert not arguments & set(virtual)


def test_kvm_guest_has_host_cpu() -> None:
    command = qemu.command(machine(accelerator="kvm"))
    assert command[command.index("-accel") + 1] == "kvm"
    assert command[command.index("-cpu") + 1] == "host"


def test_guest_can_start_paused() -> None:
    assert "-S" in qemu.command(machine(), paused=True)
    assert "-S" not in qemu.command(machine())


def test_only_rpm_family_boots_with_selinux() -> None:
    deb, rpm = machine(), dataclasses.replace(machine(), family="rpm")
    assert "selinux" not in " ".join(qemu.command(deb))
    assert "security=selinux" in " ".join(qemu.command(rpm))


# -- priority -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "accelerator", "niceness"), [(0, "tcg", 0), (1, "tcg", 2), (2, "tcg", 2), (1, "kvm", 0)]
)
def test_emulated_workers_run_at_lower_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: int, accelerator: Accelerator, niceness: int
) -> None:
    binary = tmp_path / "qemu"
    # The test stops it; the minute is a limit in case the test fails first.
    binary.write_text(
        f"#!{sys.executable}\nimport os, pathlib, time\n"
        "pathlib.Path('qemu.pid').write_text(str(os.getpid()))\n"
        "pathlib.Path('qmp.sock').touch()\n"
        "time.sleep(60)\n"
    )
    binary.chmod(0o755)
    monkeypatch.setattr(requirements, "program", lambda _: str(binary))
    vm = QemuVm(tmp_path, machine(host, accelerator))
    vm.folder.mkdir()
    vm.start()
    pid = vm.pid
    assert pid is not None
    try:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(own + niceness, 19)
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():  # a new session's group starts at 0
            assert group.read_text().split()[-1] == str(niceness)
    finally:
        processes.end(vm.folder / "qemu.pid", guest_name("blue", vm.host.name))


# -- paused guests --------------------------------------------------------------


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Vm]:
    monkeypatch.setattr(Vm, "pid", property(lambda vm: os.getpid()))
    return [QemuVm(tmp_path, machine(host)) for host in range(2)]


@pytest.fixture
def qemus(vms: list[Vm]) -> Iterator[list[FakeQemu]]:
    fakes = [FakeQemu(vm.folder) for vm in vms]
    yield fakes
    for fake in fakes:
        fake.close()


def test_only_paused_guest_is_resumed(qemus: list[FakeQemu], vms: list[Vm]) -> None:
    qemus[0].status = "paused"
    for vm in vms:
        vm.unpause(QUIET)
    assert qemus[0].status == "running"
    assert "cont" in qemus[0].received
    assert "cont" not in qemus[1].received


def test_guest_paused_by_full_disk_resumes_after_cleanup(
    qemus: list[FakeQemu], vms: list[Vm], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(vms[0].folder)
    qemus[0].status = "io-error"
    monkeypatch.setattr("lab.qemu_machine.shutil.disk_usage", lambda folder: usage._replace(free=5 << 20))
    with pytest.raises(UserError, match=r"couldn't write the disk: .* has 5 MiB left") as caught:
        vms[0].unpause(QUIET)
    assert "lab up --name blue" in str(caught.value)
    monkeypatch.setattr("lab.qemu_machine.shutil.disk_usage", lambda folder: usage._replace(free=5 << 30))
    vms[0].unpause(QUIET)
    assert qemus[0].status == "running"
