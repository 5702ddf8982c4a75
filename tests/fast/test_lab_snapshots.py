"""What the lab asks of QEMU: guests that stand still, snapshots that were cut off or are brought back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.progress import Progress
from lab import api, qemu, ssh
from lab.api import Lab
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.qmp import Qmp

QUIET = Progress(quiet=True)


class Qemu:
    """QEMU's end of the protocol, as far as the lab uses it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.status = "running"
        self.jobs: dict[str, deque[str]] = {}
        self.refuses: set[str] = set()
        self.asked: list[str] = []
        self._server = socket.socket(socket.AF_UNIX)
        # Its path may be too long for a socket's name.
        before = Path.cwd()
        os.chdir(folder)
        self._server.bind("qmp.sock")
        os.chdir(before)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                stream.write('{"QMP": {}}\n')
                stream.flush()
                for line in stream:
                    request = json.loads(line)
                    stream.write(json.dumps(self._answer(request["execute"], request["arguments"])) + "\n")
                    stream.flush()

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command not in ("qmp_capabilities", "query-jobs"):
            self.asked.append(command)
        if command in self.refuses:
            return {"error": {"desc": "refused"}}
        match command:
            case "query-status":
                return {"return": {"status": self.status}}
            case "stop" | "cont":
                self.status = "paused" if command == "stop" else "running"
            case "query-named-block-nodes":
                image = {"snapshots": [{"name": "plain"}]}
                return {"return": [{"node-name": qemu.DISK, "image": image}]}
            case "query-jobs":
                # A job comes to its end while it is asked for.
                told = [{"id": name, "status": states[0]} for name, states in self.jobs.items()]
                for states in self.jobs.values():
                    if len(states) > 1:
                        states.popleft()
                return {"return": told}
            case "job-dismiss":
                del self.jobs[arguments["id"]]
            case "snapshot-save" | "snapshot-load" | "snapshot-delete":
                if arguments["job-id"] in self.jobs:
                    return {"error": {"desc": f"Job ID '{arguments['job-id']}' already in use"}}
                self.jobs[arguments["job-id"]] = deque(["running", "concluded"])
        return {"return": {}}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab of two hosts whose processes run, as far as anybody can see."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Vm, "pid", property(lambda vm: os.getpid()))
    found = Lab.load("blue", QUIET)
    found.folder.mkdir(parents=True)
    api._Record(Options(name="blue", count=2), fixed(2)).write(found.folder / "lab.json")
    (found.folder / "packages.asc").write_text("the new key\n")
    return found


@pytest.fixture
def qemus(lab: Lab) -> Iterator[list[Qemu]]:
    made = [Qemu(lab.folder / name) for name in ("master", "node1")]
    yield made
    for one in made:
        one.end()


@pytest.fixture
def vms(lab: Lab) -> list[Vm]:
    return list(lab._vms(lab._read()))


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """What guests are told by SSH, by their ports; each has failed services, and takes what it is told."""
    told: list[tuple[int, tuple[str, ...]]] = []

    def run(folder: Path, port: int, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        told.append((port, tuple(argv)))
        return subprocess.CompletedProcess(argv, 0, "degraded\n" if "is-system-running" in argv else "", "")

    monkeypatch.setattr(ssh, "run", run)
    monkeypatch.setattr(ssh, "greets", lambda port, timeout=5.0: True)
    return told


def test_a_guest_that_stands_still_goes_on_and_one_that_runs_is_left_alone(
    qemus: list[Qemu], vms: list[Vm]
) -> None:
    qemus[0].status = "paused"
    for vm in vms:
        vm.let_run(QUIET)
    assert qemus[0].status == "running"
    assert "cont" in qemus[0].asked
    assert "cont" not in qemus[1].asked


def test_a_guest_that_stopped_at_a_full_disk_goes_on_once_there_is_room(
    qemus: list[Qemu], vms: list[Vm], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(vms[0].folder)
    qemus[0].status = "io-error"
    monkeypatch.setattr("lab.qemu_machine.shutil.disk_usage", lambda folder: usage._replace(free=5 << 20))
    with pytest.raises(UserError, match=r"couldn't write its disk: .* has 5 MiB left") as caught:
        vms[0].let_run(QUIET)
    assert "lab up --name blue" in str(caught.value)
    monkeypatch.setattr("lab.qemu_machine.shutil.disk_usage", lambda folder: usage._replace(free=5 << 30))
    vms[0].let_run(QUIET)
    assert qemus[0].status == "running"


def test_the_status_tells_a_guest_that_stands_still_from_one_that_boots(
    lab: Lab, qemus: list[Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "greets", lambda port, timeout=5.0: False)
    qemus[0].status = "paused"
    assert [host.state for host in lab.status().hosts] == ["paused", "booting"]


@pytest.mark.parametrize("states", [["concluded"], ["running", "running", "concluded"]])
def test_a_job_that_a_killed_run_has_left_is_in_nobodys_way(
    qemus: list[Qemu], vms: list[Vm], states: list[str]
) -> None:
    qemus[0].jobs["save-later"] = deque(states)
    vms[0].save("later")
    assert not qemus[0].jobs


def test_a_job_that_does_not_end_is_given_up(qemus: list[Qemu], vms: list[Vm]) -> None:
    qemus[0].jobs["save-later"] = deque(["running"])
    with Qmp(vms[0].folder) as qmp, pytest.raises(UserError, match="not done in time"):
        qmp.job("snapshot-save", "save-later", 0.0)


def test_hosts_go_on_when_a_snapshot_cannot_be_brought_back(
    lab: Lab, qemus: list[Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)
    qemus[1].refuses.add("snapshot-load")
    with pytest.raises(UserError, match="refuses snapshot-load"):
        lab.restore("plain")
    assert [one.status for one in qemus] == ["running", "running"]


def test_a_degraded_host_is_brought_back_too_with_the_time_and_the_packages_key_of_now(
    lab: Lab,
    qemus: list[Qemu],
    vms: list[Vm],
    guests: list[tuple[int, tuple[str, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)
    for vm in vms:
        (vm.folder / "packages.known").write_text("the new key\n")  # which the guest of then hasn't
    lab.restore("plain")
    for vm in vms:
        words = [argv[0] for port, argv in guests if port == vm.ssh_port]
        assert words == ["date", "tee"]


def test_up_judges_by_their_services_only_the_hosts_that_have_not_been_ready_yet(
    lab: Lab, qemus: list[Qemu], vms: list[Vm], guests: list[tuple[int, tuple[str, ...]]]
) -> None:
    for vm in vms:
        (vm.folder / "packages.known").write_text("the new key\n")
    (vms[0].folder / "booted").write_text(str(os.getpid()))
    with pytest.raises(UserError, match="node1 booted, but is degraded") as caught:
        lab._start(lab._read())
    assert "python3 -m lab down --name blue" in str(caught.value)
    (vms[1].folder / "booted").write_text(str(os.getpid()))
    lab._start(lab._read())


def test_no_advice_is_about_another_lab(lab: Lab, vms: list[Vm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vm, "pid", property(lambda vm: None))
    ways: list[Callable[[], object]] = [
        lambda: lab.console("master"),
        lambda: lab.snapshot("plain"),
        lambda: vms[0].shut_down_for_reboot(1.0),
        lambda: lab.up(count=3),
    ]
    (lab.folder / "master").mkdir()
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        assert "--name blue" in caught.value.next_move, str(caught.value)
    (lab.folder / "lab.json").write_text("{")
    with pytest.raises(UserError) as caught:
        api.prune(QUIET)
    assert caught.value.next_move == "python3 -m lab down --name blue"


def test_bytes_that_are_no_text_end_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nprintf 'a\\377b'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ssh.run(tmp_path, 22, ["cat", "log"]).stdout == "a\ufffdb"
